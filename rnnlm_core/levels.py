"""What a token is, at each level: characters, words, bytes, byte pairs merged as learnt from a text.

A tokenizer cuts text into tokens and puts tokens together again; it knows nothing of ids. Bytes are written as the
256 characters that GPT-2 gave them, so that a token is a readable string (a space is `Ġ`, a line end `Ċ`).
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnnlm_core.config import LEVELS, known_names
from rnnlm_core.errors import IntegrityError, UsageError, unknown_name
from rnnlm_core.extensions import extensions

EOS = "<eos>"
BPE_FILE = "bpe.json"
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES: tuple[str, ...] = tuple(chr(b if b in _PRINTABLE else 256 + _HIDDEN.index(b)) for b in range(256))
"""The character that stands for each byte."""
_SEPARATORS = "\x1c\x1d\x1e\x1f"
"""White space of Unicode that is none to Arrow's quick way with ASCII."""
_STRANGE = 255
_BYTE_OF = {character: byte for byte, character in enumerate(BYTES)}


class Tokenizer:
    """What cuts text into tokens and puts them together again; a package's own needs `split` alone.

    A text comes in blocks that end with a line, in very long lines with a word: no token reaches further. Unless said
    otherwise, tokens in a row are the text.
    """

    level = ""
    """What configs call it."""
    noun = "tokens"
    """What its tokens are, in the plural."""
    alphabet: tuple[str, ...] = ()
    """Every token there can be, where that is known beforehand: then nothing is out of vocabulary."""
    reads_words = True
    """Whether it must see words as a whole."""
    joins_lines = False
    """Whether lines follow each other directly where a normaliser wants that of characters (`d2l-lines`)."""

    def split(self, text: str) -> list[str]:
        """Return the tokens of a text, none of them empty."""
        raise NotImplementedError(f"{type(self).__name__}.split")

    def encode(self, text: str) -> Any:
        """Return the tokens of a text as a dictionary array, the dictionary in order of first appearance."""
        import pyarrow as pa

        return pa.array(self.split(text), pa.string()).dictionary_encode()

    def pieces(self, tokens: Iterable[str]) -> Iterator[str]:
        """Yield what each token adds to the text, in order; joined, the pieces are the text."""
        yield from tokens

    def text(self, tokens: Iterable[str]) -> str:
        """Return the text of tokens."""
        return "".join(self.pieces(tokens))

    def widths(self, tokens: Sequence[str]) -> list[int]:
        """Return how many characters of the text each token stands for, what joins it to its neighbour included."""
        return [len(token) for token in tokens]

    @property
    def blank(self) -> str:
        """The token that stands for one more character where it follows itself; "" if there is none."""
        return ""

    @property
    def about(self) -> dict[str, str]:
        """What `read_tokenizer` needs, beside the files, to make it again."""
        return {"level": self.level, "eos": "none"}

    def write_files(self, folder: Path) -> None:
        """Write what belongs to this tokenizer and is not in `about` into a folder."""


class CharTokenizer(Tokenizer):
    """Characters of Unicode."""

    level = "char"
    noun = "characters"
    reads_words = False
    joins_lines = True

    def split(self, text: str) -> list[str]:
        """Return the characters of a text."""
        return list(text)

    def encode(self, text: str) -> Any:
        """Return the characters as a dictionary array; its indices are bytes where the text has no others."""
        import pyarrow as pa

        # One byte a character where that is all it takes: the table is then one look-up of the C library.
        narrow = text.isascii()
        points = np.frombuffer(text.encode("ascii" if narrow else "utf-32-le"), np.uint8 if narrow else np.uint32)
        return _by_first_appearance(points, lambda kinds: pa.array([chr(point) for point in kinds], pa.string()))


class WordTokenizer(Tokenizer):
    """Words between white space; with `eos`, one `<eos>` after each line (published form of PTB and WikiText-2)."""

    level = "word"
    noun = "words"
    reads_words = False

    def __init__(self, eos: bool = False) -> None:
        self.eos = eos

    def split(self, text: str) -> list[str]:
        """Return the words; a line end within the text is an `<eos>`, where the corpus has them."""
        return (text.replace("\n", f" {EOS} ") if self.eos else text).split()

    def encode(self, text: str) -> Any:
        """Return the words as a dictionary array."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.eos:
            text = text.replace("\n", f" {EOS} ")
        # Arrow 25 reads on behind a text that ends in white space: where it fills its buffer, with whatever lies there.
        plain = text.isascii() and not any(separator in text for separator in _SEPARATORS)
        split = pc.ascii_split_whitespace if plain else pc.utf8_split_whitespace
        words = split(pa.array([text.rstrip()], pa.string())).flatten()
        return pc.dictionary_encode(words.filter(pc.not_equal(words, "")))

    def pieces(self, tokens: Iterable[str]) -> Iterator[str]:
        """Yield words with a space between them; `<eos>` is the line end it stands for."""
        space = ""
        for token in tokens:
            if self.eos and token == EOS:
                space = ""
                yield "\n"
            else:
                yield space + token
                space = " "

    def widths(self, tokens: Sequence[str]) -> list[int]:
        """A word and the space, or the line end, beside it; so `<eos>` adds nothing, but for an empty line."""
        return [0 if self.eos and token == EOS else len(token) + 1 for token in tokens]

    @property
    def blank(self) -> str:
        """Two `<eos>` in a row are an empty line: one more character."""
        return EOS if self.eos else ""

    @property
    def about(self) -> dict[str, str]:
        """Whether lines end in `<eos>` belongs to it."""
        return {"level": self.level, "eos": "line" if self.eos else "none"}


class ByteTokenizer(Tokenizer):
    """Bytes of UTF-8."""

    level = "byte"
    noun = "bytes"
    alphabet = BYTES
    reads_words = False
    joins_lines = True

    def split(self, text: str) -> list[str]:
        """Return one token per byte."""
        return [BYTES[byte] for byte in text.encode()]

    def encode(self, text: str) -> Any:
        """Return the bytes as a dictionary array."""
        import pyarrow as pa

        points = np.frombuffer(text.encode(), dtype=np.uint8)
        return _by_first_appearance(points, lambda kinds: pa.array([BYTES[byte] for byte in kinds], pa.string()))

    def pieces(self, tokens: Iterable[str]) -> Iterator[str]:
        """Yield text as soon as its last byte is there; bytes that are no UTF-8 become U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            if any(character not in _BYTE_OF for character in token):  # no string of bytes: a reserved token
                yield decoder.decode(b"", final=True) + token
                decoder.reset()
            else:
                yield decoder.decode(bytes(_BYTE_OF[character] for character in token))
        yield decoder.decode(b"", final=True)

    def widths(self, tokens: Sequence[str]) -> list[int]:
        """A character counts at its first byte; those that go on have bits 10 in front."""
        return [sum(_BYTE_OF.get(character, 0) & 0xC0 != 0x80 for character in token) for token in tokens]


class BpeTokenizer(ByteTokenizer):
    """Byte pairs merged by frequency (Sennrich et al. 2016), line by line, as `tokenizers` learns and applies them."""

    level = "bpe"
    noun = "byte pairs"
    reads_words = True

    def __init__(self, description: str, where: object = "") -> None:
        import tokenizers

        try:
            kind = json.loads(description)["model"]["type"]
            self._tokenizer = tokenizers.Tokenizer.from_str(description)
        except Exception as error:  # the library raises nothing narrower
            raise IntegrityError("not a BPE tokenizer", where, f"rebuild it ({error})") from error
        if kind != "BPE":
            raise IntegrityError("not a BPE tokenizer", where, f"rebuild it ({kind})")
        self.description = description
        kinds = self._tokenizer.get_vocab()
        self.alphabet = tuple(sorted(kinds, key=kinds.__getitem__))

    @classmethod
    def learn(cls, blocks: Iterable[str], size: int) -> "BpeTokenizer":
        """Learn merges from blocks of text until there are `size` tokens, or nothing more to merge."""
        from tokenizers import Tokenizer as Learner
        from tokenizers import decoders, models, pre_tokenizers, trainers

        learner = Learner(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=list(BYTES), show_progress=False, special_tokens=[]
        )
        lines = (line for block in blocks for line in block.splitlines(keepends=True))
        learner.train_from_iterator(lines, trainer)
        return cls(learner.to_str())

    def split(self, text: str) -> list[str]:
        """Return the merged byte pairs."""
        return [token for line in text.splitlines(keepends=True) for token in self._tokenizer.encode(line).tokens]

    def encode(self, text: str) -> Any:
        """Return the merged byte pairs as a dictionary array."""
        import pyarrow as pa

        lines = self._tokenizer.encode_batch(text.splitlines(keepends=True))
        points = np.fromiter((i for line in lines for i in line.ids), dtype=np.int64)
        return _by_first_appearance(points, lambda kinds: pa.array([self.alphabet[i] for i in kinds], pa.string()))

    def write_files(self, folder: Path) -> None:
        """Write the merges as the `tokenizers` library reads them."""
        (folder / BPE_FILE).write_text(self.description, encoding="utf-8")


def tokenizer(level: str, eos: str = "none") -> Tokenizer:
    """Return the tokenizer of a level that needs no learning; an unknown level lists the known ones."""
    others = extensions("tokenizer", LEVELS)
    if level == "word":
        return WordTokenizer(eos == "line")
    if level == "bpe":
        raise ValueError("bpe has to be learnt from a text: BpeTokenizer.learn")
    if level in LEVELS:
        return ByteTokenizer() if level == "byte" else CharTokenizer()
    found = others.get(level)
    if found is None:
        raise unknown_name("tokenizer level", level, list(known_names("tokenizer")))
    cls = found.load()
    if not (isinstance(cls, type) and issubclass(cls, Tokenizer) and cls.level == level):
        what = f"the tokenizer {level} must be a class of rnnlm_core.levels.Tokenizer whose `level` is {level}"
        raise UsageError(what, found.place, "mend or uninstall it")
    return cls()


def read_tokenizer(about: Mapping[str, str], folder: Path) -> Tokenizer:
    """Make a tokenizer again from what its `about` and `write_files` kept."""
    if about["level"] == "bpe":
        path = folder / BPE_FILE
        return BpeTokenizer(path.read_text(encoding="utf-8", errors="replace"), path)
    return tokenizer(about["level"], about["eos"])


def _by_first_appearance(points: np.ndarray, names: Any) -> Any:
    """Return numbers as a dictionary array of their names, without a Python loop over the text."""
    import pyarrow as pa

    if points.dtype == np.uint8:
        present, indices = _first_bytes(points)
        return pa.DictionaryArray.from_arrays(pa.array(indices), names(present))
    kinds = np.flatnonzero(np.bincount(points)) if len(points) else np.empty(0, dtype=np.int64)
    table = np.zeros(int(kinds[-1]) + 1 if len(kinds) else 1, dtype=np.int64)
    table[points[::-1]] = np.arange(len(points) - 1, -1, -1)  # the last write wins: the first place of each
    kinds = kinds[np.argsort(table[kinds])]
    table[kinds] = np.arange(len(kinds))
    return pa.DictionaryArray.from_arrays(pa.array(table[points], pa.int32()), names(kinds))


def _first_bytes(points: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return the kinds of bytes in order of first appearance, and the place of each byte among them."""
    raw = points.tobytes()
    kinds = bytes(dict.fromkeys(raw[:4096]))
    found = _places(raw, kinds)
    if _STRANGE in found:  # as a rule the beginning has them all
        while rest := raw.translate(None, kinds):
            kinds += bytes(dict.fromkeys(rest[:4096]))
        found = _places(raw, kinds)
    return kinds, np.frombuffer(found, dtype=np.uint8)


def _places(raw: bytes, kinds: bytes) -> bytes:
    """Return the place of each byte among the kinds, `_STRANGE` for those that are not there."""
    table = bytearray([_STRANGE]) * 256
    for place, kind in enumerate(kinds):
        table[kind] = place
    return raw.translate(table)
