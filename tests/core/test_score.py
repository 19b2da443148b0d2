import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnlm_core.config import CELLS, ModelConfig
from rnnlm_core.corpus import build_corpus
from rnnlm_core.download import download, resolve
from rnnlm_core.errors import DataError, UsageError
from rnnlm_core.evaluate import evaluate
from rnnlm_core.levels import BYTES, tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.saved_model import SavedModel, load_model, save_model
from rnnlm_core.score import score_texts
from rnnlm_core.store import Store
from rnnlm_core.tokenize import token_tokenizer, tokenize
from rnnlm_core.vocabulary import Vocabulary, build_vocabulary

LETTERS = Vocabulary(dict.fromkeys("abcdefgh ", 9))
WORDS = Vocabulary(dict.fromkeys(("time", "and", "<eos>", "the", "traveller"), 9))
TEXT = "The Time Traveller (for so it will be\r\nconvenient)\n\n  spoke of naïve «things» — 时间 and time.\n"


def saved_model(vocabulary: Vocabulary = LETTERS, level: str = "char", cell: str = "gru", **cut: Any) -> SavedModel:
    return SavedModel(model_of(cell, len(vocabulary)), vocabulary, tokenizer(level, cut.get("eos", "none")), "none", {})


def model_of(cell: str, size: int) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(cell, size, ModelConfig(hidden_size=6, num_layers=2)).eval()
    with torch.no_grad():
        model.output.weight.mul_(8)  # far from uniform: what comes before a token matters
    return model


@pytest.mark.parametrize("cell", CELLS)
def test_each_token_is_predicted_from_all_before_it_and_the_first_from_nothing(cell: str) -> None:
    saved = saved_model(cell=cell)
    (scored,) = score_texts(saved, ["abba cab"])
    ids, nats = saved.vocabulary[list("abba cab")], 0.0
    with torch.no_grad():
        for end in range(1, len(ids)):
            logits, _ = saved.model(torch.tensor([ids[:end]]), saved.model.initial_state(1))  # all anew
            nats -= float(torch.log_softmax(logits[0, -1].double(), 0)[ids[end]])
    assert scored.text == "abba cab"
    assert scored.num_tokens == 8
    assert scored.loss == pytest.approx(nats / 7, rel=1e-6)
    assert scored.perplexity == pytest.approx(math.exp(nats / 7), rel=1e-6)
    assert scored.bits_per_char == pytest.approx(nats / 7 / math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("level", "rule", "eos"),
    [
        ("char", "none", "none"), ("char", "nfc", "none"), ("char", "letters", "none"), ("char", "chinese", "none"),
        ("char", "d2l-lines", "none"), ("char", "d2l-whole", "none"), ("word", "letters", "none"),
        ("word", "d2l-lines", "none"), ("word", "none", "line"), ("byte", "none", "none"), ("bpe", "none", "none"),
    ],
)  # fmt: skip
def test_the_score_of_a_text_is_the_evaluation_of_the_corpus_that_it_is(
    level: str, rule: str, eos: str, store: Store, tmp_path: Path
) -> None:
    path, shares = tmp_path / "text.txt", (100, 0, 0)
    path.write_bytes(("\ufeff" + TEXT).encode())
    tokens = tokenize(
        download(resolve(str(path)), store).handle, rule, level, store, eos=eos, bpe_size=270, shares=shares
    )
    words = build_vocabulary(tokens, shares, 1, (), store)
    corpus = build_corpus(tokens, words.handle, shares, 0, store)
    vocabulary = Vocabulary.load(store.open(words.handle))
    cut, about = token_tokenizer(store.open(tokens.handle)), {"vocabulary": words.handle.sha256}
    with store.draft("model") as draft:
        save_model(draft.folder, model_of("lstm", len(vocabulary)), vocabulary, cut, rule, about)
        model = draft.publish()
    measured = evaluate(model, corpus.handle, "train", store)
    (scored,) = score_texts(load_model(store.open(model)), ["\ufeff" + TEXT])
    facts = (scored.num_tokens, scored.loss, scored.perplexity, scored.bits_per_char)
    assert facts == (measured.num_tokens, measured.loss, measured.perplexity, measured.bits_per_char)


def test_texts_of_any_lengths_are_scored_each_by_itself() -> None:
    saved, texts = saved_model(), ["abc", "ab" * 700, "cab"]
    assert score_texts(saved, texts) == tuple(score_texts(saved, [text])[0] for text in texts)
    assert score_texts(saved, []) == ()


def test_a_line_end_is_scored_where_it_is_given_and_none_is_added() -> None:
    saved = saved_model(WORDS, "word", eos="line")
    without, within = score_texts(saved, ["time and time", "time and time\n"])
    assert (without.num_tokens, within.num_tokens) == (3, 4)
    assert within.loss != without.loss


def test_the_text_is_shown_as_the_model_read_it() -> None:
    saved = saved_model()
    saved.normalizer = "letters"
    assert score_texts(saved, ["  ABBA, cab!"])[0].text == "abba cab"


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_a_token_to_predict_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=rf"needs at least 2 tokens: {len(text)} tokens in '{text}', .*`none`: give"):
        score_texts(saved_model(), ["abc", text])


def test_tokens_outside_the_vocabulary_are_refused_or_read_as_unk_with_a_warning() -> None:
    saved, heard = saved_model(), list[str]()
    with pytest.raises(DataError, match="text has characters outside the vocabulary: 'x', 'y': leave them out"):
        score_texts(saved, ["axyax"], warn=heard.append)
    assert heard == []
    read, named = score_texts(saved, ["axb", "ayb"], unknown="map", warn=heard.append)
    assert (read.loss, read.text) == (named.loss, "axb")
    assert heard[0] == "text has characters outside the vocabulary, read as <unk>: 'x'"


def test_an_unknown_policy_lists_the_known_ones_and_a_text_must_be_unicode() -> None:
    with pytest.raises(UsageError, match=r"unknown policy .*: mop: did you mean map"):
        score_texts(saved_model(), ["abc"], unknown="mop")
    with pytest.raises(UsageError, match="text is not UTF-8 at position 1"):
        score_texts(saved_model(), ["a\udcff"])


def test_the_bytes_of_a_single_character_have_no_bits_per_character() -> None:
    saved = saved_model(Vocabulary(dict.fromkeys(BYTES, 9)), "byte")
    (scored,) = score_texts(saved, ["é"])
    assert scored.num_tokens == 2
    assert math.isfinite(scored.perplexity)
    assert scored.bits_per_char == math.inf
