"""The model as MLflow keeps it: this source file, our package and safetensors. Nothing is pickled.

model = mlflow.pyfunc.load_model(uri)
model.predict(["time traveller"], params={"length": 50, "temperature": 0.8, "seed": 1})
"""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from rnnlm_core.config import GenerateConfig
from rnnlm_core.generate import continue_text
from rnnlm_core.model import load_model


class TextGenerator(PythonModel):
    """Continues each text it is given."""

    # MLflow would ask for type hints on `predict`, and with them ignore the parameters of the signature.
    _skip_type_hint_validation = True

    def load_context(self, context):
        """Read the model's files; on any device, without running stored code."""
        self.saved = load_model(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # noqa: ARG002 - MLflow's signature
        """Return one continued text per input; `length`, `temperature` and `seed` are parameters."""
        wanted: dict[str, Any] = params or {}
        config = GenerateConfig(
            length=int(wanted.get("length", 200)),
            temperature=float(wanted.get("temperature", 0.0)),
            seed=int(wanted.get("seed", 0)),
        )
        texts = model_input.iloc[:, 0] if hasattr(model_input, "iloc") else model_input
        return [continue_text(self.saved, str(text), config).text for text in texts]


mlflow.models.set_model(TextGenerator())
