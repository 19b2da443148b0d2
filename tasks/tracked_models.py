"""The models that MLflow keeps: logged so that one call of MLflow loads them anywhere, and brought back."""

import functools
import threading
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException

from rnnlm_core.errors import DataError
from tasks.tracking_database import client, experiment_id, own_errors

_registering = threading.Lock()


def log_model(run_id: str, folder: Path, cell: str, example: str) -> str:
    """Log a saved model so that MLflow loads it back and generates with it; return its address.

    A model that the run has already is not logged again.

    `example` is a text the model can continue; MLflow tries it, so a model that does not load is not logged.

    The model is stored as source and safetensors: nothing is pickled, and no package of ours needs to be installed
    where it is loaded.
    """
    from mlflow.models import Model

    import rnnlm_core

    client()
    code = Path(__file__).with_name("logged_model.py")
    package = Path(rnnlm_core.__file__).parent
    tags = {"cell": cell, "sha256": folder.name}
    for found in client().search_logged_models([experiment_id()], f"source_run_id = '{run_id}'"):
        if found.status == LoggedModelStatus.PENDING:  # whoever was logging it has died
            client().delete_logged_model(found.model_id)
        elif found.tags.get("sha256") == folder.name:
            return str(found.model_uri)
    # Created here, in the run's experiment: MLflow itself would put it into its default one, under the current folder.
    model = client().create_logged_model(experiment_id(), name="model", source_run_id=run_id, tags=tags)
    with _registering, own_errors():  # MLflow runs the model's source through a global variable
        logged = Model.log(
            artifact_path=None,
            model_id=model.model_id,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(code),
            code_paths=[str(package)],
            artifacts={"model": str(folder)},
            signature=_signature(),
            input_example=([example], {"length": 20, "temperature": 0.0, "seed": 0}),
            pip_requirements=_requirements(),
        )
    return str(logged.model_uri)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    parameters = [
        ParamSpec("length", "long", 200),
        ParamSpec("temperature", "double", 0.0),
        ParamSpec("top_k", "long", 0),
        ParamSpec("top_p", "double", 1.0),
        ParamSpec("repetition_penalty", "double", 1.0),
        ParamSpec("seed", "long", 0),
    ]
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema(parameters))


@functools.cache
def _requirements() -> list[str]:
    from importlib.metadata import version

    names = ("mlflow", "torch", "numpy", "safetensors", "pyarrow", "tokenizers")
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


def model_files(uri: str) -> Path:
    """Bring the files of a logged or registered model here and return their folder."""
    client()
    try:
        with own_errors():
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except MlflowException as error:
        raise DataError("no such model", uri, "`rnnlm compare` lists the runs there are") from error
    found = [path for path in folder.glob("artifacts/*") if path.is_dir()]  # called as the folder that was logged
    if len(found) != 1:
        raise DataError("not a model of rnnlm", uri, "`rnnlm compare` lists the runs that have one")
    return found[0]


def predict(uri: str, texts: list[str], **parameters: Any) -> list[str]:
    """Load a logged model the way anyone would, with one MLflow call, and let it continue texts."""
    client()
    with own_errors():
        return list(mlflow.pyfunc.load_model(uri).predict(texts, params=parameters))
