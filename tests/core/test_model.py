import hashlib
import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnnlm_core.config import ModelConfig
from rnnlm_core.errors import IntegrityError, ResourceError
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel, detach, num_parameters, pick_device
from rnnlm_core.saved_model import ABOUT, WEIGHTS, load_model, save_model
from rnnlm_core.search import NEWER
from rnnlm_core.store import Store
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import Vocabulary

CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
V, HIDDEN, STEPS = 7, 5, 6
every_cell = pytest.mark.parametrize("cell", CELLS)


def model_of(cell: str, seed: int = 0, **config: Any) -> LanguageModel:
    torch.manual_seed(seed)
    return LanguageModel(cell, V, ModelConfig(hidden_size=HIDDEN, **config))


def ids_of(batch_size: int, num_steps: int = STEPS) -> Tensor:
    return torch.randint(0, V, (batch_size, num_steps), generator=torch.Generator().manual_seed(1))


def state_of(model: LanguageModel, batch_size: int, given: bool) -> list[tuple[Tensor, ...]]:
    torch.manual_seed(2)
    zero = model.initial_state(batch_size)
    return [tuple(torch.randn_like(part) for part in layer) for layer in zero] if given else zero


def peer_of(model: LanguageModel) -> nn.Module:
    """One module of `torch.nn` with all layers, its weights those of the model."""
    layers = list(model.layers)
    peer = CELLS[model.cell](layers[0].input_size, HIDDEN, num_layers=len(layers), batch_first=True).double()
    for i, layer in enumerate(layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(peer, f"{name}_l{i}").data.copy_(getattr(layer, f"{name}_l0").data)
    return peer


@every_cell
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("given", [False, True], ids=["zero-state", "given-state"])
@pytest.mark.parametrize("embedding_size", [0, 3], ids=["one-hot", "embedding"])
def test_the_model_equals_torch_in_outputs_states_and_gradients(
    cell: str, num_layers: int, batch_size: int, given: bool, embedding_size: int
) -> None:
    model = model_of(cell, num_layers=num_layers, embedding_size=embedding_size).double()
    peer = peer_of(model)
    ids, state = ids_of(batch_size), state_of(model, batch_size, given)
    table = None if model.embedding is None else model.embedding.weight.detach().clone().requires_grad_()
    inputs = F.one_hot(ids, V).double() if table is None else table[ids]
    stacked = tuple(torch.stack([layer[k] for layer in state]) for k in range(len(state[0])))
    outputs, last = peer(inputs, stacked if cell == "lstm" else stacked[0])
    last = last if cell == "lstm" else (last,)
    output = nn.Linear(HIDDEN, V, dtype=torch.float64)
    output.load_state_dict(model.output.state_dict())
    expected = output(outputs)

    logits, after = model(ids, state)

    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(logits, expected, **close)
    ours = [torch.stack([layer[k] for layer in after]) for k in range(len(last))]
    for a, b in zip(ours, last, strict=True):
        torch.testing.assert_close(a, b, **close)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ((logits * weights).sum() + sum(part.square().sum() for part in ours)).backward()
    ((expected * weights).sum() + sum(part.square().sum() for part in last)).backward()
    ours_grad = [getattr(layer, name).grad for layer in model.layers for name, _ in layer.named_parameters()]
    peer_grad = [getattr(peer, name).grad for name, _ in peer.named_parameters()]
    for a, b in zip(ours_grad, peer_grad, strict=True):
        torch.testing.assert_close(a, b, **close)
    torch.testing.assert_close(model.output.weight.grad, output.weight.grad, **close)
    if model.embedding is not None:
        torch.testing.assert_close(model.embedding.weight.grad, table.grad, **close)


@every_cell
@pytest.mark.parametrize("embedding_size", [0, 3])
def test_two_calls_with_the_state_carried_equal_one(cell: str, embedding_size: int) -> None:
    model = model_of(cell, num_layers=2, embedding_size=embedding_size).double()
    ids = ids_of(3)
    whole, end = model(ids, model.initial_state(3))
    first, between = model(ids[:, :2], model.initial_state(3))
    second, last = model(ids[:, 2:], between)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=1e-12)
    for a, b in zip(last, end, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_ids_may_have_any_integer_type(kind: torch.dtype) -> None:
    model = model_of("gru")
    expected, _ = model(ids_of(2), model.initial_state(2))
    logits, _ = model(ids_of(2).to(kind), model.initial_state(2))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(("cell", "num_parts"), [("rnn", 1), ("gru", 1), ("lstm", 2)])
def test_the_first_state_is_zero_for_every_layer(cell: str, num_parts: int) -> None:
    state = model_of(cell, num_layers=2).initial_state(3)
    assert [len(layer) for layer in state] == [num_parts] * 2
    assert all(part.shape == (3, HIDDEN) and not part.any() for layer in state for part in layer)


def test_a_detached_state_has_the_same_values_and_no_history() -> None:
    model = model_of("lstm")
    _, after = model(ids_of(2), model.initial_state(2))
    cut = detach(after)
    assert after[0][0].requires_grad
    assert not any(part.requires_grad for layer in cut for part in layer)
    assert torch.equal(cut[0][1], after[0][1])


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
def test_the_number_of_parameters_follows_from_the_sizes(cell: str, gates: int) -> None:
    one_hot = gates * (V * HIDDEN + HIDDEN * HIDDEN + 2 * HIDDEN) + HIDDEN * V + V
    assert num_parameters(model_of(cell)) == one_hot
    embedded = V * 3 + gates * (3 * HIDDEN + HIDDEN * HIDDEN + 2 * HIDDEN) + HIDDEN * V + V
    assert num_parameters(model_of(cell, embedding_size=3)) == embedded


class Tripled(nn.Module):
    """Stands where dropout stands, and shows where that is."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


@every_cell
def test_dropout_sits_after_the_embedding_between_layers_and_before_the_output(cell: str) -> None:
    model = model_of(cell, num_layers=2, embedding_size=3, dropout=0.5).double()
    model.dropout_input = model.dropout_hidden = model.dropout_output = Tripled()
    first, second = model.layers
    outputs, _ = first((3 * model.embedding(ids_of(2))).transpose(0, 1))
    outputs, _ = second(3 * outputs)
    logits, _ = model(ids_of(2), model.initial_state(2))
    torch.testing.assert_close(logits, model.output(3 * outputs).transpose(0, 1), rtol=0, atol=1e-12)


@every_cell
def test_one_hot_rows_are_not_dropped(cell: str) -> None:
    model = model_of(cell, num_layers=2, dropout=0.5).double()
    model.dropout_input = model.dropout_hidden = model.dropout_output = Tripled()
    first, second = model.layers
    outputs, _ = first(F.one_hot(ids_of(2), V).double().transpose(0, 1))
    outputs, _ = second(3 * outputs)
    logits, _ = model(ids_of(2), model.initial_state(2))
    torch.testing.assert_close(logits, model.output(3 * outputs).transpose(0, 1), rtol=0, atol=1e-12)


def test_dropout_works_in_training_mode_only() -> None:
    model = model_of("gru", dropout=0.5)
    ids, state = ids_of(2), model.initial_state(2)
    assert model.dropout_output.p == 0.5
    assert not torch.equal(model.train()(ids, state)[0], model(ids, state)[0])
    assert torch.equal(model.eval()(ids, state)[0], model(ids, state)[0])


# Tied weights

TIED = {"embedding_size": HIDDEN, "tie_weights": True}


@every_cell
@pytest.mark.parametrize("implementation", ["concise", "scratch"])
def test_tied_weights_are_one_tensor(cell: str, implementation: str) -> None:
    model = model_of(cell, implementation=implementation, **TIED)
    free = model_of(cell, implementation=implementation, embedding_size=HIDDEN)
    assert model.embedding is not None
    assert model.embedding.weight is model.output.weight
    assert num_parameters(free) - num_parameters(model) == V * HIDDEN
    assert free.weights().keys() - model.weights().keys() == {"output.weight"}


def test_tied_weights_start_as_those_of_an_output() -> None:
    assert model_of("gru", **TIED).output.weight.abs().max() <= HIDDEN**-0.5


def test_a_tied_weight_has_the_gradients_of_both_its_uses() -> None:
    model = model_of("lstm", **TIED).double()
    peer = model_of("lstm", embedding_size=HIDDEN).double()
    peer.load_state_dict({**model.weights(), "output.weight": model.output.weight.detach().clone()})
    for one in (model, peer):
        one(ids_of(3), one.initial_state(3))[0].square().sum().backward()
    both = peer.embedding.weight.grad + peer.output.weight.grad
    torch.testing.assert_close(model.output.weight.grad, both, rtol=0, atol=1e-12)


def test_weights_taken_over_stay_tied() -> None:
    model, other = model_of("gru", seed=1, **TIED), model_of("gru", seed=2, **TIED)
    other.set_weights(model.weights())
    assert other.embedding.weight is other.output.weight
    state = model.initial_state(2)
    assert torch.equal(other(ids_of(2), state)[0], model(ids_of(2), state)[0])


def test_weights_that_lack_a_tensor_are_refused() -> None:
    model = model_of("gru")
    with pytest.raises(RuntimeError, match=r"output\.bias"):
        model.set_weights({name: tensor for name, tensor in model.weights().items() if name != "output.bias"})


# Files


VOCABULARY = Vocabulary({c: 9 - i for i, c in enumerate("abcdef")})


def saved(folder: Path, cell: str = "lstm", seed: int = 0) -> LanguageModel:
    folder.mkdir(parents=True, exist_ok=True)
    model = model_of(cell, seed, num_layers=2, embedding_size=3, dropout=0.25)
    save_model(folder, model, VOCABULARY, tokenizer("char"), "letters", {"note": 1})
    return model


@every_cell
def test_a_saved_model_comes_back_whole(cell: str, tmp_path: Path) -> None:
    model = saved(tmp_path, cell).eval()
    loaded = load_model(tmp_path)
    assert not loaded.model.training
    assert (loaded.tokenizer.level, loaded.normalizer, loaded.about) == ("char", "letters", {"note": 1})
    assert (loaded.model.cell, loaded.model.config) == (cell, model.config)
    assert (loaded.vocabulary.tokens, loaded.vocabulary.counts) == (VOCABULARY.tokens, VOCABULARY.counts)
    state = model.initial_state(2)
    assert torch.equal(loaded.model(ids_of(2), state)[0], model(ids_of(2), state)[0])


@pytest.mark.parametrize(
    "config",
    [{"implementation": "scratch"}, {"implementation": "scratch", "reset_gate": "after"}, TIED, {"init": "uniform"}],
    ids=["scratch", "scratch-after", "tied", "uniform"],
)
@every_cell
def test_every_kind_of_model_comes_back_exactly(cell: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(cell, **config).eval()
    save_model(tmp_path, model, VOCABULARY, tokenizer("word", "line"), "none", {})
    loaded = load_model(tmp_path)
    assert loaded.model.config == model.config
    assert loaded.tokenizer.about == {"level": "word", "eos": "line"}
    assert num_parameters(loaded.model) == num_parameters(model)
    assert loaded.model.weights().keys() == model.weights().keys()
    assert all(torch.equal(loaded.model.weights()[name], tensor) for name, tensor in model.weights().items())
    if config is TIED:
        assert loaded.model.embedding.weight is loaded.model.output.weight


def test_a_model_of_the_first_format_is_read(tmp_path: Path) -> None:
    model = saved(tmp_path)
    content = json.loads((tmp_path / ABOUT).read_text())
    del content["tokenizer"]
    sizes = ("hidden_size", "num_layers", "embedding_size", "dropout")
    content |= {"format": 1, "level": "char", "model": {name: content["model"][name] for name in sizes}}
    (tmp_path / ABOUT).write_text(json.dumps(content))
    loaded = load_model(tmp_path)
    assert loaded.tokenizer.about == {"level": "char", "eos": "none"}
    state = model.initial_state(2)
    assert torch.equal(loaded.model(ids_of(2), state)[0], model.eval()(ids_of(2), state)[0])


def test_a_model_from_before_a_key_existed_is_read(tmp_path: Path) -> None:
    model = saved(tmp_path)
    content = json.loads((tmp_path / ABOUT).read_text())
    newer = [key.removeprefix("model.") for key, _ in NEWER if key.startswith("model.")]
    content["model"] = {key: value for key, value in content["model"].items() if key not in newer}
    assert len(newer) == 10
    (tmp_path / ABOUT).write_text(json.dumps(content))
    assert load_model(tmp_path).model.config == model.config


def test_equal_models_give_equal_bytes(store: Store) -> None:
    digests = []
    for seed in (0, 0, 1):
        with store.draft("model") as draft:
            saved(draft.folder, seed=seed)
            digests.append(draft.publish().sha256)
    assert digests[0] == digests[1] != digests[2]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    content = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**content, "format": 3}))
    with pytest.raises(IntegrityError, match=r"model format 3 is newer than 2: .*: upgrade rnnlm"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, ABOUT, VOCABULARY_FILE])
def test_a_missing_file_is_told(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(IntegrityError, match=rf"not a complete model: .*{name}.*: train it again"):
        load_model(tmp_path)


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_truncated_weights_are_told(left: int, tmp_path: Path) -> None:
    saved(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[:left])
    with pytest.raises(IntegrityError, match=r"not a complete model: .*: train it again"):
        load_model(tmp_path)


def test_weights_with_a_damaged_header_are_told(tmp_path: Path) -> None:
    saved(tmp_path)
    data = bytearray((tmp_path / WEIGHTS).read_bytes())
    data[8:16] = b"\xff" * 8
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"not a complete model: .*: train it again"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"model": {"hidden_size": 6}}, {"model": {"hidden_size": 0}}, {"model": {"width": 3}}, {"cell": "M L P"}],
    ids=["other-size", "no-size", "unknown-key", "no-cell"],
)
def test_a_description_that_does_not_fit_the_weights_is_told(change: dict[str, object], tmp_path: Path) -> None:
    saved(tmp_path)
    content = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps(content | change))
    with pytest.raises(IntegrityError, match=r"not a complete model: .*: train it again"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"cell": "mlp"}, "cell mlp"),
        ({"normalizer": "mine"}, "normalizer mine"),
        ({"tokenizer": {"level": "pairs"}}, "tokenizer pairs"),
    ],
)
def test_a_model_of_what_is_not_installed_says_what_to_install(
    change: dict[str, object], what: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    content = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps(content | change))
    with pytest.raises(ResourceError, match=f"this model needs the {what}: .*: install the package that brings it"):
        load_model(tmp_path)


def test_models_that_mlflow_keeps_find_what_they_are_loaded_with_where_it_was() -> None:
    from rnnlm_core import model, saved_model

    assert model.load_model is saved_model.load_model
    assert model.SavedModel is saved_model.SavedModel
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        attrgetter("load_modle")(model)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"\xff\xfe\xfd"], ids=repr)
def test_a_damaged_description_is_told(data: bytes, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / ABOUT).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"not a complete model: .*: train it again"):
        load_model(tmp_path)


def test_a_vocabulary_of_another_size_is_told(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / VOCABULARY_FILE).write_text(Vocabulary({"a": 1}).to_json())
    with pytest.raises(IntegrityError, match=r"not a complete model: .*size mismatch"):
        load_model(tmp_path)


def test_saving_leaves_nothing_but_the_three_files(tmp_path: Path) -> None:
    saved(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, ABOUT, VOCABULARY_FILE}
    digest = hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    load_model(tmp_path)
    assert hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest() == digest


# Devices


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "name", "present"),
    [(0, "cuda", "cpu"), (0, "cuda:0", "cpu"), (2, "cuda:2", "cpu, cuda:0, cuda:1")],
)
def test_a_device_that_is_not_there_is_told_with_those_that_are(
    count: int, name: str, present: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(ResourceError, match=rf"\(present: {present}\): {name}: use `--set train.device=cpu`"):
        pick_device(name)


@pytest.mark.parametrize(
    ("count", "name", "expected"),
    [(0, "auto", "cpu"), (1, "auto", "cuda"), (1, "cpu", "cpu"), (2, "cuda:1", "cuda:1"), (1, "cuda", "cuda")],
)
def test_a_device_that_is_there_is_taken(count: int, name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, count)
    assert pick_device(name) == torch.device(expected)


def test_loading_to_a_missing_device_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    gpus(monkeypatch, 0)
    with pytest.raises(ResourceError, match="no such device here"):
        load_model(tmp_path, "cuda")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("init", ["uniform", "book"])
@pytest.mark.parametrize("embedding_size", [0, 6])
def test_first_weights_of_a_seed_do_not_depend_on_how_they_lie_in_memory(
    cell: str, init: Literal["uniform", "book"], embedding_size: int
) -> None:
    config = ModelConfig(hidden_size=32, num_layers=2, embedding_size=embedding_size)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        plain = LanguageModel(cell, V, config)
        for parameter in plain.parameters():
            rows = torch.empty(parameter.shape)
            if init == "uniform":
                parameter.data = rows.uniform_(-0.1, 0.1)
            else:
                parameter.data = rows.normal_(0.0, 0.01) if rows.dim() > 1 else rows.zero_()
        torch.manual_seed(5)
        drawn = LanguageModel(cell, V, replace(config, init=init))
    assert all(torch.equal(one, drawn.weights()[name]) for name, one in plain.weights().items())
