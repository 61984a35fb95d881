"""Rows of parquet files, some megabytes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.errors import DataError

BATCH_BYTES = 8 << 20
BATCH_ROWS = 512


def read_parquet(path: Path) -> Iterator[SourceRow]:
    """Rows from 1; raises DataError where the file cannot be opened, else the last row says where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    name = str(path)
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            stored = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            each = stored // max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, each)))):
                for value, repairs in _rows(batch):
                    number += 1
                    yield SourceRow(number, value, None, repairs, name)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # a name that is not UTF-8 is a ValueError
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if number == 0:
            raise DataError("damaged-file", f"not a readable parquet file: {reason}", where=name) from error
        yield SourceRow(number + 1, None, f"the parquet file is damaged from here on: {reason}", path=name)


def _rows(batch: Any) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    try:
        for value in batch.to_pylist():
            yield value, ()
    except (ValueError, OverflowError):  # text that is not UTF-8, a time that Python cannot hold ...
        for row in range(batch.num_rows):
            yield _row_by_value(batch, row)


def _row_by_value(batch: Any, row: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A row without the columns whose value cannot be read."""
    value = {}
    unreadable = []
    for column in batch.schema.names:
        try:
            value[column] = batch.column(column)[row].as_py()
        except (ValueError, OverflowError):
            unreadable.append(f"unreadable value of column {column!r} left out")
    return value, tuple(unreadable)
