from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnlm_core.errors import IntegrityError
from rnnlm_core.pieces import Span, piece_files, piece_name, spans_of_shards


def test_one_file_has_no_number_and_several_are_in_order(tmp_path: Path) -> None:
    assert piece_name("train", 0, 1) == "train.parquet"
    names = [piece_name("train", number, 12) for number in range(12)]
    assert names[0] == "train-00000-of-00012.parquet"
    for name in (*reversed(names), "valid.parquet", "train.json"):
        (tmp_path / name).touch()
    assert [path.name for path in piece_files(tmp_path, "train")] == names
    assert piece_files(tmp_path, "valid") == [tmp_path / "valid.parquet"]
    assert piece_files(tmp_path, "test") == []


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_piece_too_few_is_told(tmp_path: Path, lost: int) -> None:
    for number in {0, 1, 2} - {lost}:
        (tmp_path / piece_name("train", number, 3)).touch()
    with pytest.raises(IntegrityError, match=r"pieces are missing: .*train-0000"):
        piece_files(tmp_path, "train")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_the_spans_of_the_shards_are_the_span_of_the_text(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    start = data.draw(st.integers(0, total))
    length = data.draw(st.integers(0, total - start))
    found = spans_of_shards([Span("train", "whole", start, length)], [{"whole": n} for n in counts])
    tokens, at = [], 0
    for n, spans in zip(counts, found, strict=True):
        for span in spans:
            assert span.length > 0
            tokens += range(at + span.start, at + span.start + span.length)
        at += n
    assert tokens == list(range(start, start + length))


def test_files_are_counted_each_by_itself() -> None:
    spans = [Span("train", "train", 0, 5), Span("valid", "valid", 0, 2)]
    counts = [{"train": 3}, {"train": 4, "valid": 1}, {"valid": 3}]
    assert spans_of_shards(spans, counts) == [
        (Span("train", "train", 0, 3),),
        (Span("train", "train", 0, 2), Span("valid", "valid", 0, 1)),
        (Span("valid", "valid", 0, 1),),
    ]
