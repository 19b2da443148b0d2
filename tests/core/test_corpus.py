import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnlm_core import corpus as corpus_module
from rnnlm_core import normalize
from rnnlm_core import store as store_module
from rnnlm_core import tokenize as tokenize_module
from rnnlm_core.corpus import (
    Corpus,
    SplitFacts,
    build_corpus,
    corpus_conventions,
    corpus_facts,
    id_batches,
    id_type,
)
from rnnlm_core.errors import DataError, IntegrityError
from rnnlm_core.levels import BpeTokenizer, Tokenizer, WordTokenizer
from rnnlm_core.splits import split_lengths
from rnnlm_core.store import Handle, Store
from rnnlm_core.tokenize import tokenize
from rnnlm_core.vocabulary import Vocabulary, build_vocabulary

Shares = tuple[int, int, int]
SPLITS = ("train", "valid", "test")


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
    shares: Shares | None,
    *,
    level: str = "char",
    rule: str = "none",
    min_freq: int = 1,
    max_tokens: int = 0,
    **options: Any,
) -> tuple[Corpus, Vocabulary]:
    tokens = tokenize(text, rule, level, store, shares=shares, **options)
    vocabulary = build_vocabulary(tokens, shares, min_freq, (), store)
    corpus = build_corpus(tokens, vocabulary.handle, shares, max_tokens, store)
    return corpus, Vocabulary.load(store.open(vocabulary.handle))


def read_ids(path: Path) -> np.ndarray:
    return np.concatenate(list(id_batches(path)))


def _ids(store: Store, corpus: Corpus) -> dict[str, list[int]]:
    folder = store.open(corpus.handle)
    return {name: read_ids(folder / f"{name}.parquet").tolist() for name in corpus.splits}


@settings(deadline=None, max_examples=25)
@given(
    st.text(st.sampled_from("abcde \n中"), min_size=20, max_size=200),
    st.tuples(st.integers(2, 9), st.sampled_from([0, 2, 3]), st.sampled_from([0, 2, 3])),
    st.integers(1, 50),
)
def test_the_splits_together_are_the_stream_again(text: str, shares: Shares, row_group: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(tokenize_module, "ROW_GROUP", row_group)
        patch.setattr(corpus_module, "ROW_GROUP", row_group)
        patch.setattr(normalize.read_blocks, "__defaults__", (16, 0, None))
        store = Store(Path(folder))
        corpus, vocabulary = _built(store, _text(store, whole=text), shares)
        ids = _ids(store, corpus)
    assert [name for name, share in zip(SPLITS, shares, strict=True) if share] == list(ids)
    assert [i for name in ids for i in ids[name]] == vocabulary[list(text)]
    assert {name: len(ids.get(name, [])) for name in SPLITS} == split_lengths(len(text), shares)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from(["a", "bb", "the", "中文", "xyzzy", "<unk>"]), min_size=20, max_size=80), st.integers(1, 4)
)
def test_the_facts_are_those_of_the_written_ids(words: list[str], min_freq: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        text = _text(store, whole=" ".join(words))
        corpus, vocabulary = _built(store, text, (2, 1, 1), level="word", min_freq=min_freq)
        ids = _ids(store, corpus)
    start = 0
    for name, facts in corpus.splits.items():
        part = words[start : start + facts.num_tokens]
        assert ids[name] == vocabulary[part]
        assert facts.num_unknown == sum(word not in vocabulary for word in part)
        assert facts.predicted_chars == len(" ".join(part)) - len(part[0])
        start += facts.num_tokens
    assert start == len(words)


def test_characters_predict_all_but_the_first(store: Store) -> None:
    corpus, _ = _built(store, _text(store, whole="abcdefghij" * 10), (80, 10, 10))
    assert {name: facts.predicted_chars for name, facts in corpus.splits.items()} == {
        "train": 79,
        "valid": 9,
        "test": 9,
    }


def test_out_of_vocabulary_tokens_are_counted(store: Store) -> None:
    corpus, vocabulary = _built(store, _text(store, whole="a b a b x a x y"), (4, 2, 2), level="word")
    assert _ids(store, corpus) == {"train": [1, 2, 1, 2], "valid": [0, 1], "test": [0, 0]}
    assert [facts.oov_rate for facts in corpus.splits.values()] == [0.0, 0.5, 1.0]
    assert "x" not in vocabulary


def test_an_unknown_that_the_text_itself_holds_is_no_missing_word(store: Store) -> None:
    text = _text(store, train="a <unk> a <unk> rare", valid="<unk> a new", test="a <unk>")
    corpus, vocabulary = _built(store, text, None, level="word", min_freq=2)
    assert _ids(store, corpus) == {"train": [1, 0, 1, 0, 0], "valid": [0, 1, 0], "test": [1, 0]}
    assert [facts.num_unknown for facts in corpus.splits.values()] == [1, 1, 0]
    assert vocabulary.counts == (3, 2)


def test_line_ends_are_predicted_and_counted_like_words(store: Store) -> None:
    lines = " a b \n \n a \n"
    corpus, vocabulary = _built(store, _text(store, whole=lines), (1, 0, 0), level="word", eos="line")
    assert vocabulary.tokens == ("<unk>", "<eos>", "a", "b")
    assert _ids(store, corpus) == {"train": [2, 3, 1, 1, 2, 1]}
    assert corpus.splits["train"] == SplitFacts(6, 0, len("a b\n\na\n") - len("a "))
    cut, _ = corpus_conventions(store.open(corpus.handle))
    assert cut.about == {"level": "word", "eos": "line"}


@pytest.mark.parametrize("level", ["byte", "bpe"])
def test_bytes_of_any_text_have_ids_and_the_characters_of_the_text(store: Store, level: str) -> None:
    contents = {"train": "the line, the end\n" * 5, "valid": "die Straße 分开", "test": "👩‍👧 e\u0301\n"}
    corpus, vocabulary = _built(store, _text(store, **contents), None, level=level, bpe_size=270)
    cut, _ = corpus_conventions(store.open(corpus.handle))
    for name, ids in _ids(store, corpus).items():
        tokens = vocabulary.to_tokens(ids)
        assert cut.text(tokens) == contents[name]
        facts = corpus.splits[name]
        assert facts == SplitFacts(len(ids), 0, len(contents[name]) - cut.widths(tokens[:1])[0])
    assert read_ids(store.open(corpus.handle) / "valid.parquet").dtype == np.uint16


def test_byte_pairs_go_with_their_corpus(store: Store) -> None:
    text = "the line, the end 分开\n" * 20
    corpus, _ = _built(store, _text(store, whole=text), (8, 1, 1), level="bpe", bpe_size=270)
    cut, rule = corpus_conventions(store.open(corpus.handle))
    assert isinstance(cut, BpeTokenizer)
    assert (len(cut.alphabet), rule) == (270, "none")
    (store.path(corpus.handle) / "bpe.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"has a damaged bpe\.json"):
        store.open(corpus.handle)


def test_characters_and_byte_pairs_divide_a_text_at_the_same_places(store: Store) -> None:
    text = _text(store, whole="the line, the end 分开\n" * 20)

    def parts(level: str) -> dict[str, str]:
        corpus, vocabulary = _built(store, text, (7, 2, 1), level=level, bpe_size=270)
        cut: Tokenizer = corpus_conventions(store.open(corpus.handle))[0]
        return {name: cut.text(vocabulary.to_tokens(ids)) for name, ids in _ids(store, corpus).items()}

    assert parts("bpe") == parts("char")


@pytest.mark.parametrize("level", ["char", "bpe"])
def test_a_split_of_which_nothing_is_left_is_refused(store: Store, level: str) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    with pytest.raises(DataError, match=r"0 tokens in split `valid`"):
        _built(store, _text(store, whole=text), (90, 1, 9), level=level, bpe_size=257)


def test_max_chars_shortens_the_text_before_it_is_divided(store: Store) -> None:
    corpus, vocabulary = _built(store, _text(store, whole="abcdefghij" * 10), (8, 1, 1), max_chars=20)
    ids = _ids(store, corpus)
    assert {name: "".join(vocabulary.to_tokens(ids[name])) for name in ids} == {
        "train": "abcdefghijabcdef",
        "valid": "gh",
        "test": "ij",
    }


def test_max_tokens_shortens_training_alone(store: Store) -> None:
    text = _text(store, whole="abcdefghij" * 10)
    whole, vocabulary = _built(store, text, (80, 10, 10))
    short, same_vocabulary = _built(store, text, (80, 10, 10), max_tokens=5)
    assert vocabulary.tokens == same_vocabulary.tokens
    all_ids, ids = _ids(store, whole), _ids(store, short)
    assert ids == {**all_ids, "train": all_ids["train"][:5]}
    assert short.splits["train"] == SplitFacts(5, 0, 4)


def test_max_tokens_beyond_the_end_keeps_everything(store: Store) -> None:
    text = _text(store, whole="abcdefghij" * 10)
    assert _built(store, text, (80, 10, 10), max_tokens=10**9)[0] == _built(store, text, (80, 10, 10))[0]


def test_given_splits_are_kept(store: Store) -> None:
    corpus, vocabulary = _built(store, _text(store, train="abcab", valid="cab", test="zab"), None)
    ids = _ids(store, corpus)
    assert {name: vocabulary.to_tokens(ids[name]) for name in ids} == {
        "train": list("abcab"),
        "valid": list("cab"),
        "test": ["<unk>", "a", "b"],
    }


@pytest.mark.parametrize(
    ("size", "kind"),
    [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65_536, np.uint16), (65_537, np.uint32)],
)
def test_ids_have_the_smallest_type_that_holds_them(size: int, kind: type) -> None:
    assert id_type(size) is kind


@pytest.mark.parametrize(("kinds", "dtype"), [(255, "uint8"), (256, "uint16")])
def test_the_written_type_follows_the_vocabulary(store: Store, kinds: int, dtype: str) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + kinds)))
    corpus, vocabulary = _built(store, _text(store, whole=text), (1, 0, 0))
    path = store.open(corpus.handle) / "train.parquet"
    assert len(vocabulary) == kinds + 1
    assert str(read_ids(path).dtype) == dtype
    assert str(pq.read_schema(path).field("id").type) == dtype


def test_pandas_reads_a_split_without_us(store: Store) -> None:
    corpus, vocabulary = _built(store, _text(store, whole="the time machine " * 10), (80, 10, 10))
    frame = pd.read_parquet(store.open(corpus.handle) / "valid.parquet")
    assert list(frame.columns) == ["id"]
    assert frame["id"].dtype == np.uint8
    text = "the time machine " * 10
    assert "".join(vocabulary.to_tokens(frame["id"].tolist())) == text[136:153]


@pytest.mark.parametrize(("level", "most_bits"), [("char", 5), ("word", 5)])
def test_ids_take_no_more_room_than_their_variety_needs(level: str, most_bits: int, store: Store) -> None:
    """In an `int32` of Parquet each would take 32 bits."""
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopq"), size=300_000)
    text = ("" if level == "char" else " ").join(letters)
    corpus, _ = _built(store, _text(store, whole=text), (1, 0, 0), level=level)
    size = (store.open(corpus.handle) / "train.parquet").stat().st_size
    assert size * 8 < most_bits * corpus.splits["train"].num_tokens


def test_the_schema_names_where_the_ids_come_from(store: Store) -> None:
    text = _text(store, whole="The end. " * 20)
    tokens = tokenize(text, "letters", "word", store)
    vocabulary = build_vocabulary(tokens, (8, 1, 1), 1, (), store)
    corpus = build_corpus(tokens, vocabulary.handle, (8, 1, 1), 0, store)
    metadata = pq.read_schema(store.open(corpus.handle) / "test.parquet").metadata
    assert metadata == {
        b"rnnlm.level": b"word",
        b"rnnlm.eos": b"none",
        b"rnnlm.normalizer": b"letters",
        b"rnnlm.tokens": tokens.handle.sha256.encode(),
        b"rnnlm.vocabulary": vocabulary.handle.sha256.encode(),
        b"rnnlm.split": b"test",
    }


def test_facts_and_conventions_lie_beside_the_ids(store: Store) -> None:
    corpus, _ = _built(store, _text(store, whole="The end. " * 20), (8, 1, 1), level="word", rule="letters")
    folder = store.open(corpus.handle)
    assert corpus_facts(folder) == corpus.splits
    cut, rule = corpus_conventions(folder)
    assert (type(cut), cut.about, rule) == (WordTokenizer, {"level": "word", "eos": "none"}, "letters")
    assert set(json.loads((folder / "corpus.json").read_text())["splits"]) == {"train", "valid", "test"}


@pytest.mark.parametrize(
    ("shares", "files"), [((1, 0, 0), ["train"]), ((9, 1, 0), ["train", "valid"]), ((9, 0, 1), ["test", "train"])]
)
def test_a_split_without_a_share_has_no_file(store: Store, shares: Shares, files: list[str]) -> None:
    corpus, _ = _built(store, _text(store, whole="abcdefghij" * 10), shares)
    assert sorted(path.stem for path in store.open(corpus.handle).glob("*.parquet")) == files


def test_words_of_a_long_line_fill_several_row_groups(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "ROW_GROUP", 100)
    corpus, _ = _built(store, _text(store, whole="a b " * 175), (1, 0, 0), level="word")
    batches = id_batches(store.open(corpus.handle) / "train.parquet")
    assert [len(batch) for batch in batches] == [100, 100, 100, 50]


def test_ids_are_written_and_read_a_row_group_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tokenize_module, corpus_module):
        monkeypatch.setattr(module, "ROW_GROUP", 100)
    text = "abcdefghij" * 300
    corpus, vocabulary = _built(store, _text(store, whole=text), (1, 0, 0))
    batches = list(id_batches(store.open(corpus.handle) / "train.parquet"))
    assert [len(batch) for batch in batches] == [100] * 30
    assert np.concatenate(batches).tolist() == vocabulary[list(text)]


@pytest.mark.parametrize("shares", [(98, 1, 1), (1, 1, 98)])
def test_a_split_too_short_to_predict_a_token_is_refused(store: Store, shares: Shares) -> None:
    with pytest.raises(DataError, match=r"needs at least 2 tokens: 1 tokens in split `(valid|train)`: .*corpus\.split"):
        _built(store, _text(store, whole="abcdefghij" * 10), shares)
    assert list((store.root / "corpus").iterdir()) == []


def test_a_given_split_too_short_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="1 tokens in split `valid`"):
        _built(store, _text(store, train="abcab", valid="c", test="ab"), None)


def test_the_same_tokens_give_the_same_bytes(tmp_path: Path) -> None:
    handles = []
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        handles.append(_built(store, _text(store, whole="time traveller " * 20), (8, 1, 1))[0].handle)
    assert handles[0] == handles[1]


def test_a_flipped_byte_is_noticed_by_the_store_and_by_the_reader(store: Store) -> None:
    corpus, _ = _built(store, _text(store, whole="".join(map(chr, range(0x4E00, 0x5E00)))), (1, 0, 0))
    path = store.open(corpus.handle) / "train.parquet"
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        read_ids(path)
    with pytest.raises(IntegrityError, match=r"has a damaged train\.parquet"):
        store.open(corpus.handle)


def test_shakespeare_is_split_as_published(store: Store, mirror: Path) -> None:
    text = (mirror / "tinyshakespeare.txt").read_bytes()
    corpus, vocabulary = _built(store, _text(store, whole=text), (90, 10, 0))
    assert {name: facts.num_tokens for name, facts in corpus.splits.items()} == {"train": 1_003_854, "valid": 111_540}
    valid = read_ids(store.open(corpus.handle) / "valid.parquet")
    assert "".join(vocabulary.to_tokens(valid.tolist())) == text.decode()[1_003_854:]


@pytest.mark.parametrize(
    ("files", "size", "num_tokens"),
    [
        ("ptb/ptb.{}.txt", 10_000, (929_589, 73_760, 82_430)),
        ("wikitext-2/{}.txt", 33_278, (2_088_628, 217_646, 245_569)),
    ],
)
def test_the_given_splits_have_their_published_sizes_and_nothing_out_of_vocabulary(
    store: Store, mirror: Path, files: str, size: int, num_tokens: Shares
) -> None:
    contents = {name: (mirror / files.format(name)).read_bytes() for name in SPLITS}
    corpus, vocabulary = _built(store, _text(store, **contents), None, level="word", eos="line")
    assert len(vocabulary) == size
    assert tuple(corpus.splits[name].num_tokens for name in SPLITS) == num_tokens
    folder = store.open(corpus.handle)
    for name, facts in corpus.splits.items():
        assert facts.num_unknown == 0  # `<unk>` is a word of the published text
        text = contents[name].decode()
        tokens = text.replace("\n", " <eos> ").split()
        assert read_ids(folder / f"{name}.parquet").tolist() == vocabulary[tokens]
        # A line is published as ` w w w \n`: the spaces around it do not count, nor does the first token.
        plain = "".join(" ".join(line.split()) + "\n" for line in text.split("\n")[:-1])
        first = 1 if tokens[0] == "<eos>" else len(tokens[0]) + 1
        assert facts.predicted_chars == len(plain) - first


def test_the_first_characters_of_the_time_machine(store: Store, mirror: Path) -> None:
    text = _text(store, whole=(mirror / "timemachine.txt").read_bytes())
    corpus, vocabulary = _built(store, text, (100, 0, 0), rule="d2l-lines", max_tokens=10_000)
    ids = read_ids(store.open(corpus.handle) / "train.parquet")
    assert (len(ids), ids.dtype, len(vocabulary)) == (10_000, np.uint8, 28)
    assert "".join(vocabulary.to_tokens(ids[:29].tolist())) == "the time machine by h g wells"
