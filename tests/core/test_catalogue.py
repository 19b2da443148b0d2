import hashlib
import zipfile
from pathlib import Path

import pytest

from rnnlm_core.catalogue import CATALOGUE, CatalogueEntry, find_corpus
from rnnlm_core.config import SPLITS
from rnnlm_core.download import resolve
from rnnlm_core.errors import UsageError
from rnnlm_core.normalize import NORMALIZERS
from rnnlm_core.presets import run_config
from rnnlm_core.store import file_sha256

ENTRIES = list(CATALOGUE.values())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry: CatalogueEntry) -> None:
    assert find_corpus(entry.name) is entry
    assert entry.title
    assert entry.licence
    assert entry.normalizer in NORMALIZERS
    assert all(entry.prefixes)
    run_config(corpus=entry.name)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_corpus_is_one_file_or_three_splits_and_its_split_says_which(entry: CatalogueEntry) -> None:
    splits = tuple(file.split for file in entry.files)
    assert splits in ((), ("whole",), SPLITS)
    assert (entry.split == "given") == (splits == SPLITS)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_files_have_digests_and_addresses(entry: CatalogueEntry) -> None:
    for file in entry.files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.sha256 == file.sha256.lower()
        assert file.num_bytes > 0
        assert file.addresses
        assert all(address.startswith(("http://", "https://")) for address in file.addresses)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_archive_names_its_text_and_the_text_s_digest(entry: CatalogueEntry) -> None:
    for file in entry.files:
        assert bool(file.member) == bool(file.member_sha256) == file.name.endswith(".zip")
        assert len(bytes.fromhex(file.text_sha256)) == 32
        assert (file.text_sha256 != file.sha256) == bool(file.member)


@pytest.mark.parametrize("name", ["ptb", "wikitext-2"])
def test_words_published_with_line_ends_are_counted_so(name: str) -> None:
    entry = find_corpus(name)
    assert (entry.eos, entry.split, entry.normalizer) == ("line", "given", "none")


def test_file_names_are_not_shared() -> None:
    names = [file.name for entry in ENTRIES for file in entry.files]
    assert len(names) == len(set(names))


def test_the_digests_are_those_of_the_published_files(mirror: Path) -> None:
    for file in (file for entry in ENTRIES for file in entry.files):
        assert (mirror / file.name).stat().st_size == file.num_bytes
        assert file_sha256(mirror / file.name) == file.sha256
        if file.member:
            with zipfile.ZipFile(mirror / file.name) as archive:
                assert hashlib.sha256(archive.read(file.member)).hexdigest() == file.member_sha256


def test_an_unknown_corpus_lists_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"unknown corpus: shakespear: did you mean shakespeare\? \(known: python-docs, "
    ):
        resolve("shakespear")
    assert find_corpus("shakespear") is None
