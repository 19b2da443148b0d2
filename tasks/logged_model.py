"""The model as MLflow keeps it: this source file, our package and safetensors. Nothing is pickled.

model = mlflow.pyfunc.load_model(uri)
model.predict(["time traveller"], params={"length": 50, "temperature": 0.8, "seed": 1})  # one text per text
model.predict(["time traveller"], params={"mode": "score"})  # one record per text: perplexity, bits_per_char, …
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from rnnlm_core.config import RunConfig, flatten
from rnnlm_core.config_values import override
from rnnlm_core.errors import RnnlmError, UsageError, unknown_name
from rnnlm_core.generate import continue_texts
from rnnlm_core.saved_model import SavedModel, load_model
from rnnlm_core.score import score_texts

MODES = ("generate", "score")
SECTION = "generate."
warn = logging.getLogger("rnnlm").warning


class TextGenerator(PythonModel):
    """Continues each text it is given, or scores it."""

    # MLflow would ask for type hints on `predict`, and with them ignore the parameters of the signature.
    _skip_type_hint_validation = True

    def load_context(self, context):
        """Read the model's files; on any device, without running stored code."""
        self.saved = load_model(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # noqa: ARG002 - MLflow's signature
        """Return one answer per text, in order; parameters are those of the signature.

        Mode `generate`: the text with its continuation, a string. Mode `score`: a record with `text` (as the model
        read it), `num_tokens`, `loss`, `perplexity` and `bits_per_char` (None where it is not finite, which JSON
        cannot say).

        Raises `MlflowException` with what is wrong with a parameter or a text; a server answers it with status 400.
        """
        settings = {key: getattr(value, "tolist", lambda v=value: v)() for key, value in (params or {}).items()}
        mode = settings.pop("mode", MODES[0])
        texts = list(model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input)
        try:
            if mode not in MODES:
                raise unknown_name("mode", mode, list(MODES))
            if strange := [text for text in texts if not isinstance(text, str)]:
                raise UsageError("the inputs must be texts", repr(strange[0]), "give a list of strings")
            answer = _continued if mode == "generate" else _scores
            return answer(self.saved, texts, settings)
        except RnnlmError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _continued(saved: SavedModel, texts: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Return each text with its continuation."""
    config = override(RunConfig(), {SECTION + key: value for key, value in settings.items()}).generate
    return [sample.text for sample in continue_texts(saved, texts, config, warn)]


def _scores(saved: SavedModel, texts: Sequence[str], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the score of each text as a record."""
    unknown = settings.pop("unknown", "error")
    defaults = flatten(RunConfig().generate)  # MLflow fills in what is not given: that is nobody's wish
    useless = [f"{key}={value}" for key, value in settings.items() if value != _plain(defaults.get(key))]
    if useless:
        what = "generation parameters have no effect in mode `score`"
        raise UsageError(what, ", ".join(useless), "leave them out, or use mode `generate`")
    records = [asdict(scored) for scored in score_texts(saved, texts, unknown, warn)]
    return [{key: _as_json(value) for key, value in record.items()} for record in records]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _as_json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


mlflow.models.set_model(TextGenerator())
