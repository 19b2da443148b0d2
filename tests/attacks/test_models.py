"""Models and checkpoints from anyone: nothing executes, nothing is taken at its word."""

import contextlib
import json
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save

from rnnlm_core import saved_model
from rnnlm_core.checkpoint import Checkpoints, Snapshot
from rnnlm_core.config import ModelConfig
from rnnlm_core.errors import IntegrityError
from rnnlm_core.levels import BPE_FILE, tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.saved_model import ABOUT, WEIGHTS, load_model, save_model
from rnnlm_core.store import MANIFEST, Handle, Store
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import Vocabulary

from .conftest import check_model_refused

SOURCES = [
    path for folder in ("flows", "tasks", "rnnlm_core") for path in Path(__file__).parents[2].glob(f"{folder}/*.py")
]
VOCABULARY = Vocabulary(dict.fromkeys("abcdef", 9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is whole, as somebody hands it over: without manifest."""
    place = tmp_path / "model"
    place.mkdir()
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=5, num_layers=2, embedding_size=3)
    save_model(place, LanguageModel("lstm", len(VOCABULARY), config), VOCABULARY, tokenizer("char"), "letters", {})
    return place


def _told(folder: Path) -> list[str]:
    """Return what loading a model says."""
    try:
        load_model(folder)
    except IntegrityError as error:
        return error.lines
    return ["loaded"]


# ---------------------------------------------------------------- code


def test_the_bombs_are_sharp(bomb: bytes, trace: Path, request: pytest.FixtureRequest) -> None:
    """Whoever reads them carelessly is hit."""
    kind = request.node.callspec.params["bomb"]
    if kind.startswith("pickle"):
        pickle.loads(bomb)  # noqa: S301 - our own
    elif kind.startswith("torch"):
        (trace.parent / "file").write_bytes(bomb)
        torch.load(trace.parent / "file", weights_only=False)
    elif kind == "safetensors+pickle":
        pickle.loads(bomb[10:])  # noqa: S301 - our own
    elif kind == "yaml":
        import yaml

        yaml.unsafe_load(bomb)
    else:
        (trace.parent / "file").write_bytes(bomb)
        os.spawnv(os.P_WAIT, sys.executable, [sys.executable, str(trace.parent / "file")])  # noqa: S606
    assert trace.exists()


@pytest.mark.parametrize("name", [WEIGHTS, ABOUT, VOCABULARY_FILE])
def test_a_bomb_in_place_of_a_file_does_not_go_off(name: str, folder: Path, bomb: bytes, trace: Path) -> None:
    (folder / name).write_bytes(bomb)
    with pytest.raises(IntegrityError) as caught:
        load_model(folder)
    assert len(caught.value.lines) == 1
    assert not trace.exists()


def test_a_bomb_in_place_of_the_byte_pairs_does_not_go_off(folder: Path, bomb: bytes, trace: Path) -> None:
    _describe(folder, tokenizer={"level": "bpe", "eos": "none"})
    (folder / BPE_FILE).write_bytes(bomb)
    with pytest.raises(IntegrityError, match="not a BPE tokenizer"):
        load_model(folder)
    assert not trace.exists()


def test_a_bomb_beside_the_files_does_not_go_off(
    folder: Path, bomb: bytes, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # where Python itself might look
    for name in ("__init__.py", "sitecustomize.py", "json.py", "safetensors.py", "model.pkl", "python_model.pkl"):
        (folder / name).write_bytes(bomb)
    (folder / "pytorch_model.bin").write_bytes(bomb)
    assert load_model(folder).vocabulary.tokens == VOCABULARY.tokens
    assert not trace.exists()


def test_a_bomb_whose_digest_is_right_does_not_go_off_in_the_store(store: Store, bomb: bytes, trace: Path) -> None:
    """Somebody who may write the store may also write manifests: the format has to hold by itself."""
    with store.draft("model") as draft:
        for name in (WEIGHTS, ABOUT, VOCABULARY_FILE):
            (draft.folder / name).write_bytes(bomb)
        handle = draft.publish()
    with pytest.raises(IntegrityError, match="not a complete model"):
        load_model(store.open(handle))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_bomb_in_a_checkpoint_does_not_go_off(name: str, store: Store, bomb: bytes, trace: Path) -> None:
    checkpoints = Checkpoints(store, "key")
    checkpoints.save(Snapshot({"a": torch.zeros(2)}, {}))
    (digest,) = checkpoints.digests()
    (store.root / "checkpoint" / digest / name).write_bytes(bomb)
    snapshot, faults = checkpoints.load()
    assert snapshot is None
    assert faults == [faults[0]]
    assert f"has a damaged {name}" in faults[0]
    assert not trace.exists()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_bomb_in_a_checkpoint_whose_digest_is_right_does_not_go_off(
    name: str, store: Store, bomb: bytes, trace: Path
) -> None:
    files = {"state.safetensors": save({"a": torch.zeros(2)}), "state.json": b'{"key": "key", "facts": {}}', name: bomb}
    with store.draft("checkpoint") as draft:
        for path, content in files.items():
            (draft.folder / path).write_bytes(content)
        handle = draft.publish()
    checkpoints = Checkpoints(store, "key")
    checkpoints.pointer.write_text(json.dumps([handle.sha256]))
    with contextlib.suppress(SafetensorError, ValueError):
        assert checkpoints.load()[0] is None
    assert not trace.exists()


def test_a_list_of_checkpoints_leads_nowhere_else(store: Store, tmp_path: Path, bomb: bytes, trace: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "state.safetensors").write_bytes(bomb)
    (elsewhere / "state.json").write_text('{"key": "key", "facts": {}}')
    (elsewhere / MANIFEST).write_text('{"files": {}}')
    checkpoints = Checkpoints(store, "key")
    checkpoints.pointer.parent.mkdir(parents=True)
    checkpoints.pointer.write_text(json.dumps(["../../elsewhere", str(elsewhere), "", ".."]))
    snapshot, faults = checkpoints.load()
    assert snapshot is None
    assert [fault.startswith("damaged checkpoint list") for fault in faults] == [True]
    assert not trace.exists()


# ---------------------------------------------------------------- weights


def _weights(header: Any, tail: bytes = b"", length: int | None = None) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data + tail


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HOSTILE_WEIGHTS: dict[str, bytes] = {
    "nothing": b"",
    "half a length": b"\0\0\0",
    "length 0": struct.pack("<Q", 0),
    "length 2^63": _weights(b"{}", length=2**63),
    "length 2^64 - 1": _weights(b"{}", length=2**64 - 1),
    "length 2^40": _weights(b"{}", length=2**40),
    "length just above the limit": _weights(b"{}", length=100_000_001),
    "length beyond the end": _weights(b"{}", length=100),
    "no JSON": _weights(b"\xff" * 64),
    "a list": _weights([F32]),
    "a list, 50,000 deep": _weights(b"[" * 50_000),
    "objects, 50,000 deep": _weights(b'{"a":' * 50_000),
    "overlapping tensors": _weights({"a": F32, "b": F32}, bytes(8)),
    "partly overlapping tensors": _weights({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
    "a hole": _weights({"a": F32, "b": {**F32, "data_offsets": [16, 24]}}, bytes(24)),
    "beyond the end": _weights({"a": {**F32, "shape": [200], "data_offsets": [0, 800]}}, bytes(8)),
    "before the beginning": _weights({"a": {**F32, "data_offsets": [-8, 0]}}, bytes(8)),
    "backwards": _weights({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)),
    "offset 2^64 - 1": _weights({"a": {**F32, "data_offsets": [0, 2**64 - 1]}}, bytes(8)),
    "shape that overflows": _weights({"a": {**F32, "shape": [2**32, 2**32], "data_offsets": [0, 0]}}),
    "shape of a terabyte": _weights({"a": {**F32, "shape": [2**38]}}, bytes(8)),
    "negative shape": _weights({"a": {**F32, "shape": [-2]}}, bytes(8)),
    "shape and offsets disagree": _weights({"a": {**F32, "shape": [3]}}, bytes(8)),
    "unknown type": _weights({"a": {**F32, "dtype": "PICKLE"}}, bytes(8)),
    "no type": _weights({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "metadata that is no text": _weights({"__metadata__": {"a": [1]}, "a": F32}, bytes(8)),
    "bytes after the end": _weights({"a": F32}, bytes(80)),
    "a name twice": _weights(b'{"a": %s, "a": %s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
    "only foreign tensors": save({"../../etc/passwd": torch.zeros(2), "\n\x1b[31m": torch.zeros(2)}),
}


@pytest.mark.parametrize("drop", ["save", "clear"])
def test_a_list_of_checkpoints_removes_nothing_else(drop: str, store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "deep").mkdir(parents=True)
    checkpoints = Checkpoints(store, "key")
    snapshot = Snapshot({"x": torch.zeros(2)}, {})
    checkpoints.save(snapshot)
    names = [str(victim), "../../victim", "/", "..", ""]
    checkpoints.pointer.write_text(json.dumps([*json.loads(checkpoints.pointer.read_text()) * 2, *names]))
    checkpoints.save(snapshot) if drop == "save" else checkpoints.clear()
    assert (victim / "deep").is_dir()
    for name in names:
        with pytest.raises(IntegrityError, match="not the name of an artifact"):
            store.remove(Handle("checkpoint", name))
    assert (victim / "deep").is_dir()


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_hostile_weights_are_refused(name: str, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(HOSTILE_WEIGHTS[name])
    check_model_refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.popitem(), "in the description alone"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra is in the weights alone"),
        (lambda w: w.update({"output.bias": torch.zeros(8)}), "mismatch"),
        (lambda w: w.update({"output.bias": torch.zeros(7, dtype=torch.int64)}), "output.bias holds torch.int64"),
        (lambda w: w.update({"output.bias": torch.zeros(7, dtype=torch.bool)}), "output.bias holds torch.bool"),
        (lambda w: w.update({"output.bias": torch.zeros(7, dtype=torch.complex64)}), "holds torch.complex64"),
        (lambda w: w.update({"output.weight": torch.zeros(0, 5)}), "mismatch"),
    ],
    ids=["one missing", "one more", "other shape", "whole numbers", "truths", "complex", "empty"],
)
def test_other_weights_than_described_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, folder: Path
) -> None:
    weights = load_model(folder).model.weights()
    change(weights)
    (folder / WEIGHTS).write_bytes(save(weights))
    check_model_refused(folder, message)


def test_any_weights_are_read_or_refused_with_one_line(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()

    @settings(deadline=None, max_examples=150, database=None, derandomize=True)
    @given(st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
    def check(patches: list[tuple[int, bytes]]) -> None:
        data = bytearray(whole)
        for place, patch in patches:
            data[place : place + len(patch)] = patch
        (folder / WEIGHTS).write_bytes(data)
        assert len(_told(folder)) == 1

    check()


# ---------------------------------------------------------------- description


def _describe(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / ABOUT).read_text())
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) and key == "model" else value
    (folder / ABOUT).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 40_000},
        {"hidden_size": 10**12},
        {"hidden_size": 10**5, "num_layers": -5},
        {"hidden_size": 10**5, "embedding_size": -(10**9)},
        {"embedding_size": 10**9},
        {"num_layers": 10**9},
        {"hidden_size": 2**63},
        {"hidden_size": 1e300},
        {"hidden_size": "5"},
        {"hidden_size": [5]},
        {"hidden_size": None},
        {"num_layers": 2.0},
        {"num_layers": True},
        {"dropout": 7},
        {"dropout": "x"},
        {"embedding_size": 0, "tie_weights": True},
        {"__class__": "x"},
    ],
    ids=str,
)
def test_a_description_of_terabytes_or_of_nothing_takes_no_memory(
    sizes: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _describe(folder, model=sizes)
    made: list[int] = []
    real = torch.nn.Parameter.__new__

    def note(cls: Any, data: torch.Tensor, *arguments: Any) -> Any:
        made.append(data.numel())
        return real(cls, data, *arguments)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", note)
    check_model_refused(folder)
    assert max(made, default=0) < 10_000


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": "../../etc/passwd"},
        {"normalizer": {"a": 1}},
        {"normalizer": None},
        {"about": [1]},
        {"about": None},
        {"tokenizer": "bpe"},
        {"tokenizer": {}},
        {"tokenizer": {"level": [], "eos": "none"}},
        {"tokenizer": {"level": "bpe", "eos": "none"}},
        {"tokenizer": None},
        {"cell": "__class__"},
        {"cell": []},
        {"cell": None},
        {"model": None},
        {"model": []},
        {"format": "2"},
        {"format": None},
        {"format": []},
    ],
    ids=str,
)
def test_a_description_of_other_things_is_refused(changes: dict[str, Any], folder: Path) -> None:
    _describe(folder, **changes)
    check_model_refused(folder)


def test_a_tokenizer_level_that_is_a_path_names_none(folder: Path) -> None:
    _describe(folder, tokenizer={"level": "../../etc/passwd", "eos": "none"})
    check_model_refused(folder, "'../../etc/passwd' names no tokenizer")


@pytest.mark.parametrize("key", ["format", "cell", "model", "tokenizer", "normalizer", "about"])
def test_a_description_that_lacks_a_key_is_refused(key: str, folder: Path) -> None:
    content = json.loads((folder / ABOUT).read_text())
    del content[key]
    (folder / ABOUT).write_text(json.dumps(content))
    check_model_refused(folder, f"'{key}'")


HOSTILE_JSON: dict[str, bytes] = {
    "200,000 deep": b"[" * 200_000,
    "objects, 200,000 deep": b'{"a":' * 200_000,
    "a number of 10,000 digits": b'{"format": ' + b"9" * 10_000 + b"}",
    "a lone surrogate": b'{"tokens": ["<unk>", "\\ud800"], "counts": "x"}',
    "no UTF-8": b'{"tokens": "\xff"}',
    "two documents": b"{}{}",
    "not a number": b'{"tokens": NaN}',
}


@pytest.mark.parametrize("name", [ABOUT, VOCABULARY_FILE])
@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_hostile_json_is_refused(name: str, kind: str, folder: Path) -> None:
    (folder / name).write_bytes(HOSTILE_JSON[kind])
    with pytest.raises(IntegrityError) as caught:
        load_model(folder)
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_hostile_byte_pairs_are_refused(kind: str, folder: Path) -> None:
    _describe(folder, tokenizer={"level": "bpe", "eos": "none"})
    (folder / BPE_FILE).write_bytes(HOSTILE_JSON[kind])
    with pytest.raises(IntegrityError):
        load_model(folder)


@pytest.mark.parametrize("name", [ABOUT, VOCABULARY_FILE, BPE_FILE])
def test_json_of_absurd_size_is_not_read(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / name).open("ab") as file:
        file.truncate(saved_model.MOST_JSON + 1)  # takes no room on the disk
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("read"))
    check_model_refused(folder, f"{name} is larger than 268,435,456 bytes")


@pytest.mark.parametrize("name", [WEIGHTS, ABOUT, VOCABULARY_FILE])
def test_a_pipe_or_a_device_is_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    check_model_refused(folder, f"{name} is no file")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    check_model_refused(folder, f"{name} is no file")


@pytest.mark.parametrize(
    "manifest",
    [
        {"../../../etc/passwd": {"bytes": 1, "sha256": ""}},
        {"/etc/passwd": {"bytes": 1, "sha256": ""}},
        {"\n\x1b[31m": {"bytes": 1, "sha256": ""}},
        {"a": {"bytes": 10**400, "sha256": ""}},
        {"a": {"bytes": -1, "sha256": None}},
        {"a" * 5000: {"bytes": 1, "sha256": ""}},
    ],
    ids=lambda files: next(iter(files))[:20],
)
def test_a_hostile_manifest_is_refused_with_one_line(manifest: dict[str, Any], folder: Path) -> None:
    names = (WEIGHTS, ABOUT, VOCABULARY_FILE)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": ""} for name in names}
    (folder / MANIFEST).write_text(json.dumps({"files": manifest | files}))
    with pytest.raises(IntegrityError, match=r"the model (lacks|has)") as caught:
        load_model(folder)
    (line,) = caught.value.lines
    assert line.isprintable()


# ---------------------------------------------------------------- our own sources


@pytest.mark.parametrize(
    "pattern",
    [
        "weights_only=False",
        "pickle.load",
        "import pickle",
        "yaml.load(",
        "torch.load(",
        "cloudpickle",
        "joblib",
        "dill",
    ],
)
def test_our_own_code_reads_nothing_that_can_execute(pattern: str) -> None:
    assert len(SOURCES) > 40
    assert [path.name for path in SOURCES if pattern in path.read_text()] == []


def test_our_own_code_evaluates_no_text() -> None:
    import ast

    calls = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("eval", "exec", "compile", "__import__")
    ]
    shells = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert calls + shells == []
