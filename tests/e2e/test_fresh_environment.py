"""An environment with nothing but what the logged model asks for loads it by its address and writes the same text."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from homes import PROJECT, without_settings
from mlflow.artifacts import download_artifacts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4000)]  # the installation alone takes minutes
PREFIX, LENGTH, TEMPERATURE, SEED = "The ", 40, 0.7, 3
LOAD = """
import importlib.metadata, json, sys
import mlflow

addresses, prefix, params = json.loads(sys.argv[1])
model = mlflow.pyfunc.load_model(addresses[0])
print(json.dumps({
    "written": [mlflow.pyfunc.load_model(address).predict([prefix], params=params) for address in addresses],
    "score": model.predict(["The time"], params={"mode": "score"}),
    "installed": sorted(found.name.lower() for found in importlib.metadata.distributions()),
    "code": sys.modules["rnnlm_core"].__file__,
    "path": sys.path,
}))
"""


@pytest.fixture(scope="module")
def python(logged: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that was made with the model's requirements.txt."""
    place = tmp_path_factory.mktemp("fresh")
    with logged.tracked_here():
        asked = Path(download_artifacts(logged.uri)) / "requirements.txt"
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "--requirement"]
    done = subprocess.run([*pip, asked], capture_output=True, text=True, timeout=3500, check=False, cwd=place)
    if "NewConnectionError" in done.stdout + done.stderr:
        pytest.skip("no package index answers here")
    assert done.returncode == 0, done.stderr
    return python


def test_the_requirements_are_enough_to_load_the_model_by_its_address_and_write_the_same_text(
    logged: Any, python: Path, tmp_path: Path
) -> None:
    params = {"length": LENGTH, "temperature": TEMPERATURE, "seed": SEED}
    asked = json.dumps([[logged.uri, logged.register("fresh")], PREFIX, params])
    own = {"MLFLOW_TRACKING_URI": logged.tracking_uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    clean = {name: value for name, value in without_settings().items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", LOAD, asked],
        env=clean | own, cwd=tmp_path, capture_output=True, text=True, timeout=1000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    drawn = ["--length", LENGTH, "--temperature", TEMPERATURE, "--seed", SEED]
    written = logged.rnnlm("generate", "--model", "gru", "--prefix", PREFIX, *drawn)
    assert [text + "\n" for (text,) in told["written"]] == [written, written]
    assert told["score"][0]["perplexity"] > 1
    assert not {"rnnlm", "prefect", "mlflow", "pyarrow"} & set(told["installed"])
    assert not any(str(PROJECT) in place for place in told["path"])
    assert str(logged.home) in told["code"]
