"""The language model: token ids in, logits of the next token out, the state carried by the caller.

Also its file form, safetensors beside JSON: no pickle, loads on any device. The model knows nothing of training.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnlm_core.cells import STEPS, State
from rnnlm_core.config import ModelConfig
from rnnlm_core.errors import IntegrityError, ResourceError, RnnlmError
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import Vocabulary

FORMAT = 1
WEIGHTS = "model.safetensors"
ABOUT = "model.json"
_LAYERS: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
}


class LanguageModel(nn.Module):
    """A stack of recurrent layers of one kind between an embedding (or one-hot rows) and a linear output.

    Args:
        cell: `rnn`, `gru` or `lstm`.
        vocabulary_size: number of ids.
        config: sizes and dropout.
    """

    def __init__(self, cell: str, vocabulary_size: int, config: ModelConfig) -> None:
        super().__init__()
        self.cell, self.config = cell, config
        width = config.embedding_size or vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, width) if config.embedding_size else None
        sizes = [width] + [config.hidden_size] * (config.num_layers - 1)
        self.layers = nn.ModuleList(_LAYERS[cell](size, config.hidden_size) for size in sizes)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.hidden_size, vocabulary_size)

    def initial_state(self, batch_size: int) -> list[State]:
        """Return the zero state of every layer."""
        zeros = self.output.weight.new_zeros(batch_size, self.config.hidden_size)
        return [(zeros,) * (2 if self.cell == "lstm" else 1) for _ in self.layers]

    def forward(self, ids: Tensor, state: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Return the logits after each token, and the state after the last.

        Args:
            ids: (batch, steps) token ids, any integer type.
            state: what `initial_state` or the call before returned.

        Returns:
            logits of shape (batch, steps, vocabulary), and one state per layer.
        """
        steps = ids.t().int()
        outputs: Tensor = steps
        after = []
        for i, (layer, before) in enumerate(zip(self.layers, state, strict=True)):
            if i == 0 and self.embedding is None:
                outputs, last = self._one_hot_layer(layer, steps, before)
            else:
                inputs = self.embedding(steps) if i == 0 and self.embedding is not None else outputs
                outputs, last = _dense_layer(layer, self.dropout(inputs), before)
            after.append(last)
        logits: Tensor = self.output(self.dropout(outputs))
        return logits.transpose(0, 1), after

    def _one_hot_layer(self, layer: Any, steps: Tensor, before: State) -> tuple[Tensor, State]:
        """Run a layer of `torch.nn` on one-hot inputs: their product with the weights is a row look-up, exactly."""
        gates = F.embedding(steps, layer.weight_ih_l0.t()) + layer.bias_ih_l0
        W: Tensor = layer.weight_hh_l0.t()
        b: Tensor = layer.bias_hh_l0
        step, hidden, last = STEPS[self.cell], [], before
        for now in gates.unbind(0):
            last = step(now, last, W, b)
            hidden.append(last[0])
        return torch.stack(hidden), last


def _dense_layer(layer: nn.Module, inputs: Tensor, before: State) -> tuple[Tensor, State]:
    first = tuple(part.unsqueeze(0) for part in before)
    outputs, last = layer(inputs, first if len(first) > 1 else first[0])
    last = last if isinstance(last, tuple) else (last,)
    return outputs, tuple(part.squeeze(0) for part in last)


def detach(state: Sequence[State]) -> list[State]:
    """Return the state cut off from the graph that made it (truncated back-propagation through time)."""
    return [tuple(part.detach() for part in layer) for layer in state]


def num_parameters(model: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; raises `ResourceError` if it is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ResourceError(f"no such device here (present: {there})", name, "use `--set train.device=cpu`")
    return device


@dataclass
class SavedModel:
    """A model with all that is needed to use it on text."""

    model: LanguageModel
    vocabulary: Vocabulary
    level: str
    normalizer: str
    about: dict[str, Any]


def save_model(
    folder: Path,
    model: LanguageModel,
    vocabulary: Vocabulary,
    level: str,
    normalizer: str,
    about: dict[str, Any],
) -> None:
    """Write a model into a folder: weights, vocabulary and a description. Equal models give equal bytes."""
    from safetensors.torch import save_file

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / VOCABULARY_FILE).write_text(vocabulary.to_json(), encoding="utf-8")
    content = {
        "format": FORMAT,
        "cell": model.cell,
        "model": asdict(model.config),
        "level": level,
        "normalizer": normalizer,
        "about": about,
    }
    (folder / ABOUT).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


def load_model(folder: Path, device: str = "cpu") -> SavedModel:
    """Read what `save_model` wrote, on any device, in evaluation mode.

    Raises `IntegrityError` when the files are damaged, do not fit each other, or are of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise IntegrityError(f"model format {content['format']} is newer than {FORMAT}", folder, "upgrade rnnlm")
        vocabulary = Vocabulary.load(folder)
        model = LanguageModel(content["cell"], len(vocabulary), ModelConfig(**content["model"]))
        target = pick_device(device)
        model.load_state_dict(load_file(folder / WEIGHTS, device=str(target)))
        model.to(target).eval()
    except RnnlmError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise IntegrityError("not a complete model", f"{folder} ({error})", "train it again") from error
    return SavedModel(model, vocabulary, content["level"], content["normalizer"], content["about"])
