"""Names of other packages: where they come from, what they may be called, what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rnnlm_core import extensions as module
from rnnlm_core.catalogue import corpus_names
from rnnlm_core.config import RunConfig, known_names
from rnnlm_core.config_values import override
from rnnlm_core.download import download, resolve
from rnnlm_core.errors import ConfigError, ResourceError, UsageError
from rnnlm_core.extensions import VARIABLE, Extension, extensions, register
from rnnlm_core.levels import Tokenizer, tokenizer
from rnnlm_core.normalize import normalizer
from rnnlm_core.presets import run_config
from rnnlm_core.shards import can_be_divided
from rnnlm_core.store import Store
from rnnlm_core.tokenize import tokenize

SOURCE = """
from rnnlm_core import CatalogueEntry, CorpusFile, Normalizer, Tokenizer

class Pairs(Tokenizer):
    level = "pairs"

    def split(self, text):
        return [text[i : i + 2] for i in range(0, len(text), 2)]

LOWER = Normalizer("lower", lambda blocks: (block.lower() for block in blocks), str.lower)
POEM = CatalogueEntry("poem", "A poem", "ours", "lower", "80/10/10", ("the sea",), (
    CorpusFile("whole", "poem.txt", "0" * 64, 7, ("https://localhost:9/poem.txt",)),
))
NOTHING = object()

class Spaced(Tokenizer):
    level = "spaced"

    def split(self, text):
        return text.split()

class Bits(Pairs):
    level = "bits"
    alphabet = ("0", "1")
"""


@pytest.fixture(autouse=True)
def _marine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of somebody's, in a folder where modules are found."""
    (tmp_path / "marine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "marine", raising=False)
    monkeypatch.setenv(VARIABLE, "")
    module._digest.cache_clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes packages look installed."""

    def put(*found: Extension) -> None:
        monkeypatch.setattr(module, "_installed", lambda kind: tuple(one for one in found if one.kind == kind))

    return put


def test_what_is_registered_is_known_here_and_to_children(monkeypatch: pytest.MonkeyPatch) -> None:
    register("tokenizer", "pairs", "marine:Pairs")
    register("normalizer", "lower", "marine:LOWER")
    register("corpus", "poem", "marine:POEM")
    register("corpus", "poem", "marine:POEM")  # again changes nothing
    import os

    assert os.environ[VARIABLE] == "tokenizer:pairs=marine:Pairs,normalizer:lower=marine:LOWER,corpus:poem=marine:POEM"
    assert known_names("tokenizer")[-1] == "pairs"
    assert tokenizer("pairs").split("abcde") == ["ab", "cd", "e"]
    assert normalizer("lower").prefix("ABC") == "abc"
    assert corpus_names()[-1] == "poem"
    assert resolve("poem").files == (("whole", "0" * 64),)


def test_a_corpus_brings_its_conventions() -> None:
    register("normalizer", "lower", "marine:LOWER")
    register("corpus", "poem", "marine:POEM")
    config = run_config(corpus="poem")
    assert (config.corpus.normalizer, config.corpus.split, config.generate.prefixes) == (
        "lower",
        "80/10/10",
        ("the sea",),
    )


def test_tokens_of_a_tokenizer_of_ones_own_come_in_order_of_first_appearance() -> None:
    register("tokenizer", "pairs", "marine:Pairs")
    cut = tokenizer("pairs")
    column = cut.encode("ababcdab")
    assert column.dictionary.to_pylist() == ["ab", "cd"]
    assert column.indices.to_pylist() == [0, 0, 1, 0]
    assert cut.text(["ab", "cd"]) == "abcd"
    assert cut.widths(["ab", "c"]) == [2, 1]
    assert cut.about == {"level": "pairs", "eos": "none"}


def test_rules_of_others_are_not_divided_into_shards() -> None:
    assert can_be_divided("none", "char", "none", 0)
    assert not can_be_divided("lower", "char", "none", 0)
    assert not can_be_divided("none", "pairs", "none", 0)


def test_a_tokenizer_must_say_how_it_splits() -> None:
    with pytest.raises(NotImplementedError, match=r"Tokenizer\.split"):
        Tokenizer().split("abc")


def test_an_unknown_name_lists_those_of_packages_as_well() -> None:
    register("tokenizer", "pairs", "marine:Pairs")
    with pytest.raises(
        ConfigError, match=r"`tokenizer\.level` must be one of char, word, byte, bpe, pairs\. Got 'pear'"
    ):
        override(RunConfig(), {"tokenizer.level": "pear"})
    with pytest.raises(UsageError, match=r"unknown tokenizer level: pear: did you mean pairs\?"):
        tokenizer("pear")
    with pytest.raises(UsageError, match=r"unknown normalizer: slower: "):
        normalizer("slower")
    with pytest.raises(ConfigError, match="unknown cell: xyz: known: rnn, gru, lstm, ngram"):
        override(RunConfig(), {"cells": "gru,xyz"})


@pytest.mark.parametrize("kind", ["cell", "tokenizer", "normalizer", "corpus"])
def test_what_is_nothing_of_the_kind_is_refused_and_leaves_nothing_behind(kind: module.Kind) -> None:
    with pytest.raises(UsageError, match=f"the {kind} odd must be .*: marine:NOTHING: mend or uninstall it"):
        register(kind, "odd", "marine:NOTHING")
    assert "odd" not in extensions(kind)


@pytest.mark.parametrize(("kind", "name"), [("cell", "lstm"), ("tokenizer", "char"), ("corpus", "python-docs")])
def test_a_name_of_ours_is_taken(kind: module.Kind, name: str) -> None:
    with pytest.raises(UsageError, match=f"the name of the {kind} {name} is taken"):
        register(kind, name, "marine:Pairs")
    assert not extensions(kind)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
        ("def f(:", "SyntaxError"),
        ("", "AttributeError"),
    ],
)
def test_a_module_that_fails_is_one_line_and_leaves_nothing_behind(source: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "stormy.py").write_text(source)
    sys.modules.pop("stormy", None)
    with pytest.raises(ResourceError, match=f"the cell mine cannot be loaded: stormy:Mine .{told}") as caught:
        register("cell", "mine", "stormy:Mine")
    assert len(str(caught.value).splitlines()) == 1
    assert not extensions("cell")


def test_a_package_that_is_not_whole_is_named(install: Callable[..., None]) -> None:
    with pytest.raises(ResourceError, match=r"nowhere:Mgu \(ModuleNotFoundError: .*'nowhere'\): put its folder on"):
        register("cell", "mgu", "nowhere:Mgu")
    install(Extension("cell", "mgu", "marine:Mgu", "rnnlm-mgu==1.0"))
    with pytest.raises(ResourceError, match=r"has no attribute 'Mgu'.*: repair or uninstall rnnlm-mgu==1\.0"):
        extensions("cell")["mgu"].load()


def test_there_are_four_kinds() -> None:
    with pytest.raises(UsageError, match=r"unknown kind: cells: did you mean cell\?"):
        register("cells", "mine", "marine:Mine")


def test_every_file_of_a_package_and_its_version_count(tmp_path: Path) -> None:
    package = tmp_path / "jpack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "words.txt").write_text("one")
    one = Extension("tokenizer", "j", "jpack:T", "jpack==1.0")

    def digest(extension: Extension = one) -> str:
        module._digest.cache_clear()
        return extension.digest()

    first = digest()
    assert digest() == first
    assert digest(Extension("tokenizer", "j", "jpack:T", "jpack==1.1")) != first
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_text("compiled")
    assert digest() == first
    (package / "words.txt").write_text("two")
    assert one.digest() == first  # what this process has begun with
    assert one.digest(now=True) != first
    assert digest() == one.digest(now=True)


@pytest.mark.parametrize("kind", ["tokenizer", "normalizer"])
def test_tokens_know_whose_code_made_them(kind: str, store: Store, tmp_path: Path) -> None:
    register("tokenizer", "pairs", "marine:Pairs")
    register("normalizer", "lower", "marine:LOWER")
    (tmp_path / "text.txt").write_text("abcd abcd abcd")
    text = download(resolve(str(tmp_path / "text.txt")), store).handle
    rule, level = ("lower", "char") if kind == "normalizer" else ("none", "pairs")
    plain = tokenize(text, "none", "char", store)
    first = tokenize(text, rule, level, store)
    (tmp_path / "marine.py").write_text(SOURCE + "# edited\n")
    module._digest.cache_clear()
    assert tokenize(text, rule, level, store) != first
    assert tokenize(text, "none", "char", store) == plain


def test_words_of_another_tokenizer_are_not_fused_at_line_ends(store: Store, tmp_path: Path) -> None:
    register("tokenizer", "spaced", "marine:Spaced")
    (tmp_path / "text.txt").write_text("The end\nof it\n")
    text = download(resolve(str(tmp_path / "text.txt")), store).handle
    tokens = tokenize(text, "d2l-lines", "spaced", store)
    assert tokens.num_tokens == {"whole": 4}


def test_a_complete_vocabulary_cannot_be_cut(tmp_path: Path) -> None:
    register("tokenizer", "bits", "marine:Bits")
    register("tokenizer", "pairs", "marine:Pairs")
    assert override(RunConfig(), {"tokenizer.level": "pairs", "tokenizer.min_freq": 2}).tokenizer.min_freq == 2
    with pytest.raises(ConfigError, match="min_freq` has no effect at level bits, whose vocabulary is complete"):
        override(RunConfig(), {"tokenizer.level": "bits", "tokenizer.min_freq": 2})


def test_a_script_cannot_be_imported_by_other_processes() -> None:
    with pytest.raises(UsageError, match="cannot import a script: __main__:Mine: put it into a module"):
        register("cell", "mine", "__main__:Mine")


@pytest.mark.parametrize("name", ["", "Upper", "a b", "a/b", "a=b", "x" * 33, "1st"])
def test_names_are_small_letters_digits_and_hyphens(name: str) -> None:
    with pytest.raises(UsageError, match="needs a name of small letters, digits and hyphens"):
        register("cell", name, "marine:Pairs")


def test_a_name_stands_for_one_thing(install: Callable[..., None]) -> None:
    install(Extension("cell", "lstm", "other:Cell", "other==1.0"))
    with pytest.raises(UsageError, match=r"the name of the cell lstm is taken: other:Cell: uninstall other==1\.0"):
        known_names("cell")
    install(Extension("cell", "mgu", "one:Cell", "one==1.0"), Extension("cell", "mgu", "two:Cell", "two==1.0"))
    with pytest.raises(UsageError, match=r"taken: one:Cell, two:Cell: uninstall two==1\.0"):
        known_names("cell")
    install(*[Extension("cell", "mgu", "one:Cell", "one==1.0")] * 2)  # found in two folders of the path
    assert known_names("cell")[-1] == "mgu"


def test_what_the_environment_says_is_read_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cells:mgu=marine:Pairs")
    with pytest.raises(
        UsageError, match="`RNNLM_EXTENSIONS` must be kind:name=module:attribute, the kinds cell, tokenizer"
    ):
        extensions("cell")
