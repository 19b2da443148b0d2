"""Small corpora for the tests of the core: 4,000 characters of invented text, the same on every machine."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from rnnlm_core.corpus import SplitFacts, build_corpus
from rnnlm_core.download import download, resolve
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import tokenize
from rnnlm_core.vocabulary import build_vocabulary

settings.register_profile("core", database=None, deadline=None, derandomize=True, max_examples=60)
settings.load_profile("core")

SHARES = (80, 10, 10)


@dataclass(frozen=True)
class BuiltText:
    """A text that went through the whole chain up to the corpus."""

    text: str
    corpus: Handle
    vocabulary: Handle
    vocabulary_size: int
    splits: dict[str, SplitFacts]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Golden numbers hold for one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def build(store: Store, tmp_path: Path) -> Callable[..., BuiltText]:
    """Return a function that builds a corpus of a text."""

    def build_text(text: str, level: str = "char", shares: tuple[int, int, int] = SHARES, rule: str = "none"):
        path = tmp_path / "text.txt"
        path.write_text(text, encoding="utf-8")
        tokens = tokenize(download(resolve(str(path)), store).handle, rule, level, store)
        words = build_vocabulary(tokens, shares, 1, (), store)
        corpus = build_corpus(tokens, words.handle, shares, 0, store)
        return BuiltText(text, corpus.handle, words.handle, words.size, corpus.splits)

    return build_text


def invented_text(length: int = 4000) -> str:
    chance = random.Random(0)  # noqa: S311 - invented words, no secret
    words = ["".join(chance.choices("aeioutnrsl", k=chance.randint(1, 6))) for _ in range(60)]
    lines = (" ".join(chance.choices(words, k=9)) for _ in range(length // 20))
    return "\n".join(lines)[:length]


@pytest.fixture
def characters(build: Callable[..., BuiltText]) -> BuiltText:
    return build(invented_text())


@pytest.fixture
def words(build: Callable[..., BuiltText]) -> BuiltText:
    return build(invented_text(), level="word")
