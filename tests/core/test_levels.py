import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rnnlm_core.errors import IntegrityError, UsageError
from rnnlm_core.levels import (
    BPE_FILE,
    BYTES,
    EOS,
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    read_tokenizer,
    tokenizer,
)

SPOKEN = "the end of the line, the other end\nder Fluß, das Flüßchen\n分开 不分开\nfamily 👩‍👩‍👧 e\u0301\n" * 20
TEXTS = st.text(
    st.sampled_from("the endß分开👩\u200d\u0301\ufeff\u00a0\u2028\x0b\x1c\x85\r\n \t")
    | st.characters(exclude_categories=["Cs"]),
    max_size=60,
)
LEVELS = ("char", "word", "word with eos", "byte", "bpe")
EXACT = ("char", "byte", "bpe")
BYTEWISE = ("byte", "bpe")


@cache
def _cut(name: str) -> Tokenizer:
    if name == "bpe":
        return BpeTokenizer.learn([SPOKEN], 300)
    return tokenizer(name.split(maxsplit=1)[0], "line" if name.endswith("eos") else "none")


# ---------------------------------------------------------------- text to tokens and back


@pytest.mark.parametrize("level", EXACT)
@given(text=TEXTS)
@example(text="")
@example(text="\u0301")
@example(text="👩‍👩‍👧")
@example(text="\ufeff\x00\U0010ffff")
@example(text="\n\n a\x0bb\x85\n")
def test_characters_bytes_and_byte_pairs_give_the_text_back(level: str, text: str) -> None:
    cut = _cut(level)
    assert cut.text(cut.split(text)) == text


@given(text=TEXTS)
def test_words_give_the_text_back_but_for_white_space(text: str) -> None:
    cut = _cut("word")
    assert cut.text(cut.split(text)) == " ".join(text.split())


@given(text=TEXTS)
def test_words_with_eos_give_the_lines_back_but_for_white_space_in_them(text: str) -> None:
    cut = _cut("word with eos")
    assert cut.text(cut.split(text)) == "\n".join(" ".join(line.split()) for line in text.split("\n"))


@pytest.mark.parametrize("level", LEVELS)
@given(text=TEXTS)
@example(text="")
@example(text="\n\na  b\n")
def test_encoding_agrees_with_splitting(level: str, text: str) -> None:
    cut = _cut(level)
    column, tokens = cut.encode(text), cut.split(text)
    assert column.to_pylist() == tokens
    assert column.dictionary.to_pylist() == list(dict.fromkeys(tokens))


@pytest.mark.parametrize("level", ["char", "byte"])
def test_what_appears_late_is_encoded_as_what_appears_early(level: str) -> None:
    ascii_text = "ab" * 5000 + "c" + "ba" * 5000 + "".join(map(chr, range(0x80))) + "d" * 5000
    for text in (ascii_text, ascii_text + "é中" * 5000 + "".join(map(chr, range(0x80, 0x100)))):
        cut = _cut(level)
        assert cut.encode(text).to_pylist() == cut.split(text)
        assert cut.encode(text).dictionary.to_pylist() == list(dict.fromkeys(cut.split(text)))


@pytest.mark.parametrize("level", ["word", "word with eos"])
def test_white_space_at_the_end_of_a_full_buffer_ends_the_last_word(level: str) -> None:
    """Arrow's buffers are multiples of 64 bytes: what lies behind a full one is no part of the text."""
    cut, kept = _cut(level), []
    for number in range(2000):
        kept.append("z" * (number % 300))  # so that the buffers' neighbours differ
        end = "\n\n" if level == "word" else "\n"  # which is seven bytes as an <eos> between spaces
        text = "x" * (64 * (1 + number % 9) - (2 if level == "word" else 7)) + end
        assert cut.encode(text).to_pylist() == cut.split(text)


@pytest.mark.parametrize("points", [range(0x110000), range(0x80), [*range(0x1C), *range(0x20, 0x80)]])
@pytest.mark.parametrize("level", ["word", "word with eos"])
def test_words_end_at_the_same_characters_however_they_are_cut(level: str, points: Iterable[int]) -> None:
    every = "a".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    assert _cut(level).encode(every).to_pylist() == _cut(level).split(every)


@given(text=TEXTS)
def test_bytes_are_those_of_utf_8(text: str) -> None:
    assert _cut("byte").split(text) == [BYTES[byte] for byte in text.encode()]


def test_each_byte_has_a_printable_character_of_its_own() -> None:
    assert len(set(BYTES)) == 256
    assert all(character.isprintable() and not character.isspace() for character in BYTES)
    assert BYTES[ord(" ")] + BYTES[ord("\n")] + BYTES[ord("A")] == "ĠĊA"


# ---------------------------------------------------------------- how many characters a token stands for


@pytest.mark.parametrize("level", EXACT)
@given(text=TEXTS)
def test_widths_add_up_to_the_characters_of_the_text(level: str, text: str) -> None:
    cut = _cut(level)
    assert sum(cut.widths(cut.split(text))) == len(text)


@given(words=st.lists(st.text("aß中", min_size=1, max_size=5), max_size=9))
def test_a_word_s_width_is_the_word_and_a_space(words: list[str]) -> None:
    assert sum(_cut("word").widths(words)) == len("".join(word + " " for word in words))


@given(lines=st.lists(st.lists(st.sampled_from(["a", "the", "<unk>", "中"]), max_size=4), max_size=6))
def test_widths_of_lines_count_their_line_ends_once(lines: list[list[str]]) -> None:
    text = "".join(" ".join(line) + "\n" for line in lines)
    cut = _cut("word with eos")
    tokens = cut.split(text)
    assert cut.text(tokens) == text
    empty = sum(one == two == cut.blank for one, two in pairwise(["<eos>", *tokens]))
    assert sum(cut.widths(tokens)) + empty == len(text)


# ---------------------------------------------------------------- streaming


@pytest.mark.parametrize("level", LEVELS)
@given(text=TEXTS)
def test_the_pieces_joined_are_the_text(level: str, text: str) -> None:
    cut = _cut(level)
    tokens = cut.split(text)
    assert "".join(cut.pieces(iter(tokens))) == cut.text(tokens)


@pytest.mark.parametrize("level", BYTEWISE)
@given(text=TEXTS)
@example(text="e\u0301👩‍👧分")
def test_a_piece_comes_with_the_last_byte_of_its_character(level: str, text: str) -> None:
    cut = _cut(level)
    so_far, tokens = "", cut.split(text)
    for i, piece in enumerate(itertools.islice(cut.pieces(tokens), len(tokens)), start=1):
        so_far += piece
        there = bytes(BYTES.index(character) for token in tokens[:i] for character in token)
        assert so_far == there.decode("utf-8", "ignore")


@pytest.mark.parametrize("level", LEVELS)
def test_a_piece_waits_for_its_own_token_only(level: str) -> None:
    asked = []

    def endless() -> Iterator[str]:
        for i in itertools.count():
            asked.append(i)
            yield "a"

    assert "".join(itertools.islice(_cut(level).pieces(endless()), 3)).replace(" ", "") == "aaa"
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("level", BYTEWISE)
@given(content=st.binary(max_size=20))
@example(content=b"\xff")
@example(content=b"a\xe4\xb8")
@example(content=b"\xf0\x9f\x98a\xed\xa0\x80")
def test_bytes_that_are_no_utf_8_become_replacement_characters(level: str, content: bytes) -> None:
    assert _cut(level).text(BYTES[byte] for byte in content) == content.decode("utf-8", "replace")


@pytest.mark.parametrize("level", BYTEWISE)
@pytest.mark.parametrize("token", ["<unk>", "<pad token>", "中"])
def test_a_reserved_token_among_bytes_is_written_out(level: str, token: str) -> None:
    first, second = BYTES[0xC3], BYTES[0xA9]  # é
    assert _cut(level).text([first, second, token, "a"]) == f"é{token}a"
    assert _cut(level).text([first, token, second, "a"]) == f"\ufffd{token}\ufffda"


# ---------------------------------------------------------------- <eos>


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a b\nc\n", ["a", "b", EOS, "c", EOS]),
        ("a\n\n\nb\n", ["a", EOS, EOS, EOS, "b", EOS]),
        (" \n \n", [EOS, EOS]),
        ("a\x0bb\u2028c", ["a", "b", "c"]),
    ],
)
def test_a_line_end_is_an_eos(text: str, tokens: list[str]) -> None:
    assert _cut("word with eos").split(text) == tokens
    assert EOS not in _cut("word").split(text)


def test_an_eos_is_written_as_a_line_end_where_the_corpus_has_them() -> None:
    tokens = ["a", "b", EOS, EOS, "c", EOS]
    assert list(_cut("word with eos").pieces(tokens)) == ["a", " b", "\n", "\n", "c", "\n"]
    assert _cut("word").text(tokens) == "a b <eos> <eos> c <eos>"


# ---------------------------------------------------------------- byte pairs


def test_the_most_frequent_pair_is_merged_first() -> None:
    assert BpeTokenizer.learn(["xy\n" * 9 + "ab\n" * 3], 258).alphabet[256:] == ("xy", "ab")


@pytest.mark.parametrize("size", [257, 270, 300])
def test_byte_pairs_are_as_many_as_asked_the_bytes_among_them(size: int) -> None:
    alphabet = BpeTokenizer.learn([SPOKEN], size).alphabet
    assert len(alphabet) == len(set(alphabet)) == size
    assert set(alphabet[:256]) == set(BYTES)


def test_byte_pairs_end_when_nothing_is_left_to_merge() -> None:
    assert BpeTokenizer.learn(["abc\n"], 4096).split("abc\n") == ["abc", "Ċ"]
    assert len(BpeTokenizer.learn(["abc\n"], 4096).alphabet) == 258


def test_no_byte_pair_crosses_a_line_end() -> None:
    assert not [token for token in BpeTokenizer.learn(["a\n b\n" * 50], 4096).alphabet if "Ċ" in token[1:] + token[:-1]]


@given(seams=st.lists(st.integers(0, SPOKEN.count("\n")), max_size=4))
def test_what_is_learnt_does_not_depend_on_how_lines_are_grouped(seams: list[int]) -> None:
    lines = SPOKEN.splitlines(keepends=True)
    ends = [0, *sorted(seams), len(lines)]
    blocks = ["".join(lines[a:b]) for a, b in itertools.pairwise(ends)]
    assert BpeTokenizer.learn(blocks, 270).description == BpeTokenizer.learn([SPOKEN], 270).description


def test_what_is_learnt_is_the_same_in_every_process() -> None:
    program = (
        "import sys; from rnnlm_core.levels import BpeTokenizer; "
        "sys.stdout.write(BpeTokenizer.learn([sys.stdin.buffer.read().decode()], 300).description)"
    )
    learnt = [
        subprocess.run(
            [sys.executable, "-c", program],
            input=SPOKEN.encode(),
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "PYTHONIOENCODING": "utf-8"},
        ).stdout.decode()
        for seed, threads in (("1", "1"), ("2", "4"))
    ]
    here = _cut("bpe")
    assert isinstance(here, BpeTokenizer)
    assert learnt == [here.description] * 2


# ---------------------------------------------------------------- keeping


@pytest.mark.parametrize("level", LEVELS)
def test_a_tokenizer_is_made_again_from_what_it_kept(level: str, tmp_path: Path) -> None:
    cut = _cut(level)
    cut.write_files(tmp_path)
    again = read_tokenizer(cut.about, tmp_path)
    assert (type(again), again.about, again.alphabet) == (type(cut), cut.about, cut.alphabet)
    assert again.split(SPOKEN) == cut.split(SPOKEN)
    assert again.text(cut.split(SPOKEN)) == cut.text(cut.split(SPOKEN))
    assert [path.name for path in tmp_path.iterdir()] == ([BPE_FILE] if level == "bpe" else [])


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"null",
        b"{}",
        b'{"model": {"type": "BPE"}}',
        b"\xff\xfe",
        b'{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}',
    ],
)
def test_damaged_byte_pairs_are_noticed(damaged: bytes, tmp_path: Path) -> None:
    (tmp_path / BPE_FILE).write_bytes(damaged)
    with pytest.raises(IntegrityError, match=r"not a BPE tokenizer: .*bpe\.json: rebuild it"):
        read_tokenizer({"level": "bpe", "eos": "none"}, tmp_path)


# ---------------------------------------------------------------- levels by name


@pytest.mark.parametrize("level", ["char", "word", "byte"])
def test_a_level_knows_its_name(level: str) -> None:
    assert tokenizer(level).level == level


@pytest.mark.parametrize(("level", "kind"), [("char", CharTokenizer), ("word", WordTokenizer), ("byte", ByteTokenizer)])
def test_a_level_without_learning_is_had_by_name(level: str, kind: type) -> None:
    assert type(tokenizer(level)) is kind
    assert tokenizer(level).about == {"level": level, "eos": "none"}


def test_an_unknown_level_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown tokenizer level: words: did you mean word\? \(known: char, word, "):
        tokenizer("words")


def test_byte_pairs_have_to_be_learnt() -> None:
    with pytest.raises(ValueError, match="has to be learnt"):
        tokenizer("bpe")
