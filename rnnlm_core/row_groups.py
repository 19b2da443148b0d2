"""Writing parquet a row group at a time, beside the work on the next one."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def row_group_writer(
    path: Path, schema: Any, most_rows: int | None = None, **options: Any
) -> Iterator[Callable[[Any], None]]:
    """Give a function that writes an array as the next row group of the only column, or several of `most_rows`.

    Each page has a checksum. The function returns when the row group before is written: one more is held in memory,
    never two. What writing raises is raised by the next call, or at the end.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pending: Future[None] | None = None
    # A thread of its own also for the sake of memory: what a writer remembers of each row group would lie between the
    # large blocks of text that come and go, and keep the C library from using their places again.
    with pq.ParquetWriter(path, schema, write_page_checksum=True, **options) as writer, ThreadPoolExecutor(1) as thread:

        def write(column: Any) -> None:
            nonlocal pending
            if pending is not None:
                pending.result()
            table = pa.table([column], schema=schema)
            pending = thread.submit(writer.write_table, table, row_group_size=most_rows or max(len(column), 1))

        yield write
        if pending is not None:
            pending.result()
