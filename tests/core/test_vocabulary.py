import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm_core import store as store_module
from rnnlm_core import tokenize as tokenize_module
from rnnlm_core.errors import DataError, IntegrityError
from rnnlm_core.levels import BYTES
from rnnlm_core.splits import split_lengths
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import token_tokenizer, tokenize
from rnnlm_core.vocabulary import UNKNOWN, Vocabulary, build_vocabulary

TOKENS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "中", "<unk>", "<eos>", "the"]), max_size=60)
RESERVED = st.lists(st.sampled_from(["<pad>", "<bos>", "a", "<unk>", "the"]), max_size=4)
ALL = (1, 0, 0)


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


def _built(
    store: Store,
    text: Handle,
    shares: tuple[int, int, int] | None = ALL,
    *,
    level: str = "word",
    rule: str = "none",
    min_freq: int = 1,
    reserved: tuple[str, ...] = (),
    **options: Any,
) -> Vocabulary:
    tokens = tokenize(text, rule, level, store, **options)
    built = build_vocabulary(tokens, shares, min_freq, reserved, store)
    vocabulary = Vocabulary.load(store.open(built.handle))
    assert built.size == len(vocabulary)
    return vocabulary


def _counts(tokens: list[str]) -> dict[str, int]:
    return {token: tokens.count(token) for token in dict.fromkeys(tokens)}


def _naive(tokens: list[str], min_freq: int, reserved: list[str]) -> list[str]:
    """Rank by repeated search, without sorting: the most frequent left, the earliest of equals."""
    counted, ranked = Counter(tokens), []
    while counted:
        best = max(counted.values())
        token = next(token for token in tokens if counted.get(token) == best)
        del counted[token]
        ranked.append((token, best))
    ordered = [UNKNOWN, *reserved, *(token for token, n in ranked if n >= min_freq)]
    return [token for i, token in enumerate(ordered) if token not in ordered[:i]]


@settings(deadline=None, max_examples=300)
@given(TOKENS, st.integers(1, 6), RESERVED)
def test_ids_follow_frequency_then_first_appearance(tokens: list[str], min_freq: int, reserved: list[str]) -> None:
    assert list(Vocabulary(_counts(tokens), min_freq, reserved).tokens) == _naive(tokens, min_freq, reserved)


@settings(deadline=None, max_examples=300)
@given(TOKENS, st.integers(1, 6), RESERVED)
def test_every_token_is_counted_once(tokens: list[str], min_freq: int, reserved: list[str]) -> None:
    vocabulary = Vocabulary(_counts(tokens), min_freq, reserved)
    assert sum(vocabulary.counts) == len(tokens)
    encoded = Counter(vocabulary[tokens])
    assert [encoded[i] for i in range(len(vocabulary))] == list(vocabulary.counts)


@settings(deadline=None, max_examples=200)
@given(TOKENS, st.integers(1, 4), RESERVED)
def test_tokens_and_ids_are_each_other_s_inverse(tokens: list[str], min_freq: int, reserved: list[str]) -> None:
    vocabulary = Vocabulary(_counts(tokens), min_freq, reserved)
    ids = list(range(len(vocabulary)))
    assert vocabulary[vocabulary.to_tokens(ids)] == ids
    assert vocabulary.to_tokens(vocabulary[tokens]) == [t if t in vocabulary else UNKNOWN for t in tokens]


@settings(deadline=None, max_examples=200)
@given(TOKENS, st.integers(1, 4), RESERVED)
def test_json_gives_the_vocabulary_back(tokens: list[str], min_freq: int, reserved: list[str]) -> None:
    vocabulary = Vocabulary(_counts(tokens), min_freq, reserved)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert (again.tokens, again.counts) == (vocabulary.tokens, vocabulary.counts)
    assert again[[*tokens, "never seen"]] == vocabulary[[*tokens, "never seen"]]
    assert again.to_json() == vocabulary.to_json()


def test_unknown_is_zero_and_reserved_tokens_come_next() -> None:
    vocabulary = Vocabulary({"b": 1, "a": 3}, reserved_tokens=["<pad>", "<bos>"])
    assert vocabulary.tokens == ("<unk>", "<pad>", "<bos>", "a", "b")
    assert vocabulary.counts == (0, 0, 0, 3, 1)


def test_single_tokens_and_lists_go_both_ways() -> None:
    vocabulary = Vocabulary({"b": 1, "a": 3})
    assert vocabulary["a"] == 1
    assert vocabulary["zzz"] == 0
    assert vocabulary[["b", "zzz", "a"]] == [2, 0, 1]
    assert vocabulary[("a",)] == [1]
    assert vocabulary.to_tokens(2) == "b"
    assert vocabulary.to_tokens([0, 1]) == ["<unk>", "a"]
    assert ("a" in vocabulary, "zzz" in vocabulary, len(vocabulary)) == (True, False, 3)


def test_rare_tokens_are_counted_as_unknown() -> None:
    vocabulary = Vocabulary({"a": 3, "b": 1, "c": 2, "d": 1}, min_freq=2)
    assert vocabulary.tokens == ("<unk>", "a", "c")
    assert vocabulary.counts == (2, 3, 2)


def test_a_reserved_token_is_kept_however_rare() -> None:
    vocabulary = Vocabulary({"a": 3, "b": 1}, min_freq=2, reserved_tokens=["b"])
    assert vocabulary.tokens == ("<unk>", "b", "a")
    assert vocabulary.counts == (0, 1, 3)


def test_an_unknown_written_in_the_text_is_unknown() -> None:
    vocabulary = Vocabulary({"<unk>": 5, "a": 1})
    assert vocabulary.tokens == ("<unk>", "a")
    assert vocabulary.counts == (5, 1)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"tokens": ["<unk>"]}',
        '{"tokens": [], "counts": []}',
        '{"tokens": ["a", "<unk>"], "counts": [1, 0]}',
        '{"tokens": ["<unk>", "a", "a"], "counts": [0, 1, 1]}',
        '{"tokens": ["<unk>", "a"], "counts": [0]}',
        '{"tokens": ["<unk>", 3], "counts": [0, 1]}',
        '{"tokens": ["<unk>", ["a"]], "counts": [0, 1]}',
        '{"tokens": ["<unk>", "a"], "counts": [0, "1"]}',
        '{"tokens": 5, "counts": 5}',
        '{"tokens": null, "counts": null}',
    ],
)
def test_a_damaged_vocabulary_is_noticed(damaged: str) -> None:
    with pytest.raises(IntegrityError, match=r"(not a|damaged) vocabulary.*: model/vocabulary\.json: rebuild it"):
        Vocabulary.from_json(damaged, "model/vocabulary.json")


def test_a_vocabulary_file_that_is_no_text_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(IntegrityError, match=r"not a vocabulary: .*vocabulary\.json"):
        Vocabulary.load(tmp_path)


def test_only_the_training_split_is_counted(store: Store) -> None:
    vocabulary = _built(store, _text(store, whole="a b a c d d d d d d"), (4, 1, 5))
    assert vocabulary.tokens == ("<unk>", "a", "b", "c")
    assert vocabulary.counts == (0, 2, 1, 1)


def test_only_the_training_file_is_counted(store: Store) -> None:
    vocabulary = _built(store, _text(store, train="b a a", valid="c c c", test="d d"), None)
    assert vocabulary.tokens == ("<unk>", "a", "b")


def test_counting_runs_across_row_groups(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize_module, "ROW_GROUP", 3)
    vocabulary = _built(store, _text(store, whole="abcabcabddx"), (10, 0, 1), level="char")
    assert dict(zip(vocabulary.tokens, vocabulary.counts, strict=True)) == {"<unk>": 0, "a": 3, "b": 3, "c": 2, "d": 2}


def test_ties_keep_first_appearance_across_row_groups(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize_module, "ROW_GROUP", 2)
    assert _built(store, _text(store, whole="zyxwzyxw"), level="char").tokens == ("<unk>", "z", "y", "x", "w")


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.sampled_from(["a", "b", "cc", "中"]), min_size=4, max_size=40),
    st.tuples(st.integers(1, 9), st.integers(0, 3), st.integers(0, 3)),
)
def test_the_built_vocabulary_is_that_of_the_first_tokens(words: list[str], shares: tuple[int, int, int]) -> None:
    first = words[: split_lengths(len(words), shares)["train"]]
    if not first:
        first = words
        shares = ALL
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        built = _built(store, _text(store, whole=" ".join(words)), shares)
    assert list(built.tokens) == _naive(first, 1, [])


def test_a_vocabulary_is_the_same_on_every_run(tmp_path: Path) -> None:
    handles = []
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        tokens = tokenize(_text(store, whole="c b a c 中 b"), "none", "word", store)
        handles.append(build_vocabulary(tokens, ALL, 1, (), store).handle)
    assert handles[0] == handles[1]


def test_min_freq_that_leaves_nothing_names_the_most_frequent(store: Store) -> None:
    text = _text(store, whole="a b a")
    message = r"min_freq` leaves none of \d+ different tokens, the most frequent occurs 2 times: 3: lower tokenizer"
    with pytest.raises(DataError, match=message):
        _built(store, text, min_freq=3)
    with pytest.raises(DataError, match=message):
        _built(store, text, min_freq=3, reserved=("<pad>", "<unk>", "<pad>"))


def test_a_text_of_reserved_tokens_alone_is_a_text(store: Store) -> None:
    vocabulary = _built(store, _text(store, whole="a b a"), reserved=("b", "a"))
    assert dict(zip(vocabulary.tokens, vocabulary.counts, strict=True)) == {"<unk>": 0, "b": 1, "a": 2}


def test_the_words_of_the_time_machine_have_the_book_s_counts(store: Store, mirror: Path) -> None:
    text = _text(store, whole=(mirror / "timemachine.txt").read_bytes())
    vocabulary = _built(store, text, rule="d2l-lines")
    assert len(vocabulary) == 4_580
    assert list(zip(vocabulary.tokens, vocabulary.counts, strict=True))[1:11] == [
        ("the", 2261),
        ("i", 1267),
        ("and", 1245),
        ("of", 1155),
        ("a", 816),
        ("to", 695),
        ("was", 552),
        ("in", 541),
        ("that", 443),
        ("my", 440),
    ]


def test_the_characters_of_the_time_machine_have_the_book_s_counts(store: Store, mirror: Path) -> None:
    text = _text(store, whole=(mirror / "timemachine.txt").read_bytes())
    vocabulary = _built(store, text, level="char", rule="d2l-lines")
    assert len(vocabulary) == 28
    assert list(zip(vocabulary.tokens, vocabulary.counts, strict=True))[:6] == [
        ("<unk>", 0),
        (" ", 29927),
        ("e", 17838),
        ("t", 13515),
        ("a", 11704),
        ("i", 10138),
    ]


def test_shakespeare_has_65_characters(store: Store, mirror: Path) -> None:
    text = _text(store, whole=(mirror / "tinyshakespeare.txt").read_bytes())
    assert len(_built(store, text, level="char")) == 66


def test_ptb_has_the_published_vocabulary(store: Store, mirror: Path) -> None:
    train = (mirror / "ptb" / "ptb.train.txt").read_bytes()
    vocabulary = _built(store, _text(store, whole=train), eos="line")
    assert len(vocabulary) == 10_000
    assert sum(vocabulary.counts) == 929_589
    assert vocabulary.counts[0] == train.split().count(b"<unk>")
    assert vocabulary.counts[vocabulary["<eos>"]] == train.count(b"\n") == 42_068


def test_the_lyrics_have_the_book_s_characters(store: Store, mirror: Path) -> None:
    with zipfile.ZipFile(mirror / "jaychou_lyrics.txt.zip") as archive:
        text = _text(store, whole=archive.read("jaychou_lyrics.txt"))
    whole = _built(store, text, level="char", rule="chinese")
    short = _built(store, text, level="char", rule="chinese", max_chars=10_000)
    assert (len(whole), sum(whole.counts)) == (2_582 + 1, 63_282)
    assert (len(short), sum(short.counts)) == (1_027 + 1, 10_000)


# ---------------------------------------------------------------- levels whose tokens are known beforehand


def test_the_vocabulary_of_bytes_is_complete_and_those_that_do_not_occur_come_last(store: Store) -> None:
    vocabulary = _built(store, _text(store, whole="baab éb"), level="byte")
    seen = ["b", "a", "Ġ", "Ã", "©"]
    assert vocabulary.tokens == ("<unk>", *seen, *(byte for byte in BYTES if byte not in seen))
    assert vocabulary.counts == (0, 3, 2, 1, 1, 1, *[0] * 251)


def test_the_vocabulary_of_byte_pairs_is_complete_and_those_that_do_not_occur_come_last(store: Store) -> None:
    text = _text(store, train="abc abc abd\n" * 4, valid="zz\n", test="zz\n")
    tokens = tokenize(text, "none", "bpe", store, bpe_size=261)
    alphabet = token_tokenizer(store.open(tokens.handle)).alphabet
    vocabulary = Vocabulary.load(store.open(build_vocabulary(tokens, None, 1, (), store).handle))
    assert sorted(vocabulary.tokens) == sorted(["<unk>", *alphabet])
    seen = sum(n > 0 for n in vocabulary.counts)
    assert vocabulary.counts[1:] == tuple(sorted(vocabulary.counts[1:], reverse=True))
    assert vocabulary.tokens[1 + seen :] == tuple(t for t in alphabet if t not in vocabulary.tokens[: 1 + seen])
    assert vocabulary.counts[vocabulary["z"]] == 0
    assert "z" in vocabulary


def test_a_rare_byte_keeps_its_id(store: Store) -> None:
    vocabulary = _built(store, _text(store, whole="aaab"), level="byte", min_freq=3)
    assert (vocabulary.counts[0], vocabulary.counts[vocabulary["b"]], len(vocabulary)) == (0, 1, 257)


def test_reserved_tokens_stand_before_the_bytes(store: Store) -> None:
    vocabulary = _built(store, _text(store, whole="aab"), level="byte", reserved=("<pad>", "b"))
    assert vocabulary.tokens[:4] == ("<unk>", "<pad>", "b", "a")
    assert len(vocabulary) == 258
