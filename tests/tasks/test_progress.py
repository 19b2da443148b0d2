"""News reach every listener, and the log when nobody listens."""

import logging
import threading
from collections.abc import Iterator

import pytest

from rnnlm_core.outcomes import Epoch
from tasks import progress
from tasks.progress import News

EPOCH = Epoch(2, 5, 2.0, None, 1e-3, 0.5, 1234.5, 0.1)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """The Prefect log."""
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    caplog.set_level(logging.INFO, logger="prefect.rnnlm")
    caplog.set_level(logging.INFO, logger="prefect")
    return caplog


def messages(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in log.records if record.name == "prefect.rnnlm"]


def test_every_listener_hears_all_news_in_order() -> None:
    first: list[News] = []
    second: list[News] = []
    news = [News("download", done="done"), News("train", "gru", epoch=EPOCH)]
    with progress.listening(first.append), progress.listening(second.append):
        for one in news:
            progress.publish(one)
    assert first == second == news


def test_a_listener_that_left_hears_nothing(log: pytest.LogCaptureFixture) -> None:
    heard: list[News] = []
    with progress.listening(heard.append):
        pass
    progress.warn("train", "late")
    assert heard == []
    assert messages(log) == [("WARNING", "train : late")]


def test_a_listener_leaves_even_when_its_block_fails() -> None:
    heard: list[News] = []
    with pytest.raises(RuntimeError, match="broken"), progress.listening(heard.append):
        raise RuntimeError("broken")
    progress.publish(News("download", done="done"))
    assert heard == []


def test_a_warning_is_news_with_its_stage_and_cell() -> None:
    heard: list[News] = []
    with progress.listening(heard.append):
        progress.warn("train", "checkpoint skipped", "gru")
    assert heard == [News("train", "gru", warning="checkpoint skipped")]


def test_without_listener_warnings_and_epochs_go_to_the_log(log: pytest.LogCaptureFixture) -> None:
    progress.warn("cache", "artifact is missing", "gru")
    progress.publish(News("train", "gru", epoch=EPOCH))
    progress.publish(News("train", "gru", done="done"))
    assert messages(log) == [
        ("WARNING", "cache gru: artifact is missing"),
        ("INFO", "train gru: epoch 2/5, train perplexity 7.389, valid perplexity -, 1234 tokens/s"),
        ("INFO", "train gru: done"),
    ]


def test_an_epoch_from_before_an_interruption_is_not_logged_again(log: pytest.LogCaptureFixture) -> None:
    progress.publish(News("train", "gru", done="goes on after epoch 2"))
    progress.publish(News("train", "gru", epoch=EPOCH, earlier=True))
    assert messages(log) == [("INFO", "train gru: goes on after epoch 2")]


def test_with_a_listener_the_log_stays_silent(log: pytest.LogCaptureFixture) -> None:
    with progress.listening(lambda _: None):
        progress.warn("cache", "artifact is missing")
    assert messages(log) == []


def test_news_of_many_threads_all_arrive() -> None:
    heard: list[News] = []
    with progress.listening(heard.append):
        threads = [
            threading.Thread(target=lambda i=i: [progress.warn("train", f"{i}-{j}") for j in range(50)])
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(news.warning for news in heard) == sorted(f"{i}-{j}" for i in range(8) for j in range(50))
