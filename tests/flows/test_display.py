"""What a person sees of a run."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from flows.display import Display
from rnnlm_core.outcomes import Epoch
from tasks.progress import News


def epoch(number: int, epochs: int, valid_loss: float | None = 1.0) -> Epoch:
    return Epoch(number, epochs, 2.0, valid_loss, 1e-3, 0.5, 12345.6, 30.0)


def shown(*news: News, terminal: bool = False) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    with Display(console) as display:
        for one in news:
            display.hear(one)
    return out.getvalue()


def training(cell: str, epochs: int) -> list[News]:
    return [News("train", cell, epoch=epoch(number, epochs)) for number in range(1, epochs + 1)]


@pytest.mark.parametrize("epochs", [1, 2, 9, 10, 11, 19, 50, 500, 777])
def test_without_terminal_a_cell_takes_about_ten_lines_and_the_last_epoch_is_there(epochs: int) -> None:
    lines = shown(*training("gru", epochs)).splitlines()
    assert min(epochs, 10) <= len(lines) <= 20
    assert lines[-1].startswith(f"train gru      epoch {epochs}/{epochs}  valid perplexity 2.718  12,346 tokens/s")


def test_without_terminal_there_are_no_control_characters() -> None:
    text = shown(News("download", done="done"), *training("gru", 3), News("train", "gru", warning="careful"))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_stage_is_a_line_with_its_cell_and_its_state() -> None:
    text = shown(News("download", done="cached"), News("evaluate", "lstm", done="done"))
    assert text.splitlines() == ["download       cached", "evaluate lstm  done"]


def test_a_warning_is_a_line_with_its_stage() -> None:
    text = shown(News("train", "gru", warning="checkpoint skipped: [bold]odd[/bold]"))
    assert text == "warning: train gru: checkpoint skipped: [bold]odd[/bold]\n"


def test_a_long_warning_stays_on_one_line() -> None:
    assert shown(News("cache", warning="x" * 500)).count("\n") == 1


def test_without_validation_the_training_perplexity_is_shown() -> None:
    line = shown(News("train", "rnn", epoch=epoch(1, 4, valid_loss=None)))
    assert "train perplexity 7.389" in line
    assert "valid" not in line


def test_epochs_from_before_an_interruption_are_not_shown_again_and_count_for_the_time_left() -> None:
    before = [replace(news, earlier=True) for news in training("gru", 3)]
    goes_on = News("train", "gru", done="goes on after epoch 3")
    told, line = shown(goes_on, *before, *training("gru", 4)[3:]).splitlines()
    assert told == "train gru      goes on after epoch 3"
    assert line.startswith("train gru      epoch 4/4")
    slow = [replace(news, epoch=replace(news.epoch, seconds=90.0)) for news in training("gru", 4) if news.epoch]
    assert shown(*(replace(news, earlier=True) for news in slow[:2]), slow[2]).strip().endswith("1m30s left")


def test_the_time_left_is_that_of_the_epochs_to_come() -> None:
    first, second, *_ = shown(*training("rnn", 4)).splitlines()
    assert first.endswith("1m30s left")
    assert second.endswith("1m00s left")
    assert shown(*training("rnn", 1)).strip().endswith("0s left")


def test_in_a_terminal_each_cell_has_a_bar_of_its_own() -> None:
    text = shown(*training("gru", 3), *training("lstm", 2), terminal=True)
    assert "\x1b[" in text
    last = text[text.rfind("gru") :]
    assert "epoch 3/3" in last
    assert "lstm" in last
    assert "epoch 2/2" in last
    assert "━" in last


def test_in_a_terminal_stages_and_warnings_are_lines_above_the_bars() -> None:
    text = shown(*training("gru", 1), News("train", "gru", done="done"), terminal=True)
    assert "train gru      done" in text


def test_the_cursor_comes_back_when_a_run_fails() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with pytest.raises(RuntimeError, match="broken"), Display(console) as display:  # noqa: PT012 - both in the block
        display.hear(News("train", "gru", epoch=epoch(1, 2)))
        raise RuntimeError("broken")
    hide, show = out.getvalue().rfind("\x1b[?25l"), out.getvalue().rfind("\x1b[?25h")
    assert 0 <= hide < show
