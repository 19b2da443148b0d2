import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnlm_core.row_groups import row_group_writer

SCHEMA = pa.schema([pa.field("id", pa.int32(), nullable=False)])


def groups(path: Path) -> list[list[int]]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return [file.read_row_group(i).column("id").to_pylist() for i in range(file.num_row_groups)]


def test_each_array_is_a_row_group_in_the_order_given(tmp_path: Path) -> None:
    with row_group_writer(tmp_path / "a.parquet", SCHEMA) as write:
        for i in range(20):
            write(pa.array([i] * (1 + i % 3), pa.int32()))
    assert groups(tmp_path / "a.parquet") == [[i] * (1 + i % 3) for i in range(20)]


def test_an_array_may_be_more_than_a_row_group_holds(tmp_path: Path) -> None:
    with row_group_writer(tmp_path / "a.parquet", SCHEMA, 2) as write:
        write(pa.array(range(5), pa.int32()))
    assert groups(tmp_path / "a.parquet") == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("calls", [1, 2])
def test_what_writing_raises_reaches_who_asked(calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    before = threading.active_count()

    def write_all() -> None:
        with row_group_writer(tmp_path / "a.parquet", SCHEMA) as write:
            for _ in range(calls):
                write(pa.array([1], pa.int32()))

    with pytest.raises(OSError, match="No space left"):
        write_all()
    assert threading.active_count() == before


def test_who_breaks_off_waits_for_the_row_group_under_way(tmp_path: Path) -> None:
    rows = pa.array(range(3_000_000), pa.int32())

    def break_off() -> None:
        with row_group_writer(tmp_path / "a.parquet", SCHEMA) as write:
            write(rows)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert groups(tmp_path / "a.parquet") == [rows.to_pylist()]
