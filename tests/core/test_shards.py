"""A text in shards is the text: the same tokens, the same vocabulary, the same ids and facts, wherever it is cut."""

import random
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rnnlm_core import shards as module
from rnnlm_core.config import LINE_KEEPING
from rnnlm_core.corpus import (
    Corpus,
    build_corpus,
    encode_shard,
    id_batches,
    join_ids,
    shard_spans,
    split_ids,
)
from rnnlm_core.errors import DataError, IntegrityError
from rnnlm_core.mapped_ids import mapped_ids
from rnnlm_core.normalize import NORMALIZERS
from rnnlm_core.pieces import piece_files
from rnnlm_core.shards import Division, Shard, can_be_divided, divide, open_shard
from rnnlm_core.statistics import statistics
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import Tokens, file_tokens, join_tokens, learn_merges, token_facts, tokenize, tokenize_shard
from rnnlm_core.vocabulary import (
    BuiltVocabulary,
    Vocabulary,
    build_vocabulary,
    count_shard,
    join_counts,
    trained_lengths,
)

SHARES = (70, 20, 10)
LINES = b"".join(b"line %d of a text\n" % number for number in range(40))
CASES = [
    (rule, level, eos)
    for rule in NORMALIZERS
    for level, eos in (("char", "none"), ("word", "none"), ("word", "line"), ("byte", "none"), ("bpe", "none"))
    if can_be_divided(rule, level, eos, 0)
]
TEXTS = st.text(
    st.sampled_from("aaBc   \n\n\r\t.é中\u00a0\u2028\ufeff\u0301\u1100\u1161\u11a8")
    | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=120,
)


def put(store: Store, **files: bytes) -> Handle:
    with store.draft("text") as draft:
        for name, content in files.items():
            (draft.folder / f"{name}.txt").write_bytes(content)
        return draft.publish()


def as_a_whole(
    text: Handle, rule: str, level: str, eos: str, store: Store, shares: tuple[int, int, int] | None, most: int = 0
) -> tuple[Tokens, BuiltVocabulary, Corpus]:
    tokens = tokenize(text, rule, level, store, eos=eos, bpe_size=270, shares=shares)
    words = build_vocabulary(tokens, shares, 1, (), store)
    return tokens, words, build_corpus(tokens, words.handle, shares, most, store)


def in_shards(
    text: Handle, rule: str, level: str, eos: str, store: Store, shares: tuple[int, int, int] | None, most: int = 0,
    *, size: int = 8, places: int = 1,
) -> tuple[Tokens, BuiltVocabulary, Corpus]:  # fmt: skip
    """Do what the flow does, `places` shards at a time, and of these the last one first."""
    division = divide(text, size, store)
    merges, spans = None, (None,) * len(division.shards)
    if level == "bpe":
        learnt = learn_merges(division, rule, 270, shares, store)
        merges, spans = learnt.handle, learnt.spans

    def cut(shard: Shard, parts):
        return tokenize_shard(shard, rule, level, store, eos=eos, merges=merges, spans=parts)

    with ThreadPoolExecutor(places) as pool:

        def each(work, *arguments):
            begun = [pool.submit(work, *row) for row in reversed(list(zip(*arguments, strict=True)))]
            return [one.result() for one in reversed(begun)]

        parts = each(cut, division.shards, spans)
        tokens = join_tokens(parts, rule, text.sha256, store)
        counted = each(
            lambda part, length: count_shard(part, length, store) if length else None,
            parts,
            trained_lengths(parts, shares),
        )
        words = join_counts([one for one in counted if one is not None], parts[0], 1, (), store)
        encoded = each(
            lambda part, spans: encode_shard(part, spans, tokens.handle, words.handle, store) if spans else None,
            parts,
            shard_spans(parts, shares, most),
        )
        ids = [one for one in encoded if one is not None]
        return tokens, words, join_ids(ids, parts[0], tokens.handle, words.handle, store)


def tokens_of(tokens: Tokens, store: Store) -> dict[str, list[str]]:
    folder = store.open(tokens.handle)
    return {
        name: [dictionary[i] for indices, dictionary in file_tokens(folder, name) for i in indices]
        for name in token_facts(folder)["num_tokens"]
    }


def ids_of(corpus: Corpus, store: Store) -> dict[str, list[int]]:
    folder = store.open(corpus.handle)
    return {name: np.concatenate(list(split_ids(folder, name))).tolist() for name in corpus.splits}


def outcome(make, *arguments, **more):
    """What a way of making a corpus comes to: its result, or the error that a user is told."""
    try:
        return make(*arguments, **more)
    except DataError as error:
        return error.args[0]


@pytest.mark.parametrize(("rule", "level", "eos"), CASES)
def test_shards_make_the_tokens_the_vocabulary_and_the_ids_of_the_whole(
    rule: str, level: str, eos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnnlm_core.store.sync_file", lambda _: None)  # thousands of files that nobody shall keep

    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
    @given(TEXTS, st.integers(1, 40), st.integers(1, 4), st.sampled_from([0, 3]))
    @example("中\n文\n\na b\n  \nc d e f g h\n", 1, 3, 0)
    @example("\ufeffa b\n\ufeffc d\n\n\ne f\r\ng\rh\n", 2, 2, 0)
    @example("aa bb\n" * 20 + "\u0301c\n\n", 7, 1, 3)
    def check(text: str, size: int, places: int, most: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder))
            handle = put(store, whole=text.encode())
            whole = outcome(as_a_whole, handle, rule, level, eos, store, SHARES, most)
            found = outcome(in_shards, handle, rule, level, eos, store, SHARES, most, size=size, places=places)
            if isinstance(whole, str):
                assert found == whole
                return
            assert tokens_of(found[0], store) == tokens_of(whole[0], store)
            assert found[1] == whole[1]
            assert ids_of(found[2], store) == ids_of(whole[2], store)
            assert found[2].splits == whole[2].splits
            again = in_shards(handle, rule, level, eos, store, SHARES, most, size=size, places=5 - places)
            assert again == found
            # One shard is what there was before there were any.
            assert in_shards(handle, rule, level, eos, store, SHARES, most, size=1 << 20) == whole

    check()


@pytest.mark.parametrize("level", ["char", "word", "bpe"])
def test_a_text_that_comes_divided_keeps_its_files(store: Store, level: str) -> None:
    handle = put(store, train=b"a b c\nd e f\n" * 9, valid=b"a b\n", test=b"f e\nd c b\n" * 3)
    whole = as_a_whole(handle, "none", level, "none", store, None)
    found = in_shards(handle, "none", level, "none", store, None, size=20)
    assert tokens_of(found[0], store) == tokens_of(whole[0], store)
    assert (found[1], found[2].splits, list(found[2].splits)) == (whole[1], whole[2].splits, list(whole[2].splits))
    assert ids_of(found[2], store) == ids_of(whole[2], store)
    names = [path.name for path in piece_files(store.path(found[0].handle), "train")]
    assert names == [f"train-{number:05d}-of-00005.parquet" for number in range(5)]
    assert (store.path(found[0].handle) / "valid.parquet").exists()


@given(st.binary(max_size=200).map(lambda raw: raw.replace(b"\0", b"\n")), st.integers(1, 50))
def test_shards_are_whole_lines_one_after_the_other(content: bytes, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        handle = put(store, whole=content)
        found = divide(handle, size, store).shards
        pieces = [content[shard.start : shard.stop] for shard in found]
        assert b"".join(pieces) == content
        assert all(piece.endswith(b"\n") and len(piece) >= size for piece in pieces[:-1])
        assert all(b"\n" not in piece[size - 1 : -1] for piece in pieces)
        assert [shard.last for shard in found] == [False] * (len(found) - 1) + [True] * bool(found)
        assert all(left.stop == right.start for left, right in pairwise(found))


def test_a_text_that_grew_has_its_old_shards_still(store: Store) -> None:
    text = b"one line of text\n" * 20
    before = divide(put(store, whole=text), 60, store).shards
    after = divide(put(store, whole=text + b"and more\n" * 9), 60, store).shards
    shared = [shard.cache_identity() for shard in before[:-1]]
    assert [shard.cache_identity() for shard in after][: len(shared)] == shared
    assert len(after) > len(before) > 3


def test_a_line_longer_than_a_shard_is_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 16)
    handle = put(store, whole=b"x" * 500 + b"\n" + b"y" * 10 + b"\nz")
    assert [(shard.start, shard.stop) for shard in divide(handle, 50, store).shards] == [(0, 501), (501, 513)]


def test_a_damaged_shard_is_refused(store: Store) -> None:
    handle = put(store, whole=b"some text\n" * 9)
    first, second, *_ = divide(handle, 20, store).shards
    path = store.path(handle) / "whole.txt"
    content = bytearray(path.read_bytes())
    content[first.start] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"has a damaged whole\.txt: .*whole\.txt \(bytes 0 to 20\): run the same"):
        open_shard(first, store)
    assert open_shard(second, store) == path
    path.unlink()
    with pytest.raises(IntegrityError, match="lacks whole"):
        tokenize_shard(second, "none", "char", store)


def test_bad_bytes_are_told_by_their_place_in_the_file(store: Store) -> None:
    handle = put(store, whole=b"good line\n" * 5 + b"bad \xff line\n")
    shards = divide(handle, 20, store).shards
    with pytest.raises(DataError, match="byte 0xff at offset 54"):
        tokenize_shard(shards[-1], "none", "char", store)


def test_what_begins_like_another_format_in_the_middle_is_text(store: Store) -> None:
    handle = put(store, whole=b"a line\nBZh is how bzip2 begins\n<html> is how a page does\n")
    text = "a line\nBZh is how bzip2 begins\n<html> is how a page does\n"
    tokens, _, _ = in_shards(handle, "none", "char", "none", store, SHARES, size=4)
    assert "".join(tokens_of(tokens, store)["whole"]) == text


@pytest.mark.parametrize(
    ("rule", "level", "eos", "most", "can"),
    [
        ("none", "char", "none", 0, True),
        ("none", "char", "none", 5, False),
        ("none", "bpe", "none", 0, True),
        ("d2l-lines", "bpe", "none", 0, False),
        ("chinese", "bpe", "none", 0, False),
        ("d2l-lines", "word", "line", 0, True),
        ("letters", "word", "line", 0, False),
    ],
)
def test_only_what_stays_the_same_is_divided(rule: str, level: str, eos: str, most: int, can: bool) -> None:
    assert can_be_divided(rule, level, eos, most) == can
    assert eos == "none" or can == (rule in LINE_KEEPING)


def test_the_pieces_take_no_room_of_their_own_and_are_read_by_all(store: Store) -> None:
    draw = random.Random(0)  # noqa: S311 - no secret
    text = "".join("".join(draw.choices("abcdef ", k=30)) + "\n" for _ in range(60))
    handle = put(store, whole=text.encode())
    tokens, words, corpus = in_shards(handle, "none", "char", "none", store, SHARES, size=300)
    whole = as_a_whole(handle, "none", "char", "none", store, SHARES)
    for made, name in ((tokens.handle, "whole"), (corpus.handle, "train")):
        files = piece_files(store.open(made), name)
        assert len(files) > 3
        assert all(path.stat().st_nlink == 2 for path in files)
    ids = ids_of(corpus, store)["train"]
    assert mapped_ids(corpus.handle, "train", words.size, store).tolist() == ids
    files = piece_files(store.path(corpus.handle), "train")
    assert ds.dataset([str(path) for path in files]).to_table()["id"].to_pylist() == ids
    assert sum(len(batch) for path in files for batch in id_batches(path)) == len(ids)
    assert statistics(tokens, store).grams == statistics(whole[0], store).grams
    assert Vocabulary.load(store.open(words.handle)).to_tokens(ids) == list(text[: len(ids)])
    # What can read a set can also make a corpus of it without shards.
    assert build_corpus(tokens, words.handle, SHARES, 0, store).splits == corpus.splits


def test_a_damaged_piece_is_found_in_both_places_and_made_again(store: Store) -> None:
    handle = put(store, whole=LINES)
    made = in_shards(handle, "none", "char", "none", store, SHARES, size=100)
    path = piece_files(store.path(made[2].handle), "train")[1]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "damaged train-00001-of-" in store.fault(made[2].handle)
    assert [bool(store.fault(one)) for one in store.handles("pieces")].count(True) == 1
    assert in_shards(handle, "none", "char", "none", store, SHARES, size=100) == made
    assert not any(store.fault(one) for one in store.handles())


def test_a_disk_without_links_gets_copies(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = put(store, whole=LINES)
    linked = in_shards(handle, "none", "char", "none", store, SHARES, size=100)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    other = Store(store.root.with_name("other"))
    copied = in_shards(put(other, whole=LINES), "none", "char", "none", other, SHARES, size=100)
    assert copied == linked
    assert all(path.stat().st_nlink == 1 for path in piece_files(other.open(copied[2].handle), "train"))


def test_nothing_is_adopted_from_what_is_not_whole(store: Store) -> None:
    handle = put(store, whole=b"text")
    with store.draft("tokens") as draft:
        with pytest.raises(IntegrityError, match="has a changed manifest"):
            draft.adopt(handle, "other.txt", "a")
        with pytest.raises(IntegrityError, match="is missing"):
            draft.adopt(Handle("text", "0" * 64), "whole.txt", "a")
        (store.path(handle) / "manifest.json").write_text("{}")
        with pytest.raises(IntegrityError, match="has a changed manifest"):
            draft.adopt(handle, "whole.txt", "a")


def test_two_that_join_the_same_at_once_make_one(store: Store) -> None:
    handle = put(store, whole=LINES)
    start = threading.Barrier(4)

    def make(_: int) -> object:
        start.wait()
        return in_shards(handle, "none", "word", "none", store, SHARES, size=100)

    with ThreadPoolExecutor(4) as pool:
        assert len({str(made) for made in pool.map(make, range(4))}) == 1


def test_division_of_nothing_is_empty(store: Store) -> None:
    assert divide(put(store, whole=b""), 5, store) == Division(())
