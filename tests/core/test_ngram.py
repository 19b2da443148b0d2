import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnlm_core.config import GenerateConfig, ModelConfig, TrainConfig
from rnnlm_core.errors import Stopped
from rnnlm_core.evaluate import evaluate, stream_loss
from rnnlm_core.generate import continue_texts, stream_text
from rnnlm_core.kneser_ney import discounts, estimate
from rnnlm_core.levels import tokenizer
from rnnlm_core.mapped_ids import mapped_ids
from rnnlm_core.model import num_parameters
from rnnlm_core.ngram import NgramModel
from rnnlm_core.ngram_counts import Counted, count_ngrams
from rnnlm_core.ngram_training import fit_ngrams
from rnnlm_core.saved_model import WEIGHTS, SavedModel, load_model, save_model
from rnnlm_core.score import score_texts
from rnnlm_core.store import Store
from rnnlm_core.train import train
from rnnlm_core.vocabulary import Vocabulary

V = 5
TEXTS = st.lists(st.integers(0, V - 1), min_size=2, max_size=80)
LINE_ENDS = st.one_of(st.none(), st.integers(0, V - 1))
Gram = tuple[int, ...]


def counted(ids: Sequence[int], order: int, line_end: int | None, folder: Path, block: int = 1000) -> Counted:
    return count_ngrams(np.array(ids, np.uint8), order, V, line_end, folder, block)


def model_of(
    ids: Sequence[int], order: int, line_end: int | None = None, modified: bool = True, block: int = 1000
) -> NgramModel:
    with tempfile.TemporaryDirectory() as name:
        found = estimate(counted(ids, order, line_end, Path(name), block), modified, line_end, Path(name), block)
    return NgramModel(ModelConfig(order=order), found.ids, found.grams, line_end).eval()


# The formulas once more, with dictionaries and nothing clever


def in_lines(ids: Sequence[int], order: int, line_end: int | None) -> list[int]:
    return list(ids) if line_end is None or order == 1 else [line_end, *ids]


def grams_of(ids: Sequence[int], n: int, line_end: int | None) -> Counter[Gram]:
    """Every n-gram that does not reach across the end of a line, and how often it occurs."""
    every = (tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    return Counter(gram for gram in every if line_end is None or line_end not in gram[1:-1])


def by_hand(
    ids: Sequence[int], order: int, line_end: int | None, modified: bool
) -> Callable[[Sequence[int]], list[float]]:
    """Return a function that gives the distribution after a text."""
    text = in_lines(ids, order, line_end)
    raw = {n: grams_of(text, n, line_end) for n in range(1, order + 1)}
    c: dict[int, dict[Gram, int]] = {order: dict(raw[order])}
    for n in range(order - 1, 0, -1):
        before = defaultdict(set)
        for gram in raw[n + 1]:
            before[gram[1:]].add(gram[0])
        begins = {gram for gram in raw[n] if n > 1 and gram[0] == line_end}
        c[n] = {gram: raw[n][gram] if gram in begins else len(before[gram]) for gram in raw[n]}
    d = {n: by_hand_discounts(Counter(c[n].values()), modified) for n in c}

    @cache
    def p(word: int, history: Gram) -> float:
        n = len(history) + 1
        follow = {gram[-1]: count for gram, count in c[n].items() if gram[:-1] == history and count}
        below = p(word, history[1:]) if history else 1 / V
        total = sum(follow.values())
        if not total:
            return below
        taken = {w: d[n][min(count, 3) - 1] for w, count in follow.items()}
        return (follow.get(word, 0) - taken.get(word, 0)) / total + sum(taken.values()) / total * below

    def after(before: Sequence[int]) -> list[float]:
        history = in_lines(before, order, line_end)
        if line_end in history:
            history = history[len(history) - 1 - history[::-1].index(line_end) :]
        return [p(word, tuple(history[max(0, len(history) - order + 1) :])) for word in range(V)]

    return after


def by_hand_discounts(n: Counter[int], modified: bool) -> tuple[float, float, float]:
    if not n[1] or not n[2]:
        return 0.5, 0.5, 0.5
    y = n[1] / (n[1] + 2 * n[2])
    if modified and n[3] and n[4]:
        three = 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]
        if all(one > 0 for one in three):
            return three
    return y, y, y


def distribution(model: NgramModel, before: Sequence[int]) -> np.ndarray:
    state = model.initial_state(1)
    logits = model.output(state[0][0])
    if before:
        every, _ = model(torch.tensor([list(before)]), state)
        logits = every[:, -1]
    return np.exp(logits.numpy()[0])


# Counting


@given(TEXTS, st.integers(1, 6), LINE_ENDS, st.integers(1, 30))
def test_every_ngram_is_counted_once_whatever_the_block(
    ids: list[int], order: int, line_end: int | None, block: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        found = counted(ids, order, line_end, Path(name), block)
        text = in_lines(ids, order, line_end)
        paths: list[Gram] = [(word,) for word in range(V)]
        assert dict(enumerate(found.ids.tolist())) == {word: text.count(word) for word in range(V)}
        for n, one in enumerate(found.grams, start=2):
            places = np.repeat(np.arange(len(paths)), np.diff(one.first))
            paths = [(*paths[p], word) for p, word in zip(places.tolist(), one.last.tolist(), strict=True)]
            assert paths == sorted(paths)
            assert dict(zip(paths, one.counts.tolist(), strict=True)) == grams_of(text, n, line_end)


@pytest.mark.parametrize("vocabulary_size", [255, 256, 65_535, 65_536])
@pytest.mark.parametrize("block", [7, 1000])
def test_large_ids_are_kept_apart(vocabulary_size: int, block: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    ids = draw.choice([0, 1, 255, 256, 65_535], 60).clip(max=vocabulary_size - 1).astype(np.int32)
    found = count_ngrams(ids, 3, vocabulary_size, None, tmp_path, block)
    assert found.ids.tolist() == np.bincount(ids, minlength=vocabulary_size).tolist()
    wanted = grams_of(ids.tolist(), 3, None)
    first, last = (one.first.astype(int) for one in found.grams), [one.last.tolist() for one in found.grams]
    heads, pairs = (np.repeat(np.arange(len(one) - 1), np.diff(one)).tolist() for one in first)
    trigrams = [(heads[pair], last[0][pair], word) for pair, word in zip(pairs, last[1], strict=True)]
    assert dict(zip(trigrams, found.grams[1].counts.tolist(), strict=True)) == wanted


def test_a_text_of_many_blocks_is_counted_with_few_open_files(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    ids = np.random.default_rng(0).choice(V, 2000)
    spare = os.open(tmp_path, os.O_RDONLY)  # the lowest number that is free
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 60, most))
    try:
        found = counted(ids.tolist(), 3, None, tmp_path, block=20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
    assert int(found.grams[1].counts.sum()) == 1998


# Smoothing


@given(TEXTS, st.integers(1, 5), LINE_ENDS, st.booleans(), st.integers(1, 30), st.data())
def test_the_model_is_the_formula(
    ids: list[int], order: int, line_end: int | None, modified: bool, block: int, data: st.DataObject
) -> None:
    model = model_of(ids, order, line_end, modified, block)
    wanted = by_hand(ids, order, line_end, modified)
    begin = data.draw(st.integers(0, len(ids) - 1))
    seen = ids[begin : begin + data.draw(st.integers(0, order))]
    for before in ([], seen, data.draw(st.lists(st.integers(0, V - 1), max_size=order + 1))):
        found = distribution(model, before)
        np.testing.assert_allclose(found, wanted(before), rtol=1e-12)
        assert abs(found.sum() - 1) < 1e-12
        assert found.min() > 0


def test_after_every_context_that_can_be_the_probabilities_sum_to_one() -> None:
    draw = np.random.default_rng(1)
    ids = draw.choice(V, 3000, p=[0.4, 0.3, 0.2, 0.07, 0.03]).tolist()
    model = model_of(ids, 5)
    for before in product(range(V), repeat=4):
        found = distribution(model, before)
        assert abs(found.sum() - 1) < 1e-12
        assert found.min() > 0


def test_a_large_vocabulary_sums_to_one_as_well(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    ids = draw.zipf(1.3, 20_000).clip(max=9_999).astype(np.int32)
    found = estimate(count_ngrams(ids, 3, 10_000, 7, tmp_path), True, 7, tmp_path)
    assert found.simpler == ()
    model = NgramModel(ModelConfig(order=3), found.ids, found.grams, 7)
    logits, _ = model(torch.from_numpy(ids[None, :60]), model.initial_state(1))
    sums = logits.exp().sum(-1)
    assert float((sums - 1).abs().max()) < 1e-12


def test_the_discounts_are_those_of_chen_and_goodman() -> None:
    (three, asked) = discounts([100, 40, 20, 12], True)
    y = 100 / 180
    assert asked
    assert three == pytest.approx((y, 2 - 3 * y * 0.5, 3 - 4 * y * 0.6))
    assert discounts([100, 40, 20, 12], False) == ((y, y, y), True)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        ([0, 9, 9, 9], 0.5),
        ([9, 0, 9, 9], 0.5),
        ([10, 5, 0, 9], 0.5),
        ([10, 5, 9, 0], 0.5),
        ([30, 5, 50, 1], 0.75),  # D₂ would be below 0
        ([0, 0, 0, 0], 0.5),
    ],
    ids=str,
)
def test_what_leaves_no_modified_discounts_leaves_a_single_one(n: list[int], expected: float) -> None:
    assert discounts(n, True) == ((expected,) * 3, False)


def test_counts_of_a_text_that_is_too_small_are_told_and_give_no_nonsense(tmp_path: Path) -> None:
    warnings: list[str] = []
    ids = torch.tensor([1, 2], dtype=torch.uint8)
    model, epoch = fit_ngrams(V, ids, None, ModelConfig(order=6), None, Store(tmp_path), warn=warnings.append)
    assert len(warnings) == 1
    assert "too few counts for modified discounts of n-grams of order 1 (0.50), 2 (0.50), 3" in warnings[0]
    assert math.isfinite(epoch.train_loss)
    assert epoch.valid_loss is None
    assert abs(distribution(model, [1]).sum() - 1) < 1e-12
    assert list(tmp_path.rglob("*.shares")) == []


def test_characters_that_all_occur_often_are_no_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    generator = torch.Generator().manual_seed(0)
    ids = torch.multinomial(torch.arange(1.0, V), 3000, replacement=True, generator=generator) + 1
    found = estimate(count_ngrams(ids.numpy(), 6, V, None, tmp_path), True, None, tmp_path)
    assert 1 in found.simpler
    assert 6 not in found.simpler
    fit_ngrams(V, ids.to(torch.uint8), None, ModelConfig(order=6), None, Store(tmp_path), warn=warnings.append)
    assert warnings == []


ON_A_SMALL_DISK = """
import shutil
import sys
from pathlib import Path

import numpy as np

from rnnlm_core import ngram_counts
from rnnlm_core.errors import ResourceError
from rnnlm_core.kneser_ney import estimate
from rnnlm_core.store import Store

disk, looks = Path(sys.argv[1]), sys.argv[2] == "looks"
if not looks:  # as if another process took the room right after
    ngram_counts.check_space = lambda folder, num_bytes: None
ids = np.random.default_rng(0).integers(0, 200, 20_000)
store = Store(disk)
for room in range(0, 4_000_000, 250_000):
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
    try:
        with store.draft("ngrams") as scratch:
            counted = ngram_counts.count_ngrams(ids, 3, 200, None, scratch.folder, 5000)
            estimate(counted, True, None, scratch.folder)
        print("done")
    except ResourceError as error:
        print(str(error).split(":")[0])
    counted = None
    ballast.unlink()
"""


@pytest.mark.parametrize("beforehand", ["looks", "does not look"])
def test_a_full_disk_is_an_error_wherever_it_fills_up(beforehand: str, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)],  # noqa: S607
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    try:
        ran = subprocess.run(
            [sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path), beforehand],
            check=False,
            capture_output=True,
            text=True,
        )
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # noqa: S607
    assert ran.returncode == 0, (ran.returncode, ran.stdout, ran.stderr)
    outcomes = ran.stdout.splitlines()
    assert outcomes == sorted(outcomes, reverse=True)
    assert set(outcomes) == {"no space left", "done"}
    assert outcomes.count("no space left") > 3


# Asking the model


@given(TEXTS, st.integers(1, 5), LINE_ENDS, st.lists(st.integers(0, V - 1), min_size=2, max_size=40), st.data())
def test_losses_of_what_came_are_those_of_all_that_could_come(
    ids: list[int], order: int, line_end: int | None, text: list[int], data: st.DataObject
) -> None:
    model = model_of(ids, order, line_end)
    logits, after = model(torch.tensor([text[:-1]]), model.initial_state(1))
    wanted = -logits[0].gather(1, torch.tensor(text[1:])[:, None])[:, 0]
    cut = data.draw(st.integers(1, len(text) - 1))
    found, state = model.token_losses(torch.tensor(text[: cut + 1]), model.initial_state(1))
    rest, state = model.token_losses(torch.tensor(text[cut:]), state) if cut < len(text) - 1 else (found[:0], state)
    torch.testing.assert_close(torch.cat([found, rest]), wanted, rtol=1e-12, atol=0)
    assert torch.equal(state[0][0], after[0][0])
    assert stream_loss(model, torch.tensor(text)) == pytest.approx(float(wanted.sum()), rel=1e-12)


def test_rows_side_by_side_are_what_each_is_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    model = model_of(torch.randint(V, (400,), generator=draw).tolist(), 4, line_end=2)
    texts = torch.randint(V, (3, 9), generator=draw)
    together, (after,) = model(texts, model.initial_state(3))
    assert together.shape == (3, 9, V)
    for row in range(3):
        alone, (last,) = model(texts[row : row + 1], model.initial_state(1))
        assert torch.equal(together[row], alone[0])
        assert torch.equal(after[0][row], last[0][0])
    step, _ = model(texts[:, -1:], model(texts[:, :-1], model.initial_state(3))[1])
    assert torch.equal(step[:, 0], together[:, -1])


def test_a_line_is_predicted_without_the_line_before() -> None:
    draw = torch.Generator().manual_seed(0)
    model = model_of(torch.randint(V, (400,), generator=draw).tolist(), 3, line_end=2)
    for line in ([], [1], [1, 3]):
        assert np.array_equal(distribution(model, [0, 1, 2, *line]), distribution(model, line))
    carried = model_of(torch.randint(V, (400,), generator=draw).tolist(), 3)
    assert not np.array_equal(distribution(carried, [0, 1, 2]), distribution(carried, []))


def test_an_id_that_is_none_is_refused() -> None:
    model = model_of([0, 1, 2, 1], 2)
    for wrong in (V, -1):
        with pytest.raises(IndexError, match=r"ids from -?\d to \d, of 5"):
            stream_loss(model, torch.tensor([1, wrong, 1]))


# The file


WORDS = Vocabulary(dict.fromkeys("abcd", 9))
LETTERS = torch.randint(1, V, (300,), generator=torch.Generator().manual_seed(0)).tolist()


def saved_model(folder: Path, order: int = 3) -> Path:
    folder.mkdir()
    model = model_of(LETTERS, order)
    save_model(folder, model, WORDS, tokenizer("char"), "none", {"corpus": "x"})
    return folder


@pytest.mark.parametrize("order", [1, 2, 5])
def test_a_model_comes_back_as_it_was_saved_with_the_same_bytes(order: int, tmp_path: Path) -> None:
    one, other = (saved_model(tmp_path / name, order) for name in ("one", "other"))
    for name in sorted(path.name for path in one.iterdir()):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    model = model_of(LETTERS, order)
    loaded = load_model(one)
    assert (loaded.model.cell, loaded.about, loaded.normalizer) == ("ngram", {"corpus": "x"}, "none")
    assert loaded.model.config == ModelConfig(order=order)
    assert num_parameters(loaded.model) == num_parameters(model) == V + sum(len(g.last) for g in model.grams)
    text = torch.tensor([[1, 2, 3, 4, 1, 1, 0]])
    assert torch.equal(loaded.model(text, loaded.model.initial_state(1))[0], model(text, model.initial_state(1))[0])
    description = json.loads((one / "model.json").read_text())
    assert description["model"] == {"order": order, "discounts": "modified"}


def test_the_file_is_what_safetensors_itself_would_write(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = saved_model(tmp_path / "model") / WEIGHTS
    arrays = load_file(path)
    save_file(arrays, tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs")
    assert path.stat().st_size == (tmp_path / "theirs").stat().st_size
    assert all(np.array_equal(theirs[name], array) for name, array in arrays.items())


def test_it_writes_and_scores_as_every_model_does(tmp_path: Path) -> None:
    saved = load_model(saved_model(tmp_path / "model"))
    settings = GenerateConfig(length=12, temperature=0.9, seed=3, top_p=0.9)
    samples = continue_texts(saved, ["ab", "dca", "b"], settings)
    assert [sample.text for sample in samples] == [
        "".join(stream_text(saved, prefix, settings)) for prefix in ("ab", "dca", "b")
    ]
    assert all(len(s.text) > len(s.prefix) for s in samples)
    (searched,) = continue_texts(saved, ["ab"], GenerateConfig(length=5, beam=4))
    (greedy,) = continue_texts(saved, ["ab"], GenerateConfig(length=5))
    best, usual = score_texts(saved, [searched.text, greedy.text])
    assert best.loss <= usual.loss
    assert usual.perplexity == pytest.approx(math.exp(usual.loss))


# The stage


def trained(built: Any, store: Store, **more: Any) -> Any:
    shape = ModelConfig(order=more.pop("order", 4))
    return train("ngram", built.corpus, built.vocabulary, shape, TrainConfig(), store, key="k", **more)


def test_training_counts_the_training_split_and_measures_the_others(characters: Any, store: Store) -> None:
    told: list[Any] = []
    result = trained(characters, store, progress=told.append)
    assert (result.cell, result.device, result.best_epoch, len(result.history)) == ("ngram", "cpu", 1, 1)
    assert told == list(result.history)
    saved = load_model(store.open(result.model))
    assert saved.about["train"] == {}
    assert result.num_parameters == num_parameters(saved.model)
    ids = {
        split: torch.from_numpy(mapped_ids(characters.corpus, split, characters.vocabulary_size, store))
        for split in ("train", "valid", "test")
    }
    for split, loss in (("train", result.best.train_loss), ("valid", result.best.valid_loss)):
        assert loss == pytest.approx(stream_loss(saved.model, ids[split]) / (len(ids[split]) - 1), rel=1e-12)
    measured = evaluate(result.model, characters.corpus, "test", store)
    assert measured.loss == pytest.approx(stream_loss(saved.model, ids["test"]) / 399, rel=1e-12)
    assert result.best.train_loss < measured.loss < math.log(characters.vocabulary_size)


def test_the_same_corpus_gives_the_same_model_whatever_the_settings_of_networks(words: Any, store: Store) -> None:
    one = trained(words, store)
    other = train(
        "ngram", words.corpus, words.vocabulary, ModelConfig(order=4, hidden_size=7),
        TrainConfig(epochs=3, batch_size=10_000), store, key="other",
    )  # fmt: skip
    assert one.model == other.model
    assert trained(words, store, order=2).model != one.model


def test_a_longer_context_helps(characters: Any, store: Store) -> None:
    losses = [trained(characters, store, order=order).best.valid_loss for order in (1, 2, 3)]
    assert losses == sorted(losses, reverse=True)


def test_whoever_is_asked_to_stop_stops(characters: Any, store: Store) -> None:
    with pytest.raises(Stopped, match="training stopped: n-grams are counted in one go: run the same command again"):
        trained(characters, store, should_stop=lambda: True)
    assert list(store.handles("model")) == []
    assert list(store.root.glob("ngrams/*")) == []


def test_a_text_with_lines_has_lines_in_its_model(store: Store, tmp_path: Path) -> None:
    from rnnlm_core.corpus import build_corpus
    from rnnlm_core.download import download, resolve
    from rnnlm_core.tokenize import tokenize
    from rnnlm_core.vocabulary import build_vocabulary

    path = tmp_path / "lines.txt"
    path.write_text("one two three\ntwo one\n\nthree one two\n" * 20)
    shares = (80, 10, 10)
    tokens = tokenize(download(resolve(str(path)), store).handle, "none", "word", store, eos="line")
    words = build_vocabulary(tokens, shares, 1, (), store)
    corpus = build_corpus(tokens, words.handle, shares, 0, store)
    result = train("ngram", corpus.handle, words.handle, ModelConfig(order=3), TrainConfig(), store, key="k")
    model = load_model(store.open(result.model)).model
    end = Vocabulary.load(store.open(words.handle))["<eos>"]
    assert isinstance(model, NgramModel)
    assert model.line_end == end
    one = SavedModel(model, Vocabulary.load(store.open(words.handle)), tokenizer("word", "line"), "none", {})
    texts = ["two one", "three one two\ntwo", "three one two\ntwo one"]
    first, before, after = (score.loss * (score.num_tokens - 1) for score in score_texts(one, texts))
    assert after - before == pytest.approx(first, rel=1e-9)


def test_the_published_perplexity_of_a_5_gram_on_the_penn_treebank(store: Store, mirror: Path) -> None:
    """KN5 of Mikolov et al. (2011), "Empirical Evaluation and Combination of Advanced Language Modeling Techniques"."""
    texts = {
        split: (mirror / f"ptb/ptb.{split}.txt").read_text().replace("\n", " <eos> ").split()
        for split in ("train", "test")
    }
    words = Vocabulary(Counter(texts["train"]))
    ids = {split: torch.tensor(words[text]) for split, text in texts.items()}
    model, _ = fit_ngrams(len(words), ids["train"], None, ModelConfig(order=5), words["<eos>"], store)
    perplexity = math.exp(stream_loss(model, ids["test"]) / (len(ids["test"]) - 1))
    assert perplexity == pytest.approx(141.2, rel=0.002)
