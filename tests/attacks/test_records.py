"""Records, logged models, secrets: what Prefect and MLflow keep for us is not believed, and holds nothing private."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rnnlm_core.config import ModelConfig, flatten
from rnnlm_core.download import Text, without_password
from rnnlm_core.errors import IntegrityError, RnnlmError
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.presets import run_config
from rnnlm_core.saved_model import load_model, save_model
from rnnlm_core.store import MANIFEST, Handle
from rnnlm_core.vocabulary import Vocabulary
from tasks import caching, progress, tracked_models, tracked_runs, tracking, workspace
from tasks.caching import READER, NotWhole, VerifiedSerializer
from tasks.download import download
from tasks.progress import News

SECRET = "hunter2-canary"  # noqa: S105 - of nothing


@pytest.fixture
def serializer() -> VerifiedSerializer:
    return VerifiedSerializer()


def _record(result: Any, kind: str = READER) -> bytes:
    return json.dumps({"metadata": {"serializer": {"type": kind}}, "result": result}).encode()


# ---------------------------------------------------------------- records


def test_a_bomb_in_place_of_a_record_does_not_go_off(
    serializer: VerifiedSerializer, bomb: bytes, trace: Path, home: Path
) -> None:
    record = home / "artifacts" / "results" / "download-x"
    record.write_bytes(bomb)
    with pytest.raises((ValueError, KeyError, TypeError)):
        serializer.loads(bomb)
    assert caching.record_fault(record) == "damaged"
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["pickle", "compressed/pickle", "json", "compressed/json", "cloudpickle", "", "../x"])
def test_a_bomb_in_a_record_that_names_another_reader_is_removed(
    kind: str, bomb: bytes, trace: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = home / "artifacts" / "results" / "download-x"
    record.write_bytes(_record(base64.encodebytes(bomb).decode(), kind))
    assert caching.record_fault(record) == "not a record of ours"
    heard: list[News] = []
    with progress.listening(heard.append), _results_in(record.parent):
        caching._drop_foreign_record("download-x")
    assert not record.exists()
    assert [news.warning.split(":")[0] for news in heard] == ["not a record of ours"]
    assert not trace.exists()


def _results_in(folder: Path) -> Any:
    from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

    return temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: folder})


HOSTILE_RECORDS: dict[str, bytes] = {
    "deep": b"[" * 200_000,
    "a huge number": b'{"result": ' + b"9" * 10_000 + b"}",
    "not a record": b'"x"',
    "an unknown class": b'{"result": "Popen", "value": {"args": ["touch", "x"]}}',
    "a class of Python's": b'{"result": "__class__", "value": {}}',
    "a class by its module": b'{"result": "subprocess.Popen", "value": {"args": "x"}}',
    "no class": b'{"result": null, "value": {}}',
    "a list of classes": b'{"result": ["Text"], "value": {}}',
    "fields of another class": b'{"result": "Text", "value": {"__init__": 1, "__class__": "x"}}',
    "sizes that are texts": b'{"result": "Text", "value": {"handle": {"kind": "a", "sha256": "b"}, "num_bytes": "x"}}',
    "too few fields": b'{"result": "Text", "value": {}}',
    "a failure": b'{"failure": "x"}',
}


@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_a_hostile_record_is_no_result(name: str, serializer: VerifiedSerializer, home: Path) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, RecursionError, NotWhole)):
        serializer.loads(HOSTILE_RECORDS[name])


@pytest.mark.parametrize(
    ("kind", "sha256"),
    [
        ("text", "../../../elsewhere"),
        ("../../elsewhere", ""),
        ("..", "../../elsewhere"),
        ("text", "/etc"),
        ("/", "etc"),
        ("text", "x" * 300),
        ("text\n\x1b[31m", "a" * 64),
    ],
)
def test_a_record_that_names_a_place_elsewhere_does_not_count(
    kind: str, sha256: str, serializer: VerifiedSerializer, home: Path
) -> None:
    assert caching.RESULTS["Text"] is Text, download.name
    elsewhere = home.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / MANIFEST).write_text('{"files": {}}')
    heard: list[News] = []
    record = serializer.dumps(Text(Handle(kind, sha256), 1, {}))
    with progress.listening(heard.append), pytest.raises(NotWhole, match="is no name of an artifact"):
        serializer.loads(record)
    assert all(news.warning.isprintable() for news in heard)
    assert [path.name for path in elsewhere.iterdir()] == [MANIFEST]


# ---------------------------------------------------------------- MLflow's copies


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A folder as MLflow keeps a model: our files within, its own beside."""
    folder = tmp_path / "logged"
    files = folder / "artifacts" / "model"
    files.mkdir(parents=True)
    vocabulary = Vocabulary(dict.fromkeys("abcdef", 9))
    model = LanguageModel("gru", len(vocabulary), ModelConfig(hidden_size=5))
    save_model(files, model, vocabulary, tokenizer("char"), "none", {})
    return folder


def test_what_lies_beside_a_logged_model_is_not_read(home: Path, logged: Path, bomb: bytes, trace: Path) -> None:
    (logged / "code" / "rnnlm_core").mkdir(parents=True)
    for name in ("MLmodel", "python_model.pkl", "logged_model.py", "code/rnnlm_core/__init__.py", "code/json.py"):
        (logged / name).write_bytes(bomb)
    saved = load_model(tracked_models.model_files(logged.as_uri()))
    assert len(saved.vocabulary) == 7
    assert not trace.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "vocabulary.json"])
def test_a_bomb_in_a_logged_model_does_not_go_off(
    name: str, home: Path, logged: Path, bomb: bytes, trace: Path
) -> None:
    (logged / "artifacts" / "model" / name).write_bytes(bomb)
    with pytest.raises(IntegrityError):
        load_model(tracked_models.model_files(logged.as_uri()))
    assert not trace.exists()


def test_mlflow_unpickles_no_model(home: Path, tmp_path: Path, bomb: bytes, trace: Path) -> None:
    """Not even when somebody asks it to load one in our environment."""
    import mlflow

    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "python_model.pkl").write_bytes(bomb)
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n"
        f"    cloudpickle_version: 3.1.1\n    python_version: 3.11.7\nmlflow_version: {mlflow.__version__}\n"
    )
    with pytest.raises(mlflow.MlflowException, match=r"(?i)pickle"):
        mlflow.pyfunc.load_model(folder.as_uri())
    assert not trace.exists()


# ---------------------------------------------------------------- secrets


def test_nothing_secret_is_tracked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RNNLM_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "PREFECT_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    addresses = [
        f"https://me:{SECRET}@example.org/a.txt",
        f"https://{SECRET}@example.org/a",
        f"https://x.org/?key={SECRET}",
    ]
    for address in addresses:
        config = run_config(corpus=address)
        parameters = flatten(config) | {"corpus.name": without_password(config.corpus.name)}
        with pytest.raises(IntegrityError), tracking.parent_run("quickstart", "a", parameters, "flow") as flow:  # noqa: PT012
            with tracking.child_run(flow, "gru", f"key-{address[-9:-7]}", {"rnnlm.note": "x"}) as run_id:
                tracking.log_text(run_id, "a sample", "samples.txt")
            raise IntegrityError("download refused", without_password(address), "check the address")
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert home / "mlflow.db" in kept
    assert [path.name for path in kept if SECRET.encode() in path.read_bytes()] == []
    assert any(b"example.org" in path.read_bytes() for path in kept)


def test_the_environment_is_in_no_message(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_TOKEN", SECRET)
    messages = []
    for ask in (
        lambda: tracked_runs.find_model_run("nothing"),
        lambda: run_config(changes={"train.epochs": "$RNNLM_TOKEN"}),
        lambda: workspace.store().open(Handle("text", "${RNNLM_TOKEN}")),
        lambda: load_model(home),
    ):
        with pytest.raises(RnnlmError) as caught:
            ask()
        messages.append(str(caught.value))
    assert not any(SECRET in message for message in messages)
    assert os.environ["RNNLM_TOKEN"] == SECRET
