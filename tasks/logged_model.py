"""The model as MLflow keeps it: this source file, our package and safetensors. Nothing is pickled.

model = mlflow.pyfunc.load_model(uri)
model.predict(["time traveller"], params={"length": 50, "temperature": 0.8, "seed": 1})
"""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from rnnlm_core.config import RunConfig, override
from rnnlm_core.generate import continue_texts
from rnnlm_core.model import load_model


class TextGenerator(PythonModel):
    """Continues each text it is given."""

    # MLflow would ask for type hints on `predict`, and with them ignore the parameters of the signature.
    _skip_type_hint_validation = True

    def load_context(self, context):
        """Read the model's files; on any device, without running stored code."""
        self.saved = load_model(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # noqa: ARG002 - MLflow's signature
        """Return one continued text per input; parameters are those of the signature, `generate.*` of the config."""
        wanted: dict[str, Any] = params or {}
        settings = {f"generate.{key}": getattr(value, "item", lambda v=value: v)() for key, value in wanted.items()}
        config = override(RunConfig(), settings).generate
        texts = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        return [sample.text for sample in continue_texts(self.saved, [str(text) for text in texts], config)]


mlflow.models.set_model(TextGenerator())
