"""Dynamic evaluation against the paper's equations written out token by token, in double precision."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnnlm_core import dynamic_evaluation
from rnnlm_core.config import CELLS, EvaluateConfig, ModelConfig
from rnnlm_core.dynamic_evaluation import dynamic_loss, evaluate_dynamically, root_mean_squares
from rnnlm_core.errors import DataError, Diverged, Stopped
from rnnlm_core.evaluate import evaluate, stream_loss
from rnnlm_core.levels import tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.saved_model import save_model
from rnnlm_core.store import Handle, Store
from rnnlm_core.vocabulary import Vocabulary

V = 9
IDS = torch.randint(0, V, (50,), generator=torch.Generator().manual_seed(0)).int()
TRAIN = torch.randint(0, V, (60,), generator=torch.Generator().manual_seed(1)).int()
SHAPES = {
    "one-hot": ModelConfig(hidden_size=6, num_layers=2),
    "tied": ModelConfig(hidden_size=6, embedding_size=6, tie_weights=True, dropout=0.5),
    "awd": ModelConfig(
        hidden_size=6, num_layers=2, embedding_size=4, tie_weights=True, variational_dropout=True, dropout=0.5,
        dropout_embedding=0.5, weight_drop=0.5,
    ),
    "mixture": ModelConfig(hidden_size=6, embedding_size=4, dropout=0.5, mixture=2),
    "scratch": ModelConfig(hidden_size=6, embedding_size=4, implementation="scratch", init="uniform", init_range=0.5),
}  # fmt: skip


def model_of(cell: str = "gru", config: ModelConfig = SHAPES["one-hot"], vocabulary_size: int = V) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(cell, vocabulary_size, config)


def segment_loss(model: LanguageModel, x: Tensor, y: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Return the summed losses of rows (batch, steps), one step after the other, and the state cut off."""
    losses = []
    for now, following in zip(x.t(), y.t(), strict=True):
        logits, state = model(now[:, None], state)
        losses.append(F.cross_entropy(logits[:, 0], following.long(), reduction="sum"))
    return torch.stack(losses).sum(), [tuple(part.detach() for part in layer) for layer in state]


def naive_nats(model: LanguageModel, ids: Tensor, config: EvaluateConfig, roots: list[Tensor] | None) -> float:
    model = copy.deepcopy(model).eval()
    first = copy.deepcopy(model)
    nats, state = 0.0, model.initial_state(1)
    for start in range(0, len(ids) - 1, config.dynamic_steps):
        x, y = ids[:-1][start:][: config.dynamic_steps], ids[1:][start:][: config.dynamic_steps]
        loss, state = segment_loss(model, x[None], y[None], state)
        nats += float(loss.detach())
        model.zero_grad()
        (loss / len(x)).backward()
        for i, (weight, trained) in enumerate(zip(model.parameters(), first.parameters(), strict=True)):
            gradient, pull = weight.grad, torch.tensor(config.dynamic_decay)
            assert gradient is not None
            if roots is not None:
                gradient = gradient / (roots[i] + 2e-5)
                mean = sum(float(root.mean()) for root in roots) / len(roots)
                pull = torch.minimum(config.dynamic_decay * roots[i] / mean, torch.tensor(1.0))
            weight.data = weight.data - config.dynamic_rate * gradient + pull * (trained.data - weight.data)
    return nats


def naive_roots(model: LanguageModel, ids: Tensor, steps: int, rows: int) -> list[Tensor]:
    model = copy.deepcopy(model).eval()
    width = (len(ids) - 1) // rows
    x, y = (part[: rows * width].reshape(rows, width) for part in (ids[:-1], ids[1:]))
    squares, state = [], model.initial_state(rows)
    for start in range(0, width - steps + 1, steps):
        loss, state = segment_loss(model, x[:, start : start + steps], y[:, start : start + steps], state)
        model.zero_grad()
        (loss / (rows * steps)).backward()
        squares.append([weight.grad.square() for weight in model.parameters() if weight.grad is not None])
    return [torch.stack(one).mean(0).sqrt() for one in zip(*squares, strict=True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("rule", "rate"), [("sgd", 0.3), ("rms", 0.01)])
@pytest.mark.parametrize(("decay", "steps"), [(0.0, 5), (0.05, 7), (1.0, 1)])
def test_the_loss_is_that_of_the_equations(
    cell: str, shape: str, rule: Any, rate: float, decay: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_evaluation, "ROWS", 3)
    config = EvaluateConfig(dynamic_rate=rate, dynamic_rule=rule, dynamic_decay=decay, dynamic_steps=steps)
    model = model_of(cell, SHAPES[shape]).double()
    roots = None
    if rule == "rms":
        roots = root_mean_squares(model, TRAIN, steps)
        for ours, theirs in zip(roots, naive_roots(model, TRAIN, steps, 3), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    expected = naive_nats(model, IDS, config, roots)
    assert dynamic_loss(model, IDS, config, roots) == pytest.approx(expected, rel=1e-9)
    assert abs(expected - stream_loss(model, IDS)) > 1e-3


@pytest.mark.parametrize("config", [ModelConfig(hidden_size=16, softmax="adaptive"), SHAPES["one-hot"]])
def test_a_model_that_hardly_learns_is_the_static_one(config: ModelConfig) -> None:
    """Also where a segment leaves parts of the model without a gradient, as the tails of an adaptive softmax."""
    model = model_of("lstm", config, 1000)
    ids = torch.randint(0, 30, (40,), generator=torch.Generator().manual_seed(2)).int()
    for rule in ("sgd", "rms"):
        settings = EvaluateConfig(dynamic_rate=1e-12, dynamic_rule=rule, dynamic_decay=0.1)  # type: ignore[arg-type]
        roots = root_mean_squares(model, ids, 5)
        assert dynamic_loss(model, ids, settings, roots) == pytest.approx(stream_loss(model, ids), rel=1e-5)


@pytest.mark.parametrize(("rule", "rate"), [("sgd", 1.0), ("rms", 0.01)])
def test_a_text_that_repeats_itself_becomes_easier(rule: Any, rate: float) -> None:
    model = model_of("lstm", ModelConfig(hidden_size=16, embedding_size=8))
    ids = torch.tensor([1, 2, 3, 4] * 60)
    config = EvaluateConfig(dynamic_rate=rate, dynamic_rule=rule)
    nats = dynamic_loss(model, ids, config, root_mean_squares(model, ids, 5))
    assert nats < 0.8 * stream_loss(model, ids)


def test_the_given_model_stays_as_it_is_and_the_same_again_is_the_same() -> None:
    model = model_of(config=SHAPES["tied"]).train()
    before = {name: tensor.clone() for name, tensor in model.weights().items()}
    config = EvaluateConfig(dynamic_rate=0.1, dynamic_decay=0.01)
    roots = [root_mean_squares(model, TRAIN, 5) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*roots, strict=True))
    losses = [dynamic_loss(model, IDS, config, roots[0]) for _ in range(2)]
    assert losses[0] == losses[1]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.weights().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_rate_that_is_too_high_is_told_with_the_remedy() -> None:
    with pytest.raises(Diverged, match=r"dynamic evaluation diverged: loss \S+: lower evaluate.dynamic_rate"):
        dynamic_loss(model_of("rnn"), IDS, EvaluateConfig(dynamic_rate=1e38, dynamic_rule="sgd"))


def test_what_diverges_is_not_gone_on_with() -> None:
    segments: list[int] = []
    config = EvaluateConfig(dynamic_rate=1e38, dynamic_rule="sgd", dynamic_steps=1)
    with pytest.raises(Diverged):
        dynamic_loss(model_of("rnn"), IDS.repeat(20), config, check=lambda: segments.append(1))
    assert len(segments) == dynamic_evaluation.LOOK


def test_it_ends_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_evaluation, "ROWS", 3)
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped("stopped")

    config = EvaluateConfig(dynamic_rate=0.1, dynamic_rule="sgd")
    with pytest.raises(Stopped):
        dynamic_loss(model_of(), IDS, config, check=check)
    calls.clear()
    with pytest.raises(Stopped):
        root_mean_squares(model_of(), TRAIN, 1, check)


@pytest.mark.parametrize("length", [2, 3, 6, 7])
def test_statistics_of_a_short_text_are_there(length: int) -> None:
    roots = root_mean_squares(model_of(), TRAIN[:length], 5)
    assert all(torch.isfinite(root).all() for root in roots)
    assert any(float(root.max()) > 0 for root in roots)


# On a corpus


def published(store: Store, built: Any) -> tuple[Handle, LanguageModel]:
    model = model_of("gru", SHAPES["tied"], built.vocabulary_size)
    with store.draft("model") as draft:
        words = Vocabulary.load(store.open(built.vocabulary))
        save_model(draft.folder, model, words, tokenizer("char"), "none", {"vocabulary": built.vocabulary.sha256})
        return draft.publish(), model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_stored_model_is_measured_as_it_learns_and_keeps_its_bits(characters: Any, store: Store) -> None:
    handle, _ = published(store, characters)
    before = contents(store.open(handle))
    config = EvaluateConfig(split="valid", dynamic_rate=0.003, dynamic_decay=0.001)
    learnt, again = (evaluate_dynamically(handle, characters.corpus, config, store) for _ in range(2))
    static = evaluate(handle, characters.corpus, "valid", store)
    assert learnt == again
    assert (learnt.split, learnt.num_tokens, learnt.eos) == (static.split, static.num_tokens, static.eos)
    assert learnt.perplexity < 0.9 * static.perplexity
    assert learnt.perplexity == math.exp(learnt.loss)
    assert learnt.bits_per_char == pytest.approx(learnt.loss / math.log(2), rel=1e-12)
    assert contents(store.open(handle)) == before
    assert store.fault(handle) == ""
    assert evaluate(handle, characters.corpus, "valid", store) == static


def test_the_statistics_are_those_of_the_training_split(characters: Any, store: Store) -> None:
    from rnnlm_core.mapped_ids import mapped_ids

    handle, model = published(store, characters)
    config = EvaluateConfig(dynamic_rate=0.003)
    train, test = (
        torch.from_numpy(mapped_ids(characters.corpus, split, characters.vocabulary_size, store))
        for split in ("train", "test")
    )
    expected = dynamic_loss(model, test, config, root_mean_squares(model, train, 5))
    found = evaluate_dynamically(handle, characters.corpus, config, store)
    assert found.loss * (found.num_tokens - 1) == pytest.approx(expected, rel=1e-12)


def test_a_corpus_with_other_ids_is_refused(build: Any, store: Store) -> None:
    one, other = build("abcabcbca" * 20), build("cbacbaabc" * 20)
    handle, _ = published(store, one)
    with pytest.raises(DataError, match="model and corpus have different vocabularies"):
        evaluate_dynamically(handle, other.corpus, EvaluateConfig(dynamic_rate=0.1), store)
