"""Columns from anyone: the store knows its own by their digest, and a footer is not believed for memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnlm_core.corpus import id_batches
from rnnlm_core.download import resolve
from rnnlm_core.errors import DataError, IntegrityError
from rnnlm_core.inspection import inspect
from rnnlm_core.presets import run_config
from rnnlm_core.store import Store

ROWS = 12_345
"""Stands in the footer of the file, of its column, in a statistic that nobody reads, and of its row group."""
FILE, COLUMN, GROUP = 0, 1, 3


def _number(value: int) -> bytes:
    """Return a number as the footer has it: zigzag, seven bits a byte."""
    value <<= 1
    written = b""
    while value > 127:
        written += bytes([value & 127 | 128])
        value >>= 7
    return written + bytes([value])


def _forged(path: Path, rows: int, places: tuple[int, ...]) -> Path:
    """Write a corpus split whose footer claims `rows` rows in some of the places where it says how many."""
    schema = pa.schema([("id", pa.uint8())])
    table = pa.table([pa.array(np.zeros(ROWS, np.uint8))], schema=schema)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    parts = data[-8 - length : -8].split(_number(ROWS))
    assert len(parts) == 5
    footer = parts[0]
    for i, part in enumerate(parts[1:]):
        footer += _number(rows if i in places else ROWS) + part
    path.write_bytes(data[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


PLACES = [
    (FILE,), (COLUMN,), (GROUP,), (FILE, COLUMN), (FILE, GROUP), (COLUMN, GROUP), (FILE, COLUMN, GROUP),
]  # fmt: skip


# A footer that says fewer in every place is that of a shorter file.
LIES = [(rows, p) for rows in (10**12, 10**9, 20_000, 10, 0) for p in PLACES if rows > ROWS or p != PLACES[-1]]


@pytest.mark.parametrize(("rows", "places"), LIES)
def test_a_footer_that_claims_other_rows_is_refused_before_memory_is_taken(
    rows: int, places: tuple[int, ...], tmp_path: Path
) -> None:
    path = _forged(tmp_path / "train.parquet", rows, places)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match=r"not the rows of a corpus: .*train\.parquet") as caught:
            list(id_batches(path))
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert len(caught.value.lines) == 1


def test_the_same_file_with_an_honest_footer_is_read(tmp_path: Path) -> None:
    assert sum(map(len, id_batches(_forged(tmp_path / "a.parquet", ROWS, ())))) == ROWS


@pytest.mark.parametrize("places", PLACES)
def test_the_store_refuses_a_forged_split_unread(
    places: tuple[int, ...], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.draft("corpus") as draft:
        _forged(draft.folder / "train.parquet", ROWS, ())
        handle = draft.publish()
    _forged(store.path(handle) / "train.parquet", 10**12, places)
    monkeypatch.setattr(pq, "ParquetFile", lambda *_, **__: pytest.fail("the file was opened"))
    with pytest.raises(IntegrityError, match=r"has a damaged train\.parquet"):
        list(id_batches(store.open(handle) / "train.parquet"))


def test_ids_outside_the_vocabulary_are_refused_with_their_file(store: Store) -> None:
    """Ids are no more checked one by one than any byte: the digest of the file is that of the ids that were written."""
    schema = pa.schema([("id", pa.uint8())])
    with store.draft("corpus") as draft:
        pq.write_table(pa.table([pa.array([0, 1, 2], pa.uint8())], schema=schema), draft.folder / "train.parquet")
        handle = draft.publish()
    pq.write_table(pa.table([pa.array([0, 1, 255], pa.uint8())], schema=schema), store.path(handle) / "train.parquet")
    with pytest.raises(IntegrityError, match=r"has a damaged train\.parquet"):
        store.open(handle)


@pytest.mark.parametrize("suffix", [".parquet", ".txt"])
def test_columns_in_place_of_a_text_are_no_text(suffix: str, tmp_path: Path) -> None:
    path = _forged(tmp_path / f"text{suffix}", 10**12, (FILE, COLUMN, GROUP))
    with pytest.raises(DataError):
        inspect(resolve(str(path)), run_config(corpus=str(path)))
