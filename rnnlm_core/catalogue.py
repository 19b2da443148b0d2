"""The corpora that have a name: where they are, which bytes they must be, what one may do with them.

A mirror (`RNNLM_MIRROR`, a folder or an address) holds the files under the names given here; the digests are
checked wherever the bytes come from. Adding a corpus is adding an entry.
"""

from dataclasses import dataclass

from rnnlm_core.errors import unknown_name


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus: `split` is `whole`, or the split that the file is."""

    split: str
    name: str
    sha256: str
    num_bytes: int
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class CatalogueEntry:
    """A named corpus with the conventions under which its figures are published."""

    name: str
    title: str
    licence: str
    normalizer: str
    split: str
    prefixes: tuple[str, ...]
    files: tuple[CorpusFile, ...] = ()
    """Empty for a text that ships with Python itself."""


_D2L_BUCKET = "http://d2l-data.s3-accelerate.amazonaws.com"
_D2L_ZH = "https://raw.githubusercontent.com/d2l-ai/d2l-zh/66964df083b506fcc672132851ea171519d48d0b/data"
_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare"

CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="python-docs",
            title="Language reference of the running Python (pydoc_data.topics), embedded: no download",
            licence="PSF-2.0",
            normalizer="none",
            split="90/5/5",
            prefixes=("The ",),
        ),
        CatalogueEntry(
            name="time-machine",
            title="H. G. Wells, The Time Machine (1895), as in Dive into Deep Learning",
            licence="public domain",
            normalizer="letters",
            split="90/5/5",
            prefixes=("time traveller", "traveller"),
            files=(
                CorpusFile(
                    split="whole",
                    name="timemachine.txt",
                    sha256="8424dbd9532ac81f7e5f0b6add90e6952baea29158309d7d1bf3884f4e12c516",
                    num_bytes=178_979,
                    addresses=(f"{_D2L_BUCKET}/timemachine.txt", f"{_D2L_ZH}/timemachine.txt"),
                ),
            ),
        ),
        CatalogueEntry(
            name="shakespeare",
            title="tinyshakespeare, 40,000 lines of Shakespeare's plays (Karpathy, char-rnn)",
            licence="public domain",
            normalizer="none",
            split="90/10/0",
            prefixes=("ROMEO:",),
            files=(
                CorpusFile(
                    split="whole",
                    name="tinyshakespeare.txt",
                    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                    num_bytes=1_115_394,
                    addresses=(f"{_CHAR_RNN}/input.txt",),
                ),
            ),
        ),
    )
}


def corpus_entry(name: str) -> CatalogueEntry:
    """Return the catalogue's entry for `name`; an unknown name lists the known ones."""
    if name not in CATALOGUE:
        raise unknown_name("corpus", name, list(CATALOGUE))
    return CATALOGUE[name]
