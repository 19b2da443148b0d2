"""A model as one ONNX file, which runs without PyTorch: in other languages, in a browser, on a phone.

The graph maps token ids of any batch and number of steps, and the state before them, to logits and the state after
them; it uses ONNX's own recurrent operators, which are the book's equations for every cell (the GRU with its reset gate
on either side of the product). What the ids mean stands in the file's metadata.
"""

import importlib.util
import json
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rnnlm_core.errors import IntegrityError, ResourceError, UsageError
from rnnlm_core.levels import BpeTokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.saved_model import SavedModel
from rnnlm_core.scratch import ScratchLayer, torch_layout
from rnnlm_core.softmax import MixtureOfSoftmaxes

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PACKAGES = ("onnx", "onnxruntime")
OPSET, IR = 17, 8
"""What every runtime since 2022 reads."""
MOST_BYTES = (1 << 31) - (1 << 20)
"""A protobuf file ends at 2 GiB."""
TOLERANCE = 1e-4
_OPERATORS = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
_GATES = {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
"""Where each gate of ONNX (z r h; i o f c) stands in `torch.nn` (r z n; i f g o)."""


def check_installed() -> None:
    """Raise `ResourceError` unless the packages of the extra `onnx` are there."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            what = "the export needs a package that is not installed"
            raise ResourceError(what, package, "pip install '.[onnx]' in the project folder")


def export_onnx(saved: SavedModel) -> bytes:
    """Return a model as an ONNX file.

    Inputs: `ids` int64 (batch, steps), `h` float32 (layers, batch, hidden), for the LSTM `c` likewise; both zero at
    the start of a text. Outputs: `logits` float32 (batch, steps, vocabulary), `h_next`, `c_next`: the next call's `h`
    and `c`. Where the last layer has another width (tied weights), states are (1, batch, units of all layers). The
    logits of a mixture of softmaxes are log-probabilities.

    Metadata, as strings: `rnnlm.tokens` (a JSON list, by id), `rnnlm.tokenizer` (JSON: level and eos),
    `rnnlm.bpe` (of level bpe: the description that the library `tokenizers` reads), `rnnlm.normalizer`, `rnnlm.cell`.

    Raises `ResourceError` without the extra `onnx`, or for more weights than a file may hold; `UsageError` for a
    model with an adaptive softmax, of n-grams, or of a cell that another package brings.
    """
    if not isinstance(saved.model, LanguageModel):
        raise UsageError("an ONNX file holds a network", saved.model.cell, "use the model itself")
    if saved.model.cell not in _OPERATORS:
        raise UsageError("an ONNX file holds one of " + ", ".join(_OPERATORS), saved.model.cell, "use the model itself")
    if saved.model.config.softmax != "full":
        raise UsageError("an ONNX file needs the full softmax", saved.model.config.softmax, "use the model itself")
    check_installed()
    from onnx import checker, helper

    graph = _Graph(saved.model)
    size = graph.num_bytes + sum(len(text.encode()) for text in _metadata(saved).values())
    if size > MOST_BYTES:
        raise ResourceError(
            f"an ONNX file holds at most {MOST_BYTES:,} bytes", f"{size:,} bytes",
            "use the model itself",
        )  # fmt: skip
    model: ModelProto = helper.make_model(
        graph.finished(), producer_name="rnnlm", ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    helper.set_model_props(model, _metadata(saved))
    checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def check_onnx(data: bytes, saved: SavedModel) -> float:
    """Run an ONNX file beside its model, on two rows of ids, state carried; return the largest difference of a logit.

    Raises `IntegrityError` where that is more than rounding, `ResourceError` without the extra `onnx`.
    """
    check_installed()
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    model = saved.model
    assert isinstance(model, LanguageModel), "others are not exported"
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(len(saved.vocabulary), (2, 24), generator=draw).to(model.device)
    state = model.initial_state(2)
    layers, units = _state_size(model)
    held = {name: np.zeros((layers, 2, units), np.float32) for name in _state_names(model)}
    largest = scale = 0.0
    with torch.inference_mode():
        for part in (ids[:, :16], ids[:, 16:17], ids[:, 17:]):
            wanted, state = model(part, state)
            logits, *after = session.run(None, {"ids": part.cpu().numpy(), **held})
            held = dict(zip(held, after, strict=True))
            largest = max(largest, float(np.abs(logits - wanted.cpu().numpy()).max()))
            scale = max(scale, float(wanted.abs().max()))
    if not largest <= TOLERANCE * max(scale, 1.0):
        raise IntegrityError("the ONNX file computes something else", f"logits differ by {largest:.3g}", "report it")
    return largest


def _metadata(saved: SavedModel) -> dict[str, str]:
    cut = saved.tokenizer
    facts = {
        "rnnlm.cell": saved.model.cell,
        "rnnlm.normalizer": saved.normalizer,
        "rnnlm.tokenizer": json.dumps(cut.about),
        "rnnlm.tokens": json.dumps(saved.vocabulary.tokens, ensure_ascii=False),
    }
    return facts | ({"rnnlm.bpe": cut.description} if isinstance(cut, BpeTokenizer) else {})


def _state_names(model: LanguageModel) -> tuple[str, ...]:
    return ("h", "c") if model.cell == "lstm" else ("h",)


def _state_size(model: LanguageModel) -> tuple[int, int]:
    """Return layers and units of the state: one above the other, or side by side where their widths differ."""
    sizes = model.config.layer_sizes
    return (len(sizes), sizes[0]) if len(set(sizes)) == 1 else (1, sum(sizes))


class _Graph:
    """Collects nodes and weights; a tensor has the same name here as in the model where it is the same."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.states = model, _state_names(model)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._build()

    @property
    def num_bytes(self) -> int:
        """How much the weights take."""
        return sum(array.nbytes for array in self.weights.values())

    def _add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def _keep(self, name: str, values: Tensor | np.ndarray) -> str:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        self.weights[name] = np.ascontiguousarray(array)
        return name

    def _build(self) -> None:
        model = self.model
        steps = self._add("Transpose", ["ids"], ["steps"], perm=[1, 0])
        if model.embedding is None:
            size = self._keep("vocabulary_size", np.array(model.vocabulary_size))
            values = self._keep("off_on", np.array([0, 1], np.float32))
            outputs = self._add("OneHot", [steps, size, values], ["inputs"])
        else:
            table = self._keep("embedding.weight", model.embedding.weight)
            outputs = self._add("Gather", [table, steps], ["inputs"])
        one = self._keep("one", np.array([1]))
        after = []
        for i, layer in enumerate(model.layers):
            outputs, last = self._layer(i, layer, outputs, one)
            after.append(last)
        for name, parts in zip(self.states, zip(*after, strict=True), strict=True):
            side_by_side = _state_size(model)[0] < len(model.layers)
            self._add("Concat", list(parts), [f"{name}_next"], axis=2 if side_by_side else 0)
        self._add("Transpose", [self._logits(outputs)], ["logits"], perm=[1, 0, 2])

    def _logits(self, states: str) -> str:
        """Add the output layer; return the name of its logits (steps, batch, vocabulary)."""
        output = cast(nn.Linear | MixtureOfSoftmaxes, self.model.output)  # another is refused
        tied = self.model.config.tie_weights and self.model.embedding is not None
        weight = "embedding.weight" if tied else self._keep("output.weight", output.weight)
        turned = self._add("Transpose", [weight], ["output.weight.T"], perm=[1, 0])

        def product(inputs: str, name: str) -> str:
            multiplied = self._add("MatMul", [inputs, turned], ["product"])
            return self._add("Add", [multiplied, self._keep("output.bias", output.bias)], [name])

        if isinstance(output, MixtureOfSoftmaxes):
            return self._mixed(states, product(self._latent_states(states, output), "logits_of_each"), output)
        return product(states, "logits_by_step")

    def _latent_states(self, states: str, output: MixtureOfSoftmaxes) -> str:
        """Add the latent states, (steps, batch, softmaxes, latent)."""
        weight = self._keep("output.latent.weight.T", output.latent.weight.t())
        product = self._add("MatMul", [states, weight], ["latent_product"])
        biased = self._add("Add", [product, self._keep("output.latent.bias", output.latent.bias)], ["latent_biased"])
        shape = self._keep("latent_shape", np.array([0, 0, output.num_softmaxes, -1]))  # 0: as it is
        return self._add("Reshape", [self._add("Tanh", [biased], ["latent_flat"]), shape], ["latent"])

    def _mixed(self, states: str, logits: str, output: MixtureOfSoftmaxes) -> str:
        """Add log Σ π_k softmax(logits_k), of logits (steps, batch, softmaxes, vocabulary)."""
        weight = self._keep("output.prior.weight.T", output.prior.weight.t())
        prior = self._add("LogSoftmax", [self._add("MatMul", [states, weight], ["prior"])], ["log_prior_flat"], axis=-1)
        column = self._add("Unsqueeze", [prior, self._keep("last", np.array([-1]))], ["log_prior"])
        each = self._add("LogSoftmax", [logits], ["log_p_of_each"], axis=-1)
        both = self._add("Add", [column, each], ["log_p_and_prior"])
        return self._add("ReduceLogSumExp", [both], ["logits_by_step"], axes=[2], keepdims=0)

    def _layer(self, i: int, layer: Any, inputs: str, one: str) -> tuple[str, list[str]]:
        """Add one layer; return the names of its outputs (steps, batch, hidden) and of its last state."""
        cell, prefix = self.model.cell, f"layers.{i}"
        given = torch_layout(layer) if isinstance(layer, ScratchLayer) else dict(layer.named_parameters())
        order = _GATES[cell]

        def gates(name: str) -> Tensor:
            parts = given[name].detach().chunk(len(order))
            return torch.cat([parts[place] for place in order])[None]

        W = self._keep(f"{prefix}.W", gates("weight_ih_l0"))
        R = self._keep(f"{prefix}.R", gates("weight_hh_l0"))
        B = self._keep(f"{prefix}.B", torch.cat([gates("bias_ih_l0"), gates("bias_hh_l0")], dim=1))
        before = self._state_before(i, prefix)
        last = [f"{prefix}.{name}_next" for name in self.states]
        more = {"linear_before_reset": int(self.model.config.reset_gate == "after")} if cell == "gru" else {}
        size = self.model.config.layer_sizes[i]
        self._add(_OPERATORS[cell], [inputs, W, R, B, "", *before], [f"{prefix}.all", *last], hidden_size=size, **more)
        # (steps, directions, batch, hidden): there is one direction.
        return self._add("Squeeze", [f"{prefix}.all", one], [f"{prefix}.outputs"]), last

    def _state_before(self, i: int, prefix: str) -> list[str]:
        """Add the parts of the state that are a layer's."""
        sizes = self.model.config.layer_sizes
        if len(sizes) == _state_size(self.model)[0]:
            row = self._keep(f"{prefix}.index", np.array([i]))
            return [self._add("Gather", [name, row], [f"{prefix}.{name}"], axis=0) for name in self.states]
        begin = sum(sizes[:i])
        cut = [
            self._keep(f"{prefix}.begin", np.array([begin])),
            self._keep(f"{prefix}.end", np.array([begin + sizes[i]])),
        ]
        along = self._keep("units", np.array([2]))
        return [self._add("Slice", [name, *cut, along], [f"{prefix}.{name}"]) for name in self.states]

    def finished(self) -> Any:
        """Return the graph with its inputs and outputs."""
        from onnx import TensorProto, numpy_helper
        from onnx.helper import make_graph, make_tensor_value_info

        model, real = self.model, TensorProto.FLOAT
        layers, units = _state_size(model)
        size = (layers, "batch", units)
        inputs = [make_tensor_value_info("ids", TensorProto.INT64, ("batch", "steps"))]
        inputs += [make_tensor_value_info(name, real, size) for name in self.states]
        outputs = [make_tensor_value_info("logits", real, ("batch", "steps", model.vocabulary_size))]
        outputs += [make_tensor_value_info(f"{name}_next", real, size) for name in self.states]
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        return make_graph(self.nodes, "language_model", inputs, outputs, weights)
