import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rnnlm_core import normalize
from rnnlm_core import store as store_module
from rnnlm_core import tokenize as tokenize_module
from rnnlm_core.errors import DataError, IntegrityError, UsageError
from rnnlm_core.levels import EOS, ByteTokenizer
from rnnlm_core.splits import split_lengths
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import token_batches, token_facts, token_tokenizer, tokenize

TEXTS = st.text(
    st.sampled_from("ab \n\t é中\u00a0\u3000\x1c\x85") | st.characters(exclude_categories=["Cs"]), max_size=80
)


SHARES = (80, 10, 10)
SPOKEN = "the end of the line, the other end\nder Fluß, das Flüßchen\n分开 不分开\n👩‍👩‍👧 e\u0301\n" * 10


@pytest.fixture(autouse=True, scope="module")
def _quick_disk() -> Iterator[None]:
    """Durability is shown in `test_store.py`; here hundreds of small artifacts need not reach the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "sync_file", lambda *_: None)
        yield


def _text(store: Store, **files: str | bytes) -> Handle:
    with store.draft("text") as draft:
        for split, content in files.items():
            (draft.folder / f"{split}.txt").write_bytes(content.encode() if isinstance(content, str) else content)
        return draft.publish()


def _tokens(path: Path) -> list[str]:
    return [dictionary[i] for indices, dictionary in token_batches(path) for i in indices]


def _tokenized(text: str, level: str, rule: str = "none", **options: Any) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        tokens = tokenize(_text(store, whole=text), rule, level, store, **options)
        (path,) = store.open(tokens.handle).glob("*.parquet")
        return _tokens(path)


def _plain(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _small_pieces(patch: pytest.MonkeyPatch, tokens: int, block_bytes: int) -> None:
    patch.setattr(tokenize_module, "ROW_GROUP", tokens)
    patch.setattr(normalize.read_blocks, "__defaults__", (block_bytes, 0, None))


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_characters_are_those_of_the_text(text: str) -> None:
    assume(_plain(text).strip())
    assert _tokenized(text, "char") == list(_plain(text))


@settings(deadline=None, max_examples=60)
@given(TEXTS)
def test_words_are_what_python_splits(text: str) -> None:
    assume(_plain(text).split())
    assert _tokenized(text, "word") == _plain(text).split()


@settings(deadline=None, max_examples=40)
@given(TEXTS, st.integers(1, 20), st.integers(1, 20))
def test_characters_do_not_depend_on_row_groups_and_blocks(text: str, row_group: int, block_bytes: int) -> None:
    assume(_plain(text))
    with pytest.MonkeyPatch.context() as patch:
        _small_pieces(patch, row_group, block_bytes)
        assert _tokenized(text, "char") == list(_plain(text))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(["a", "bb", "中文", "the"]), min_size=1, max_size=60),
    st.sampled_from([" ", "\n", "\u00a0"]),
)
def test_words_do_not_depend_on_row_groups_and_blocks(words: list[str], space: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _small_pieces(patch, 5, 2)
        assert _tokenized(space.join(words), "word") == words


def test_every_white_space_of_python_separates_words() -> None:
    spaces = [chr(point) for point in range(0x110000) if chr(point).isspace()]
    assert _tokenized("".join(f"a{space}b" for space in spaces), "word") == ["a", *["ba"] * (len(spaces) - 1), "b"]


def test_a_row_group_holds_a_bounded_number_of_tokens(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_pieces(monkeypatch, 100, 64)
    tokens = tokenize(_text(store, whole="ab cd\n" * 200), "none", "char", store)
    metadata = pq.read_metadata(store.open(tokens.handle) / "whole.parquet")
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(sizes) == 1200
    assert max(sizes) <= 100


def test_a_dictionary_is_in_order_of_first_appearance(store: Store) -> None:
    tokens = tokenize(_text(store, whole="cabbage 中é中"), "none", "char", store)
    ((indices, dictionary),) = token_batches(store.open(tokens.handle) / "whole.parquet")
    assert dictionary == ["c", "a", "b", "g", "e", " ", "中", "é"]
    assert indices.tolist() == [0, 1, 2, 2, 1, 3, 4, 5, 6, 7, 6]


def test_more_words_than_a_dictionary_page_holds_are_kept(store: Store) -> None:
    words = [f"{i}-{'x' * 40}" for i in range(40_000)]
    tokens = tokenize(_text(store, whole=" ".join([*words, *words])), "none", "word", store)
    assert tokens.num_tokens == {"whole": 80_000}
    assert _tokens(store.open(tokens.handle) / "whole.parquet") == [*words, *words]


def test_each_split_has_its_own_file(store: Store) -> None:
    tokens = tokenize(_text(store, train="a b c", valid="d e", test="f"), "none", "word", store)
    assert tokens.num_tokens == {"train": 3, "valid": 2, "test": 1}
    assert _tokens(store.open(tokens.handle) / "valid.parquet") == ["d", "e"]


def test_the_facts_go_with_the_tokens(store: Store) -> None:
    tokens = tokenize(_text(store, whole="One, two"), "letters", "word", store)
    assert token_facts(store.open(tokens.handle)) == {
        "level": "word",
        "eos": "none",
        "normalizer": "letters",
        "max_chars": 0,
        "num_tokens": {"whole": 2},
    }


def test_the_book_s_lines_meet_in_characters_and_stay_apart_in_words(store: Store) -> None:
    text = _text(store, whole="The end.\nOf it\n")
    chars = tokenize(text, "d2l-lines", "char", store)
    words = tokenize(text, "d2l-lines", "word", store)
    assert "".join(_tokens(store.open(chars.handle) / "whole.parquet")) == "the endof it"
    assert _tokens(store.open(words.handle) / "whole.parquet") == ["the", "end", "of", "it"]


@pytest.mark.parametrize("level", ["char", "word", "byte", "bpe"])
def test_the_same_text_gives_the_same_bytes(tmp_path: Path, level: str) -> None:
    handles = []
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        text = _text(store, whole="the time machine " * 50)
        handles.append(tokenize(text, "letters", level, store, bpe_size=270, shares=SHARES).handle)
    assert handles[0] == handles[1]


def test_levels_and_normalizers_give_different_artifacts(store: Store) -> None:
    text = _text(store, whole="abc")
    handles = {tokenize(text, rule, level, store).handle for rule in ("none", "letters") for level in ("char", "word")}
    assert len(handles) == 4


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("rule", ["letters", "d2l-lines"])
def test_a_text_of_which_nothing_is_left_names_the_remedy(store: Store, rule: str, level: str) -> None:
    remedy = (
        f"no tokens left after normalizer `{rule}`: .*: use `--set corpus.normalizer=none`, which keeps every script"
    )
    with pytest.raises(DataError, match=remedy):
        tokenize(_text(store, whole="分开\n不分开"), rule, level, store)
    assert list((store.root / "tokens").iterdir()) == []


def test_white_space_alone_has_no_words(store: Store) -> None:
    with pytest.raises(DataError, match=r"normalizer `none`: .*: give a text that holds more than white space"):
        tokenize(_text(store, whole=" \n\t\u00a0\n"), "none", "word", store)


def test_one_character_is_one_token(store: Store) -> None:
    assert tokenize(_text(store, whole="x"), "none", "char", store).num_tokens == {"whole": 1}


def test_bytes_that_are_not_utf_8_are_refused(store: Store) -> None:
    with pytest.raises(DataError, match="not UTF-8: byte 0xe9 at offset 3"):
        tokenize(_text(store, whole=b"caf\xe9"), "none", "char", store)


def test_a_damaged_text_is_not_tokenized(store: Store) -> None:
    text = _text(store, whole="abc")
    (store.path(text) / "whole.txt").write_text("abd")
    with pytest.raises(IntegrityError, match=r"has a damaged whole\.txt"):
        tokenize(text, "none", "char", store)


def test_unknown_levels_and_normalizers_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match=r"unknown tokenizer level: words: did you mean word\?"):
        tokenize(_text(store, whole="abc"), "none", "words", store)
    with pytest.raises(UsageError, match="unknown normalizer: lines"):
        tokenize(_text(store, whole="abc"), "lines", "char", store)


def test_a_flipped_byte_is_noticed_on_reading(store: Store) -> None:
    tokens = tokenize(_text(store, whole="".join(map(chr, range(0x4E00, 0x5E00)))), "none", "char", store)
    path = store.open(tokens.handle) / "whole.parquet"
    column = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    content[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        _tokens(path)


# ---------------------------------------------------------------- bytes and byte pairs


@pytest.mark.parametrize("options", [{}, {"bpe_size": 270, "shares": (1, 0, 0)}], ids=["byte", "bpe"])
@settings(max_examples=15)
@given(text=TEXTS, row_group=st.integers(4, 40), block_bytes=st.integers(1, 40))
def test_bytes_do_not_depend_on_row_groups_and_blocks(
    options: dict[str, Any], text: str, row_group: int, block_bytes: int
) -> None:
    text = f"a{text}\n"
    with pytest.MonkeyPatch.context() as patch:
        _small_pieces(patch, row_group, block_bytes)
        tokens = _tokenized(text, "bpe" if options else "byte", **options)
    assert ByteTokenizer().text(tokens) == _plain(text)


def test_a_row_group_holds_a_bounded_number_of_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _small_pieces(monkeypatch, 100, 4096)
    tokens = tokenize(_text(store, whole="👩a" * 500), "none", "byte", store)
    metadata = pq.read_metadata(store.open(tokens.handle) / "whole.parquet")
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert (sum(sizes), max(sizes) <= 100) == (2_500, True)


def test_byte_pairs_are_learnt_from_the_training_part_alone(store: Store) -> None:
    text = _text(store, whole="ab cd ab cd\n" * 8 + "zq" * 100)

    def learnt(shares: tuple[int, int, int]) -> tuple[str, ...]:
        tokens = tokenize(text, "none", "bpe", store, bpe_size=300, shares=shares)
        return token_tokenizer(store.open(tokens.handle)).alphabet[256:]

    assert "zq" in learnt((100, 0, 0))
    assert not [token for token in learnt((96, 100, 100)) if "z" in token or "q" in token]
    assert "ab" in learnt((96, 100, 100))


def test_byte_pairs_are_learnt_from_the_training_file_alone(store: Store) -> None:
    text = _text(store, train="ab ab\n" * 9, valid="zq zq\n" * 99, test="zq\n" * 99)
    tokens = tokenize(text, "none", "bpe", store, bpe_size=300)
    learnt = token_tokenizer(store.open(tokens.handle)).alphabet[256:]
    assert "ab" in learnt
    assert not [token for token in learnt if "z" in token]


@pytest.mark.parametrize("shares", [(80, 10, 10), (1, 1, 1), (90, 10, 0), (100, 0, 0)])
@pytest.mark.parametrize("max_chars", [0, 101])
def test_a_text_is_divided_by_characters_before_byte_pairs_are_learnt(
    store: Store, shares: tuple[int, int, int], max_chars: int
) -> None:
    tokens = tokenize(
        _text(store, whole=SPOKEN), "none", "bpe", store, bpe_size=270, shares=shares, max_chars=max_chars
    )
    folder = store.open(tokens.handle)
    parts = {path.stem: ByteTokenizer().text(_tokens(path)) for path in folder.glob("*.parquet")}
    whole = SPOKEN[: max_chars or None]
    assert {name: len(part) for name, part in parts.items()} == {
        name: length for name, length in split_lengths(len(whole), shares).items() if length
    }
    assert "".join(parts[name] for name in ("train", "valid", "test") if name in parts) == whole
    assert tokens.num_tokens == {name: len(_tokens(folder / f"{name}.parquet")) for name in parts}


def test_byte_pairs_are_kept_with_the_tokens(store: Store) -> None:
    tokens = tokenize(_text(store, whole=SPOKEN), "none", "bpe", store, bpe_size=270, shares=SHARES)
    folder = store.open(tokens.handle)
    cut = token_tokenizer(folder)
    assert len(cut.alphabet) == 270
    assert cut.split(SPOKEN[: len(SPOKEN) * 8 // 10]) == _tokens(folder / "train.parquet")
    (folder / "bpe.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"not a BPE tokenizer: .*bpe\.json"):
        token_tokenizer(folder)
    with pytest.raises(IntegrityError, match=r"has a damaged bpe\.json"):
        store.open(tokens.handle)


def test_other_sizes_and_other_shares_are_other_byte_pairs(store: Store) -> None:
    text = _text(store, whole=SPOKEN)
    handles = {
        tokenize(text, "none", "bpe", store, bpe_size=size, shares=shares).handle
        for size in (270, 280)
        for shares in ((80, 10, 10), (50, 25, 25))
    }
    assert len(handles) == 4


@pytest.mark.parametrize("rule", ["none", "letters", "chinese", "d2l-lines", "d2l-whole"])
def test_byte_pairs_do_not_depend_on_block_seams(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the end of it\nthe other line\n" * 30
    whole = _tokenized(text, "bpe", rule, bpe_size=290, shares=(1, 0, 0))
    _small_pieces(monkeypatch, 1 << 20, 16)
    assert _tokenized(text, "bpe", rule, bpe_size=290, shares=(1, 0, 0)) == whole


@pytest.mark.parametrize("rule", ["letters", "d2l-lines"])
def test_byte_pairs_of_nothing_name_the_remedy(store: Store, rule: str) -> None:
    with pytest.raises(DataError, match=rf"no tokens left after normalizer `{rule}`: .*corpus\.normalizer=none"):
        tokenize(_text(store, whole="分开\n不分开"), rule, "bpe", store, bpe_size=270, shares=SHARES)


# ---------------------------------------------------------------- <eos>


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a b\nc\n", ["a", "b", EOS, "c", EOS]),
        ("a b\nc", ["a", "b", EOS, "c", EOS]),
        ("a\r\n\r\n b", ["a", EOS, EOS, "b", EOS]),
        ("a\n ", ["a", EOS, EOS]),
    ],
)
def test_every_line_has_one_eos(text: str, tokens: list[str]) -> None:
    assert _tokenized(text, "word", eos="line") == tokens
    assert EOS not in _tokenized(text + "x", "word")


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.sampled_from(["a", "bb", "中文", "the"]), max_size=12), min_size=1, max_size=12).filter(any),
    st.booleans(),
    st.integers(1, 20),
)
def test_an_eos_does_not_depend_on_blocks(lines: list[list[str]], last_ends: bool, block_bytes: int) -> None:
    text = "\n".join(map(" ".join, lines)) + ("\n" if last_ends or not lines[-1] else "")
    with pytest.MonkeyPatch.context() as patch:
        _small_pieces(patch, 5, block_bytes)
        assert _tokenized(text, "word", eos="line") == [word for line in lines for word in [*line, EOS]]


def test_lines_of_letters_have_one_eos_each() -> None:
    assert _tokenized("The end.\n...\nOf it", "word", "d2l-lines", eos="line") == [
        "the",
        "end",
        EOS,
        EOS,
        "of",
        "it",
        EOS,
    ]


def test_whether_lines_end_in_eos_goes_with_the_tokens(store: Store) -> None:
    tokens = tokenize(_text(store, whole="a\n"), "none", "word", store, eos="line")
    facts = token_facts(store.open(tokens.handle))
    assert (facts["eos"], facts["num_tokens"]) == ("line", {"whole": 2})
    assert token_tokenizer(store.open(tokens.handle)).split("a\n") == ["a", EOS]


# ---------------------------------------------------------------- max_chars


@settings(max_examples=30)
@given(TEXTS, st.integers(1, 60), st.integers(1, 20), st.integers(1, 20))
def test_max_chars_keeps_exactly_the_first(text: str, max_chars: int, row_group: int, block_bytes: int) -> None:
    assume(_plain(text))
    with pytest.MonkeyPatch.context() as patch:
        _small_pieces(patch, row_group, block_bytes)
        assert _tokenized(text, "char", max_chars=max_chars) == list(_plain(text)[:max_chars])


def test_max_chars_counts_the_normalised_text(store: Store) -> None:
    assert _tokenized("... The End!\n(of it)", "char", "letters", max_chars=9) == list("the end o")
    assert _tokenized("... The End!\n(of it)", "word", "letters", max_chars=9) == ["the", "end", "o"]
    assert _tokenized("中文 ab", "byte", max_chars=2) == ByteTokenizer().split("中文")
    assert _tokenized("a b\nc d\n", "word", max_chars=5, eos="line") == ["a", "b", EOS, "c"]
    assert _tokenized("a b\nc d", "word", max_chars=9, eos="line") == ["a", "b", EOS, "c", "d", EOS]
    facts = token_facts(store.open(tokenize(_text(store, whole="abc"), "none", "char", store, max_chars=2).handle))
    assert (facts["max_chars"], facts["num_tokens"]) == (2, {"whole": 2})


def test_max_chars_beyond_the_end_keeps_everything() -> None:
    assert _tokenized("abc", "char", max_chars=10**9) == ["a", "b", "c"]


def test_the_time_machine_has_its_words_and_characters(store: Store, mirror: Path) -> None:
    text = _text(store, whole=(mirror / "timemachine.txt").read_bytes())
    counts = {
        (rule, level): tokenize(text, rule, level, store).num_tokens["whole"]
        for rule, level in [("d2l-lines", "char"), ("d2l-whole", "char"), ("letters", "word")]
    }
    assert counts == {("d2l-lines", "char"): 170_580, ("d2l-whole", "char"): 173_428, ("letters", "word"): 32_775}


@pytest.mark.parametrize(("kinds", "dtype"), [(256, np.uint8), (257, np.int32)])
def test_indices_are_bytes_where_there_are_few_kinds(kinds: int, dtype: Any, store: Store) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + kinds)))
    tokens = tokenize(_text(store, whole=text), "none", "char", store)
    for indices, dictionary in token_batches(store.open(tokens.handle) / "whole.parquet"):
        assert indices.dtype == dtype
        assert "".join(dictionary[i] for i in indices) == text


@pytest.mark.parametrize("level", ["char", "word", "byte", "bpe"])
def test_a_text_of_white_space_alone_is_no_text(level: str, store: Store) -> None:
    options: dict[str, Any] = {"bpe_size": 300, "shares": (1, 0, 0)} if level == "bpe" else {}
    with pytest.raises(DataError, match=r"no tokens left after normalizer `none`: .*more than white space"):
        tokenize(_text(store, whole=" \n\t\u3000" * 50), "none", level, store, **options)
    tokenize(_text(store, whole=" \n\t\u3000" * 50 + "x"), "none", level, store, **options)
