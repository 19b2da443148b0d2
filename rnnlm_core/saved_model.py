"""A model in a folder: safetensors beside JSON, no pickle, loads on any device.

What is saved and loaded may as well be a model of n-grams as a network.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnlm_core.config import NGRAM, ModelConfig, known_names
from rnnlm_core.errors import IntegrityError, ResourceError, RnnlmError
from rnnlm_core.extensions import NAME, Kind
from rnnlm_core.levels import BPE_FILE, Tokenizer, read_tokenizer
from rnnlm_core.model import LanguageModel, Model, pick_device
from rnnlm_core.ngram import NgramModel, described, line_end, read_ngrams, write_ngrams
from rnnlm_core.store import MANIFEST, folder_fault
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import Vocabulary

FORMAT = 2
WEIGHTS = "model.safetensors"
ABOUT = "model.json"
MOST_JSON = 256 << 20
"""Bytes of a JSON file that are read into memory; a vocabulary of a million words has a tenth of it."""


@dataclass
class SavedModel:
    """A model with all that is needed to use it on text."""

    model: Model
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    normalizer: str
    about: dict[str, Any]


def save_model(
    folder: Path,
    model: Model,
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    normalizer: str,
    about: dict[str, Any],
) -> None:
    """Write a model into a folder: weights, vocabulary and a description. Equal models give equal bytes."""
    from safetensors.torch import save_file

    if isinstance(model, NgramModel):
        write_ngrams(folder / WEIGHTS, model)
    else:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.weights().items()}
        save_file(weights, folder / WEIGHTS)
    (folder / VOCABULARY_FILE).write_text(vocabulary.to_json(), encoding="utf-8")
    tokenizer.write_files(folder)
    content = {
        "format": FORMAT,
        "cell": model.cell,
        "model": described(model.config) if model.cell == NGRAM else asdict(model.config),
        "tokenizer": tokenizer.about,
        "normalizer": normalizer,
        "about": about,
    }
    (folder / ABOUT).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


def load_model(folder: Path, device: str = "cpu") -> SavedModel:
    """Read what `save_model` wrote, on any device, in evaluation mode.

    The folder may come from anyone: nothing of it is executed, and no memory is taken that its files do not fill.

    Raises `IntegrityError` when the files are damaged, do not fit each other, or are of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (folder / MANIFEST).exists() and (fault := folder_fault(folder, folder.name)):
        raise IntegrityError(f"the model {fault}", folder, "run the training again")
    try:
        _check_files(folder)
        content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise IntegrityError(f"model format {content['format']} is newer than {FORMAT}", folder, "upgrade rnnlm")
        if content["format"] < FORMAT:
            content["tokenizer"] = {"level": content["level"], "eos": "none"}
        _check_names(content, folder)
        vocabulary = Vocabulary.load(folder)
        cut = read_tokenizer(content["tokenizer"], folder)
        if not isinstance(content["about"], dict):
            raise ValueError("its description is of another kind")
        model: Model
        if content["cell"] == NGRAM:
            ends = line_end(cut, vocabulary)
            model = read_ngrams(load_file(folder / WEIGHTS), content["model"], len(vocabulary), ends)
        else:
            target = pick_device(device)
            weights = load_file(folder / WEIGHTS, device=str(target))
            model = _network(folder, content["cell"], len(vocabulary), ModelConfig(**content["model"]), weights)
            model.to(target)
        model.eval()
    except RnnlmError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and _is_pickle(folder / WEIGHTS):
            what = "refused: weights that are Python objects (a pickle) could run code"
            raise IntegrityError(what, folder / WEIGHTS, "train it again, only safetensors are read") from error
        raise IntegrityError("not a complete model", f"{folder} ({error})", "train it again") from error
    return SavedModel(model, vocabulary, cut, content["normalizer"], content["about"])


def _network(
    folder: Path, cell: str, vocabulary_size: int, config: ModelConfig, weights: Mapping[str, Tensor]
) -> LanguageModel:
    """Return the network of a description with the weights of a file, if they fit each other."""
    _check_sizes(weights, config)
    with torch.device("meta"):  # shapes alone: the digits of a description may mean terabytes
        asked = LanguageModel(cell, vocabulary_size, config).weights()
    if misfit := _misfit(weights, asked):
        raise IntegrityError(f"not a complete model: {misfit}", folder, "train it again")
    model = LanguageModel(cell, vocabulary_size, config)
    model.set_weights(weights)
    return model


def _check_names(content: Mapping[str, Any], folder: Path) -> None:
    """Raise `ResourceError` for what a package would bring that is not here, ValueError for what can be no name."""
    named: dict[Kind, Any] = {
        "cell": content["cell"], "tokenizer": content["tokenizer"]["level"], "normalizer": content["normalizer"],
    }  # fmt: skip
    for kind, name in named.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"{name!r} names no {kind}")
        if name not in known_names(kind):
            what, remedy = f"this model needs the {kind} {name}", "install the package that brings it, or set"
            raise ResourceError(what, folder, f"{remedy} RNNLM_EXTENSIONS")


def _check_files(folder: Path) -> None:
    """Raise ValueError for what is no plain file (a pipe would never end) and for JSON of absurd size."""
    for name in (WEIGHTS, ABOUT, VOCABULARY_FILE, BPE_FILE):
        path = folder / name
        if path.exists() and not path.is_file():
            raise ValueError(f"{name} is no file")
        if name != WEIGHTS and path.exists() and path.stat().st_size > MOST_JSON:
            raise ValueError(f"{name} is larger than {MOST_JSON:,} bytes")


def _check_sizes(weights: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Raise ValueError for weights or sizes that are none of a model."""
    if not 1 <= config.num_layers <= len(weights) or config.hidden_size < 1 or config.embedding_size < 0:
        raise ValueError("its sizes are none of a model")
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}")


def _is_pickle(path: Path) -> bool:
    """Say whether a file begins as those that `torch.save` and `pickle` write."""
    with path.open("rb") as file:
        head = file.read(8)
    # The length that safetensors begins with may have these two bytes as well, and then zeros.
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and any(head[2:]))


def _misfit(there: Mapping[str, Tensor], asked: Mapping[str, Tensor]) -> str:
    """Return the first difference between the tensors of a file and those its description asks for, or ""."""
    for name in sorted(there.keys() | asked.keys()):
        if name not in there or name not in asked:
            return f"{name} is {'in the description' if name in asked else 'in the weights'} alone"
        if there[name].shape != asked[name].shape:
            shapes = f"weights={list(there[name].shape)}, description={list(asked[name].shape)}"
            return f"size mismatch of {name}: {shapes}"
    return ""
