from pathlib import Path

import pytest

from rnnlm_core.catalogue import CATALOGUE, CatalogueEntry, corpus_entry
from rnnlm_core.config import SPLITS
from rnnlm_core.errors import UsageError
from rnnlm_core.normalize import NORMALIZERS
from rnnlm_core.presets import run_config
from rnnlm_core.store import file_sha256

ENTRIES = list(CATALOGUE.values())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry: CatalogueEntry) -> None:
    assert corpus_entry(entry.name) is entry
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


def test_file_names_are_not_shared() -> None:
    names = [file.name for entry in ENTRIES for file in entry.files]
    assert len(names) == len(set(names))


def test_the_digests_are_those_of_the_published_files(mirror: Path) -> None:
    for file in (file for entry in ENTRIES for file in entry.files):
        assert (mirror / file.name).stat().st_size == file.num_bytes
        assert file_sha256(mirror / file.name) == file.sha256


def test_an_unknown_corpus_lists_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"unknown corpus: shakespear: did you mean shakespeare\? \(known: python-docs, "
    ):
        corpus_entry("shakespear")
