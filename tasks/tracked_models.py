"""The models that MLflow keeps: logged so that one call of MLflow loads them anywhere, and brought back."""

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException

from rnnlm_core.config import GenerateConfig, flatten
from rnnlm_core.errors import DataError
from rnnlm_core.extensions import Kind, extensions
from rnnlm_core.levels import BPE_FILE
from tasks.tracking_database import client, experiment_id, is_missing, own_errors, unreachable

CARD = "model_card.md"
PARAMETERS = ("length", "temperature", "top_k", "top_p", "beam", "length_penalty", "repetition_penalty", "stop", "seed",
              "unknown")  # fmt: skip
UNKNOWN_DEFAULT = "error"
"""As `rnnlm generate` has it: what a model cannot read is not passed over."""
REQUIREMENTS = ("mlflow-skinny", "torch", "numpy", "pandas", "safetensors", "sqlalchemy", "alembic")
_registering = threading.Lock()


def log_model(
    run_id: str, folder: Path, cell: str, example: str, settings: Mapping[str, str], card: Callable[[str], str]
) -> str:
    """Log a saved model so that MLflow loads it back, generates and scores with it; return its address.

    A model that the run has already is not logged again.

    The model is stored as source and safetensors: nothing is pickled, and no package of ours needs to be installed
    where it is loaded.

    Args:
        run_id: the run that trained it.
        folder: what `save_model` wrote.
        cell: what was trained.
        example: a text the model can continue; MLflow tries it, so a model that does not load is not logged.
        settings: what it was trained with, to compare models by.
        card: returns its card for the address it has; kept as `model_card.md` and as the model's description.
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
    model = client().create_logged_model(
        experiment_id(), name="model", source_run_id=run_id, tags=tags, params=dict(settings)
    )
    _attach_card(model.model_id, card(model.model_uri))
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
            # The text may open with what the vocabulary lacks.
            input_example=([example], {"length": 20, "temperature": 0.0, "seed": 0, "unknown": "map"}),
            pip_requirements=_requirements(folder, _packages(cell, settings)),
        )
    return str(logged.model_uri)


def _attach_card(model_id: str, card: str) -> None:
    """Put the card among the model's files and show it on the model's page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CARD
        path.write_text(card, encoding="utf-8")
        client().log_model_artifact(model_id, str(path))
    client().set_logged_model_tags(model_id, {"mlflow.note.content": card})


def _signature() -> Any:
    """Return what the model takes and gives; the parameters are those of `generate.*` with their defaults."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    defaults = flatten(GenerateConfig())
    kinds = {str: "string", int: "long", float: "double"}
    parameters = [ParamSpec("mode", "string", "generate")]
    for key in PARAMETERS:
        default = UNKNOWN_DEFAULT if key == "unknown" else defaults[key]
        if isinstance(default, tuple):
            parameters.append(ParamSpec(key, "string", list(default), shape=(-1,)))
        else:
            parameters.append(ParamSpec(key, kinds[type(default)], default))
    # A text for each text, or a record with its score.
    return ModelSignature(
        inputs=Schema([ColSpec("string")]), outputs=Schema([ColSpec(AnyType())]), params=ParamSchema(parameters)
    )


def _packages(cell: str, settings: Mapping[str, str]) -> list[str]:
    """Return the packages that bring what a model names."""
    level, rule = (settings.get(key, "") for key in ("tokenizer.level", "corpus.normalizer"))
    named: dict[Kind, str] = {"cell": cell, "tokenizer": level, "normalizer": rule}
    brought = (extensions(kind).get(name) for kind, name in named.items())
    return sorted({one.package for one in brought if one and one.package})


def _requirements(folder: Path, packages: Sequence[str]) -> list[str]:
    """Return the packages with which MLflow loads the model from a tracking server or a database file, and runs it.

    `mlflow-skinny` is MLflow without its user interface and what that needs; `sqlalchemy` and `alembic` are for the
    database file.
    """
    needed = REQUIREMENTS + (("tokenizers",) if (folder / BPE_FILE).exists() else ())
    return [f"{name}=={version(name).split('+')[0]}" for name in needed] + list(packages)


def find_model(uri: str) -> LoggedModel | None:
    """Return the logged model of an address, None if there is none (any more)."""
    try:
        return cast(LoggedModel, client().get_logged_model(uri.removeprefix("models:/"))) if uri else None
    except MlflowException as error:
        if is_missing(error):
            return None
        raise unreachable(error) from error


def model_files(uri: str) -> Path:
    """Bring the files of a logged or registered model here and return their folder."""
    client()
    try:
        with own_errors():
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except MlflowException as error:
        raise DataError(
            "no such model", uri, "`rnnlm models` lists what is registered, `rnnlm compare` the runs"
        ) from error
    found = [path for path in folder.glob("artifacts/*") if path.is_dir()]  # called as the folder that was logged
    if len(found) != 1:
        raise DataError("not a model of rnnlm", uri, "`rnnlm compare` lists the runs that have one")
    return found[0]


def predict(uri: str, texts: list[str], **parameters: Any) -> list[str]:
    """Load a logged model the way anyone would, with one MLflow call, and let it continue texts."""
    client()
    with own_errors():
        return list(mlflow.pyfunc.load_model(uri).predict(texts, params=parameters))
