"""Keys say what was done; records count only while what they name is there."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rnnlm_core
from rnnlm_core.config import GenerateConfig, ModelConfig, TrainConfig
from rnnlm_core.download import Source, Text, resolve
from rnnlm_core.outcomes import Epoch, Trained
from rnnlm_core.store import Handle
from tasks import caching, tracking
from tasks import sources as sources_module
from tasks.caching import NotWhole, VerifiedSerializer, cache_key
from tasks.compare import compare
from tasks.corpus import corpus
from tasks.download import download
from tasks.evaluate import evaluate
from tasks.generate import Samples, generate
from tasks.progress import News
from tasks.sources import source_digest
from tasks.statistics import statistics
from tasks.tokenize import tokenize
from tasks.tracking import FlowRun
from tasks.tracking_database import client
from tasks.train import TrackedTraining, train
from tasks.vocabulary import vocabulary

CORE = "rnnlm_core.train"
EPOCH = Epoch(1, 1, 2.0, 2.1, 1e-3, 0.5, 1000.0, 0.1)
TRAINED = Trained("rnn", Handle("model", "a" * 64), 1, 471, "cpu", 1000.0, (EPOCH,))


@pytest.fixture
def serializer() -> VerifiedSerializer:
    return VerifiedSerializer()


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the core that the digests are taken of; edit it, then ask `source_digest.__wrapped__`."""
    copy = tmp_path / "rnnlm_core"
    shutil.copytree(Path(rnnlm_core.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def place(module: str) -> Path:
        return copy / "__init__.py" if module == "rnnlm_core" else copy / f"{module.removeprefix('rnnlm_core.')}.py"

    monkeypatch.setattr(sources_module, "_source", place)
    return copy


def digest_now(module: str) -> str:
    digest: str = source_digest.__wrapped__(module)
    return digest


def edit(path: Path) -> None:
    assert path.exists()
    path.write_text(path.read_text() + "\n# edited\n")


def test_a_key_names_its_stage_and_a_digest() -> None:
    key = cache_key("train", {"cell": "gru"}, CORE)
    assert key is not None
    stage, _, digest = key.partition("-")
    assert stage == "train"
    assert len(digest) == 64
    assert set(digest) <= set("0123456789abcdef")


ASK_KEY = """
from rnnlm_core.config import GenerateConfig, ModelConfig, TrainConfig
from rnnlm_core.store import Handle
from tasks.caching import cache_key
inputs = {"z": {"valid": "b", "train": "a"}, "model": ModelConfig(), "train": TrainConfig(),
          "generate": GenerateConfig(), "text": Handle("text", "a"), "shares": (80, 10, 10)}
print(cache_key("train", inputs, "rnnlm_core.train"))
"""


def test_every_process_has_the_same_key_whatever_its_hashes() -> None:
    project = str(Path(caching.__file__).parents[1])
    keys = [
        subprocess.run(
            [sys.executable, "-c", ASK_KEY],
            env={**os.environ, "PYTHONPATH": project, "PYTHONHASHSEED": seed},
            check=True, capture_output=True, text=True,
        ).stdout
        for seed in ("0", "1", "2")
    ]  # fmt: skip
    assert keys[0].startswith("train-")
    assert keys == [keys[0]] * 3


def test_equal_inputs_of_two_stages_have_different_keys() -> None:
    first, second = (cache_key(name, {"cell": "gru"}, CORE) for name in ("train", "evaluate"))
    assert first is not None
    assert second is not None
    assert first.partition("-")[2] != second.partition("-")[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TrainConfig(), TrainConfig(learning_rate=2e-3)),
        (ModelConfig(), ModelConfig(num_layers=2)),
        ((80, 10, 10), (90, 5, 5)),
        (None, (90, 5, 5)),
        ("none", "letters"),
        (1, "1"),
        (Handle("text", "a"), Handle("text", "b")),
        (Handle("text", "a"), Handle("tokens", "a")),
        ({"whole": "a"}, {"train": "a"}),
        (GenerateConfig(prefixes=("ab",)), GenerateConfig(prefixes=("a", "b"))),
    ],
)
def test_inputs_that_differ_have_different_keys(one: object, other: object) -> None:
    assert cache_key("stage", {"value": one}, CORE) == cache_key("stage", {"value": one}, CORE)
    assert cache_key("stage", {"value": one}, CORE) != cache_key("stage", {"value": other}, CORE)


def test_the_same_value_under_another_argument_has_another_key() -> None:
    assert cache_key("stage", {"a": 1, "b": 2}, CORE) != cache_key("stage", {"a": 2, "b": 1}, CORE)


def test_the_place_of_a_text_is_no_part_of_the_key(tmp_path: Path) -> None:
    keys = set()
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("the same text")
        keys.add(cache_key("download", {"source": resolve(str(tmp_path / name))}, "rnnlm_core.download"))
    assert len(keys) == 1
    assert None not in keys


def test_a_changed_text_has_another_key(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    keys = set()
    for content in ("one text", "two text"):
        path.write_text(content)
        keys.add(cache_key("download", {"source": resolve(str(path))}, "rnnlm_core.download"))
    assert len(keys) == 2


def test_who_asks_is_no_part_of_the_key() -> None:
    flows = [FlowRun("run-1", "smoke", "a", (("x", "1"),), "flow-1"), FlowRun("run-2", "mine", "b", (), "flow-2")]
    assert len({cache_key("train", {"flow": flow}, CORE) for flow in flows}) == 1


def test_what_follows_training_depends_on_the_model_and_its_run_not_on_its_speed() -> None:
    slower = dataclasses.replace(TRAINED, tokens_per_second=1.0)
    other = dataclasses.replace(TRAINED, model=Handle("model", "b" * 64))
    key = cache_key("evaluate", {"training": TrackedTraining(TRAINED, "run-1")}, CORE)
    assert key == cache_key("evaluate", {"training": TrackedTraining(slower, "run-1")}, CORE)
    assert key != cache_key("evaluate", {"training": TrackedTraining(TRAINED, "run-2")}, CORE)
    assert key != cache_key("evaluate", {"training": TrackedTraining(other, "run-1")}, CORE)


def test_an_address_without_digest_has_no_key_and_one_with_digest_has() -> None:
    address = "https://example.org/text.txt"
    assert cache_key("download", {"source": resolve(address)}, "rnnlm_core.download") is None
    pinned = resolve(f"{address}#sha256={'a' * 64}")
    assert cache_key("download", {"source": pinned}, "rnnlm_core.download") is not None


def test_an_input_whose_identity_nobody_defined_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no identity for \w*Path"):
        cache_key("stage", {"place": Path("text.txt")}, CORE)
    with pytest.raises(TypeError, match="no identity for set"):
        cache_key("stage", {"nested": [{"deep": {1, 2}}]}, CORE)


def test_a_source_edit_changes_the_digest_of_what_imports_it(sources: Path) -> None:
    before = digest_now(CORE)
    edit(sources / "store.py")  # train imports corpus, checkpoint and evaluate, which import store
    after = digest_now(CORE)
    assert after != before
    edit(sources / "errors.py")  # only through others
    assert digest_now(CORE) not in (before, after)


def test_an_edit_of_the_native_kernel_changes_the_digest_of_what_computes_with_it(sources: Path) -> None:
    training, tokenizing = digest_now(CORE), digest_now("rnnlm_core.tokenize")
    kernel = sources / "recurrence.cpp"
    kernel.write_text(kernel.read_text() + "// edited\n")
    assert digest_now(CORE) != training
    assert digest_now("rnnlm_core.tokenize") == tokenizing


def test_a_source_edit_changes_the_digest_of_an_import_inside_a_function(sources: Path) -> None:
    (sources / "late.py").write_text("def f():\n    from rnnlm_core.palette import RED\n    return RED\n")
    (sources / "palette.py").write_text("RED = 1\n")
    before = digest_now("rnnlm_core.late")
    edit(sources / "palette.py")
    assert digest_now("rnnlm_core.late") != before


def test_a_submodule_imported_from_the_package_counts_as_well(sources: Path) -> None:
    (sources / "user.py").write_text("from rnnlm_core import palette\n")
    (sources / "palette.py").write_text("RED = 1\n")
    before = digest_now("rnnlm_core.user")
    edit(sources / "palette.py")
    assert digest_now("rnnlm_core.user") != before


def test_a_source_edit_leaves_the_digest_of_unrelated_modules(sources: Path) -> None:
    training, tokenizing = digest_now(CORE), digest_now("rnnlm_core.tokenize")
    edit(sources / "presets.py")
    edit(sources / "compare.py")
    assert digest_now(CORE) == training
    edit(sources / "train.py")
    assert digest_now("rnnlm_core.tokenize") == tokenizing


@pytest.mark.parametrize(
    ("harm", "edited"),
    [
        (lambda _: None, False),
        (lambda core: edit(core / "train.py"), True),
        (lambda core: edit(core / "presets.py"), False),
        (lambda core: (core / "train.py").write_text("def half("), True),
        (lambda core: (core / "train.py").write_bytes(b"\x00"), True),
        (lambda core: (core / "train.py").write_text("import rnnlm_core.gone"), True),
        (lambda core: (core / "train.py").unlink(), True),
    ],
)
def test_code_that_is_not_what_the_process_began_with_is_noticed(
    sources: Path, harm: Callable[[Path], None], edited: bool
) -> None:
    harm(sources)
    assert caching.is_edited({"cell": "gru"}, CORE) == edited


def test_a_record_comes_back_as_it_was(home: Path, text: Path, serializer: VerifiedSerializer) -> None:
    done = download.fn(resolve(str(text)))
    record = serializer.dumps(done)
    assert serializer.loads(record) == done
    assert json.loads(record)["result"] == "Text"


def test_the_record_of_the_statistics_comes_back_as_it_was(
    home: Path, text: Path, serializer: VerifiedSerializer
) -> None:
    done = statistics.fn(tokenize.fn(download.fn(resolve(str(text))), "none", 0, "word", "none", 0, None))
    assert serializer.loads(serializer.dumps(done)) == done
    shutil.rmtree(home / "artifacts" / "store" / "statistics")
    with pytest.raises(NotWhole, match="is missing"):
        serializer.loads(serializer.dumps(done))


def test_a_record_keeps_every_digit_of_a_number(
    serializer: VerifiedSerializer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "faults", lambda *_: iter(()))
    odd = dataclasses.replace(EPOCH, train_loss=0.1 + 0.2, valid_loss=None, seconds=1e-17)
    tracked = TrackedTraining(dataclasses.replace(TRAINED, history=(odd,)), "run")
    assert serializer.loads(serializer.dumps(tracked)) == tracked


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "is missing"),
        (lambda folder: (folder / "whole.txt").unlink(), "lacks whole.txt"),
        (lambda folder: (folder / "whole.txt").write_text("edited"), "has a damaged whole.txt"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "has a changed manifest"),
    ],
)
def test_a_record_whose_artifact_is_gone_or_changed_does_not_count(
    home: Path,
    text: Path,
    serializer: VerifiedSerializer,
    heard: list[News],
    harm: Callable[[Path], None],
    message: str,
) -> None:
    done = download.fn(resolve(str(text)))
    record = serializer.dumps(done)
    harm(home / "artifacts" / "store" / "text" / done.handle.sha256)
    for _ in range(3):
        with pytest.raises(NotWhole, match=message):
            serializer.loads(record)
    (news,) = heard
    assert news.warning == f"artifact {done.handle} {message}: doing it again (Text)"


def test_a_record_whose_run_is_gone_does_not_count(
    home: Path, serializer: VerifiedSerializer, heard: list[News]
) -> None:
    with tracking.parent_run("smoke", "text", {}, "flow-run-1") as flow:
        run_id = flow.parent_run_id
    record = serializer.dumps(Samples((), run_id))
    assert serializer.loads(record) == Samples((), run_id)
    client().delete_run(run_id)
    with pytest.raises(NotWhole, match=f"MLflow run {run_id} is gone"):
        serializer.loads(record)
    assert [news.warning for news in heard] == [f"MLflow run {run_id} is gone: doing it again (Samples)"]


def test_the_record_of_a_failure_never_counts(serializer: VerifiedSerializer) -> None:
    with pytest.raises(NotWhole, match="out of luck"):
        serializer.loads(serializer.dumps(ValueError("out of luck")))


@pytest.mark.parametrize("garbage", [b"", b"\x00\xff", b"[]", b"{}", b'{"result": "Text"}', b'{"result": "Text", "val'])
def test_a_garbled_record_is_not_read(serializer: VerifiedSerializer, garbage: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        serializer.loads(garbage)


def test_a_record_of_an_unknown_class_builds_nothing(serializer: VerifiedSerializer) -> None:
    with pytest.raises(KeyError, match="Popen"):
        serializer.loads(b'{"result": "Popen", "value": {"args": ["true"]}}')


def test_a_record_with_fields_of_the_wrong_type_is_not_read(serializer: VerifiedSerializer) -> None:
    record = {"result": "Text", "value": {"handle": 7, "num_bytes": "many", "sha256": {}}}
    with pytest.raises(ValueError, match="2 validation errors for Text"):
        serializer.loads(json.dumps(record).encode())


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _leave_trace, (str(self.place),)


def _leave_trace(place: str) -> None:
    Path(place).write_text("run")


def test_a_pickle_is_not_unpickled(serializer: VerifiedSerializer, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(ValueError, match=r"codec can't decode|Expecting value"):
        serializer.loads(pickle.dumps(Planted(trace)))
    assert not trace.exists()


def test_the_sources_of_a_stage_are_read_when_it_is_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are asked for in many threads, and parsing in many threads fails at times."""
    monkeypatch.setattr(sources_module, "_source", lambda _: pytest.fail("the sources are read again"))
    for stage in (download, tokenize, statistics, vocabulary, corpus, train, evaluate, generate, compare):
        policy = stage.cache_policy
        assert isinstance(policy, caching.ContentPolicy)
        assert cache_key(stage.name, {}, policy.core_module) is not None


def test_a_stage_is_named_as_its_function_and_keeps_records() -> None:
    assert download.name == "download"
    assert download.persist_result is True
    assert isinstance(download.result_serializer, VerifiedSerializer)
    assert caching.RESULTS["Text"] is Text


def test_a_source_says_its_digests_only_when_all_are_known() -> None:
    known = Source("x", "local", "/x", (("train", "a"), ("valid", "b")))
    assert known.cache_identity() == (("train", "a"), ("valid", "b"))
    assert dataclasses.replace(known, files=(("train", "a"), ("valid", ""))).cache_identity() is None
