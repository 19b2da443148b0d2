import pytest
import torch

from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.config import ModelConfig
from rnnlm_core.corpus import Corpus, SplitFacts
from rnnlm_core.levels import BYTES, tokenizer
from rnnlm_core.model import LanguageModel
from rnnlm_core.model_card import TrainedOn, model_card
from rnnlm_core.outcomes import Epoch, Trained
from rnnlm_core.saved_model import SavedModel
from rnnlm_core.store import Handle
from rnnlm_core.vocabulary import Vocabulary

CORPUS = Corpus(Handle("corpus", 64 * "c"), {"train": SplitFacts(9000, 0, 8999), "valid": SplitFacts(1000, 0, 999)})
SETTINGS = {
    "corpus.name": "/secret/place/my.txt",
    "train.seed": "7",
    "tokenizer.reserved_tokens": "a|b,<x>," + 999 * "y",
}


def card(given: str = "time-machine", level: str = "char", valid: float | None = 2.0, shown: str = "") -> str:
    words = Vocabulary(dict.fromkeys(BYTES if level == "byte" else "abc", 9))
    torch.manual_seed(0)
    saved = SavedModel(
        LanguageModel("gru", len(words), ModelConfig(hidden_size=2)), words, tokenizer(level), "letters", {}
    )
    epochs = tuple(Epoch(n, 2, 3.0 - n, valid, 0.1, 1.0, 10.0, 1.0) for n in (1, 2))
    trained = Trained("gru", Handle("model", 64 * "m"), 2, 1234, "cuda:0", 10.0, epochs)
    return model_card(saved, trained, TrainedOn(given, shown or given, CORPUS, 64 * "v"), SETTINGS, "models:/m-1")


def row(text: str, key: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {key} |")]
    return line.removeprefix(f"| {key} |").removesuffix("|").strip()


def test_the_card_says_what_the_model_is_what_it_learnt_from_and_how_well() -> None:
    text = card()
    assert text.startswith("# GRU language model of time-machine\n")
    assert "a GRU of 1,234 parameters that predicts the next of 4 characters" in text
    assert 'mlflow.pyfunc.load_model("models:/m-1").predict(' in text
    assert row(text, "licence") == CATALOGUE["time-machine"].licence == "public domain"
    assert row(text, "tokens") == "train 9,000, valid 1,000"
    assert row(text, "SHA-256 of the text `timemachine.txt`") == CATALOGUE["time-machine"].files[0].sha256
    assert row(text, "SHA-256 of the corpus (token ids)") == 64 * "c"
    assert row(text, "SHA-256 of the vocabulary") == 64 * "v"
    assert row(text, "train, while training epoch 2, the one kept") == "2.7183"
    assert row(text, "valid, after it") == "7.3891"
    assert "the metrics `test/*`" in text
    assert row(text, "trained on") == "cuda:0"
    assert row(text, "train.seed") == "7"
    assert "the normaliser `letters`" in text


def test_every_named_corpus_has_its_licence_on_the_card() -> None:
    for name, entry in CATALOGUE.items():
        assert row(card(name), "licence") == entry.licence


def test_a_text_of_one_s_own_that_is_called_like_a_corpus_is_not_taken_for_it() -> None:
    text = card(given="/secret/place/time-machine", shown="time-machine")
    assert row(text, "licence") == "not known here: a text of its user's own"
    assert "timemachine.txt" not in text
    assert "secret" not in text


def test_without_validation_split_the_card_claims_no_figure_for_it() -> None:
    assert "| valid" not in card(valid=None)
    assert "nothing was held out" in card(valid=None)
    assert "nothing was held out" not in card()


@pytest.mark.parametrize(("level", "said"), [("byte", "Every text can be read"), ("char", "are refused, or read as")])
def test_the_limits_are_those_of_the_level(level: str, said: str) -> None:
    assert said in card(level=level)


def test_a_name_or_setting_cannot_leave_its_place() -> None:
    text = card(given="x", shown="a|b\n# Other [link](http://example.org) <b>")
    assert text.splitlines()[0].startswith("# GRU language model of a\\|b\\\\n# Other \\[link](")
    assert "<b>" not in text
    shown = row(text, "tokenizer.reserved_tokens")
    assert shown.startswith("a\\|b,&lt;x>,yyy")
    assert len(shown) < 220
