import gzip
import io
import lzma
import re
import tempfile
import tracemalloc
import unicodedata
import zipfile
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rnnlm_core import normalize
from rnnlm_core.errors import DataError, UsageError
from rnnlm_core.normalize import NORMALIZERS, normalizer, read_blocks
from rnnlm_core.tokenize import Part

TEXTS = st.text(
    st.sampled_from("aB \n\r\t.é中\u00a0\u2028\u0301\u1100\u1161\u11a8") | st.characters(exclude_categories=["Cs"]),
    max_size=60,
)
BLOCKS = st.integers(1, 40)


def _read(content: bytes, block_bytes: int = 1 << 20) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(content)
        return list(read_blocks(path, block_bytes))


def _normalized(name: str, content: bytes, block_bytes: int = 1 << 20, level: str = "char") -> str:
    joined = "".join(normalizer(name).blocks(iter(_read(content, block_bytes))))
    return joined.replace("\n", "") if normalizer(name).joins_lines and level == "char" else joined


def _corpus(path: Path, name: str, join_lines: bool = True) -> str:
    return "".join(Part(path, normalizer(name)).blocks(join_lines))


def _plain(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _letters(text: str) -> str:
    return re.sub("[^A-Za-z]+", " ", text)


# The rules of the book, written as the book writes them, over the whole text at once.
RULES = {
    "none": lambda text: text,
    "nfc": partial(unicodedata.normalize, "NFC"),
    "letters": lambda text: _letters(text).strip().lower(),
    "chinese": lambda text: text.replace("\n", " "),
    "d2l-lines": lambda text: "".join(_letters(line).strip().lower() for line in text.split("\n")),
    "d2l-whole": lambda text: _letters(text).lower(),
}


@settings(deadline=None, max_examples=300)
@given(TEXTS, BLOCKS)
@example("\ufeffa\r\nb\rc\n\n", 1)
@example("中\r\n文", 1)
@example("a\r", 2)
@example("1234567\r\n", 1)
@example("1234567\r\r\n89\r\n", 1)
@example("12345\r\n8901234\r\n\r", 7)
@example("\r\r\n\r", 1)
def test_reading_does_not_depend_on_block_seams(text: str, block_bytes: int) -> None:
    assert "".join(_read(text.encode(), block_bytes)) == _plain(text)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_normalizer_gives_the_rule_s_text_wherever_the_seams_are(name: str) -> None:
    @settings(deadline=None, max_examples=200)
    @given(TEXTS, BLOCKS)
    @example("a b c d e f g h i j k l m n o p q r s t u v w x y z", 1)
    @example("... a ... b ... \n ... \n", 1)
    @example("ab" * 20 + " c", 2)
    @example("e" + "\u0323\u0301" * 30 + "\u1100\u1161\u11a8" * 30, 1)
    def check(text: str, block_bytes: int) -> None:
        assert _normalized(name, text.encode(), block_bytes) == RULES[name](_plain(text))

    check()


@settings(deadline=None, max_examples=200)
@given(TEXTS, BLOCKS)
def test_the_book_s_lines_keep_their_words_apart_wherever_the_seams_are(text: str, block_bytes: int) -> None:
    words = _normalized("d2l-lines", text.encode(), block_bytes, level="word").split()
    assert words == _letters(_plain(text)).lower().split()


@settings(deadline=None, max_examples=200)
@given(TEXTS)
def test_the_letters_normalizer_fuses_no_words(text: str) -> None:
    words = _normalized("letters", text.encode()).split(" ") if _letters(text).strip() else []
    assert words == _normalized("d2l-whole", text.encode()).split()


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_prefix_is_normalised_like_a_text_that_goes_on(name: str) -> None:
    @settings(deadline=None, max_examples=100)
    @given(st.text(st.sampled_from("aB .中\u00a0"), max_size=20))
    def check(text: str) -> None:
        assert normalizer(name).prefix(text) + "z" == _normalized(name, (text + "z").encode())

    check()


def test_the_time_machine_by_lines_has_the_book_s_length(mirror: Path) -> None:
    text = _corpus(mirror / "timemachine.txt", "d2l-lines")
    assert len(text) == 170_580
    assert text.startswith("the time machine by h g wells")


def test_the_time_machine_as_a_whole_has_the_book_s_length(mirror: Path) -> None:
    text = _corpus(mirror / "timemachine.txt", "d2l-whole")
    assert len(text) == 173_428


def test_the_letters_of_the_time_machine_have_the_words_of_the_whole_edition(mirror: Path) -> None:
    letters, whole, lines = (
        _corpus(mirror / "timemachine.txt", name, join_lines=False).split()
        for name in ("letters", "d2l-whole", "d2l-lines")
    )
    assert letters == whole == lines
    assert len(letters) == 32_775


def test_the_book_s_lines_lose_only_the_space_between_lines(mirror: Path) -> None:
    lines, letters = (_corpus(mirror / "timemachine.txt", name) for name in ("d2l-lines", "letters"))
    assert lines.replace(" ", "") == letters.replace(" ", "")
    assert len(lines) < len(letters)


def test_the_lyrics_have_the_book_s_length_and_types(mirror: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(mirror / "jaychou_lyrics.txt.zip") as archive:
        text = _corpus(Path(archive.extract("jaychou_lyrics.txt", tmp_path)), "chinese")
    assert (len(text), len(set(text))) == (63_282, 2_582)
    assert len(set(text[:10_000])) == 1_027
    assert text.startswith("想要有直升机 想要和你飞到宇宙去")


# ---------------------------------------------------------------- parts of a text


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_part_is_exactly_its_characters_wherever_the_seams_are(name: str) -> None:
    @settings(max_examples=100)
    @given(TEXTS, BLOCKS, st.integers(0, 70), st.integers(0, 70), st.booleans())
    @example("ab\ncd\nef\ngh\n", 1, 1, 6, False)
    @example("ab\ncd\nef\ngh\n", 1, 4, 0, True)
    def check(text: str, block_bytes: int, start: int, max_chars: int, join_lines: bool) -> None:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            path = Path(folder) / "text.txt"
            path.write_bytes(text.encode())
            whole = _corpus(path, name, join_lines)
            patch.setattr(read_blocks, "__defaults__", (block_bytes, 0, None))
            blocks = list(Part(path, normalizer(name), start, max_chars).blocks(join_lines))
        assert "".join(blocks) == whole[start : start + max_chars if max_chars else None]

    check()


@settings(max_examples=100)
@given(TEXTS, BLOCKS, st.lists(st.integers(1, 30), max_size=4))
def test_parts_that_follow_each_other_are_the_text(text: str, block_bytes: int, lengths: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "text.txt"
        path.write_bytes(text.encode())
        patch.setattr(read_blocks, "__defaults__", (block_bytes, 0, None))
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        parts = [Part(path, normalizer("none"), *where) for where in zip(starts, lengths, strict=True)]
        parts.append(Part(path, normalizer("none"), sum(lengths)))
        assert "".join(block for part in parts for block in part.blocks(join_lines=True)) == _plain(text)


def test_a_part_reads_no_further_than_it_has_to(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"line\n" * 1_000_000 + b"\xff")
    assert "".join(Part(tmp_path / "text.txt", normalizer("none"), 2, 7).blocks(join_lines=True)) == "ne\nline"


def test_a_byte_order_mark_is_dropped_at_the_start_only() -> None:
    assert _read("\ufeffa\ufeff\n\ufeffb".encode()) == ["a\ufeff\n\ufeffb"]
    assert _read("\ufeff".encode()) == []


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("ab 中\n"), max_size=60), BLOCKS)
def test_blocks_are_those_of_the_text_whatever_its_line_ends_and_mark(text: str, block_bytes: int) -> None:
    blocks = _read(text.encode(), block_bytes)
    for same in (text.replace("\n", "\r\n"), text.replace("\n", "\r"), "\ufeff" + text):
        assert _read(same.encode(), block_bytes) == blocks


def test_line_ends_of_every_kind_become_line_feeds() -> None:
    assert _read(b"a\r\nb\rc\nd") == ["a\nb\nc\nd"]


def test_a_text_without_a_final_line_end_is_read_to_its_end() -> None:
    assert "".join(_read(b"a\nb")) == "a\nb"
    assert _read(b"x") == ["x"]


def test_an_empty_file_has_no_blocks() -> None:
    assert _read(b"") == []


def test_blocks_end_at_line_ends() -> None:
    blocks = _read(b"some words\n" * 200, 64)
    assert len(blocks) > 20
    assert all(block.endswith("\n") for block in blocks)


def test_a_long_line_is_cut_at_white_space() -> None:
    words = [f"word{i}" for i in range(500)]
    blocks = _read("\u00a0".join(words).encode(), 16)
    assert len(blocks) > 10
    assert [word for block in blocks for word in block.split()] == words


def test_a_giant_line_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "giant.txt"
    path.write_bytes(b"x" * 12_000_000)
    tracemalloc.start()
    total = sum(len(block) for block in read_blocks(path, 10_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 12_000_000
    assert peak < 1_000_000


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.sampled_from("aé中😀\r\n"), max_size=40),
    st.sampled_from([b"\xff", b"\xe9", b"\x80", b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf"]),
    st.sampled_from([b"", b"a", b" tail", b"\n"]),
    BLOCKS,
)
def test_the_first_bad_byte_is_named_with_its_offset(before: str, bad: bytes, after: bytes, block_bytes: int) -> None:
    content = before.encode() + bad + after
    with pytest.raises(UnicodeDecodeError) as plain:
        content.decode("utf-8")
    at = plain.value.start
    with pytest.raises(DataError, match=f"not UTF-8: byte 0x{content[at]:02x} at offset {at}: .*convert the file"):
        _read(content, block_bytes)


def test_latin_1_is_refused_with_the_offset() -> None:
    content = b"plain\n" * 1000 + "caf\xe9 au lait".encode("latin-1")
    with pytest.raises(DataError, match="byte 0xe9 at offset 6003"):
        _read(content, 4096)


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "words")
    return buffer.getvalue()


@pytest.mark.parametrize("block_bytes", [1, 4096])
@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(b"words", mtime=0), "gzip"),
        (lzma.compress(b"words"), "xz"),
        (_zipped(), "zip"),
        (b"%PDF-1.7", "PDF"),
        ("words".encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + "words".encode("utf-16-be"), "UTF-16"),
    ],
)
def test_what_is_no_text_is_named(content: bytes, name: str, block_bytes: int) -> None:
    with pytest.raises(DataError, match=f"not a plain text, looks like {name}: .*unpack or convert"):
        _read(content, block_bytes)


def test_a_letters_only_rule_reads_a_non_breaking_space_as_a_space() -> None:
    assert _normalized("letters", "a\u00a0\u00a0b".encode()) == "a b"
    assert _normalized("none", "a\u00a0b".encode()) == "a\u00a0b"


@pytest.mark.parametrize("name", ["letters", "d2l-lines"])
def test_a_letters_only_rule_leaves_nothing_of_chinese(name: str) -> None:
    assert _normalized(name, "分开\n不分开。".encode()) == ""


def test_the_chinese_rule_keeps_everything_but_line_ends() -> None:
    assert _normalized("chinese", "分开\r\n不分开。".encode()) == "分开 不分开。"


def test_no_letter_outside_the_alphabet_survives_lower_casing() -> None:
    assert _normalized("letters", "K\u212ax I\u0130y".encode()) == "k x i y"


def test_seams_of_spaces_give_one_space() -> None:
    pieces = ["a .", ". ", "!b", " ", "", "c "]
    assert "".join(NORMALIZERS["letters"].blocks(pieces)) == "a b c"
    assert "".join(NORMALIZERS["d2l-whole"].blocks(pieces)) == "a b c "
    assert all(
        not (x.endswith(" ") and y.startswith(" ")) for x, y in pairwise(NORMALIZERS["d2l-whole"].blocks(pieces))
    )


def test_an_unknown_normalizer_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown normalizer: letter: did you mean letters\?"):
        normalizer("letter")


PIECES = st.text(st.sampled_from("aZ é\n\r\t.—中😀\udc80\0"), max_size=40)


@given(PIECES)
def test_letters_found_in_arrays_are_those_of_the_regular_expression(text: str) -> None:
    expected = re.sub("[^A-Za-z]+", " ", text).lower()
    by_line = "\n".join(re.sub("[^A-Za-z]+", " ", line).strip().lower() for line in text.split("\n"))
    with pytest.MonkeyPatch.context() as patch:
        for few in (0, 1000):
            patch.setattr(normalize, "FEW", few)
            assert normalize._letters(text) == expected
            assert normalize._lines_of_letters(text) == by_line
