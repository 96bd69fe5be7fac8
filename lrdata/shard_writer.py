"""Rows -> a shard: one Parquet file, written atomically, with its content hash.

Content-defined chunking: a row's tokens say whether it may begin a page or a row group (`_mark`).
Hence a row more or less in a corpus moves no bytes but those near it, and storage that
deduplicates, as dataset hubs do, keeps the rest.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lrdata.atomic import replacing
from lrdata.content import ContentHash
from lrdata.parquet import Column, ParquetFile
from lrdata.shards import SCHEMA, Row
from lrdata.stopwatch import Stopwatch

PAGE_TOKENS = (2**19, 2**21)
"""A page of each column ends before a marked row, between these numbers of tokens (`_mark`)."""

GROUP_TOKENS = 3 * 2**19
"""A row group ends with the first page that gives it so many, 16 MB of decoded values."""

DELTA_COLUMNS = ("position_ids", "segment_starts", "segment_lengths", "doc_offsets", "doc_lengths")
_MARKED = 8  # one row in so many may begin a page


class ShardWriter:
    """Writes rows of one kind to one Parquet file. Use through `writing_shard`.

    In its caller's thread: every core has a unit of its own, and two threads that share Python's
    lock take a tenth longer for the same work.
    """

    def __init__(
        self, path: Path, schema: pa.Schema = SCHEMA, watch: Stopwatch | None = None
    ) -> None:
        self.schema, self.rows, self.tokens = schema, 0, 0
        self.content = ContentHash(schema)
        self.watch = watch or Stopwatch()
        self._pending: list[Row] = []
        self._pending_tokens = self._group_tokens = 0
        self._stream = path.open("wb")
        self._parquet = ParquetFile(self._stream, schema, DELTA_COLUMNS)

    def write(self, row: Row) -> None:
        tokens = len(row.input_ids)
        least, most = PAGE_TOKENS
        if self._pending_tokens >= least and (_mark(row) or self._pending_tokens + tokens > most):
            self._flush()
        self._pending.append(row)
        self._pending_tokens += tokens
        self.rows += 1
        self.tokens += tokens

    def _flush(self) -> None:
        """Write the waiting rows as a page of each column."""
        with self.watch("hash"):
            columns = columns_of(self._pending, self.schema)
            self.content.update_columns(columns)
        with self.watch("write"):
            self._parquet.add_page(columns)
            self._group_tokens += self._pending_tokens
            self._pending, self._pending_tokens = [], 0
            if self._group_tokens >= GROUP_TOKENS:
                self._parquet.end_group()
                self._group_tokens = 0

    def finish(self) -> None:
        """Write what is left, and the footer."""
        if self._pending:
            self._flush()
        with self.watch("write"):
            self._parquet.finish()
            self._stream.close()

    def release(self) -> None:
        """Let go of the file, whatever state it is in."""
        with suppress(OSError):  # of a file that is thrown away
            self._stream.close()


@contextmanager
def writing_shard(
    path: Path, schema: pa.Schema = SCHEMA, watch: Stopwatch | None = None
) -> Iterator[ShardWriter]:
    """Write one shard atomically: `path` exists only when it is complete and on the disk.

    watch: adds up what it takes, as "hash" and "write".
    """
    with replacing(path) as partial:
        writer = ShardWriter(partial, schema, watch)
        try:
            yield writer
            writer.finish()
        finally:
            writer.release()


def _mark(row: Row) -> bool:
    """Whether a row may begin a page: by its last tokens, as many rows begin alike."""
    return zlib.crc32(row.input_ids[-16:].tobytes()) % _MARKED == 0


def columns_of(rows: Sequence[Row], schema: pa.Schema) -> list[Column]:
    """Rows as columns in the order of the schema, without a Python object per token."""
    return [_column([getattr(row, field.name) for row in rows], field.type) for field in schema]


def _column(values: Sequence[Any], kind: pa.DataType) -> Column:
    if not pa.types.is_list(kind):
        return Column(_flat(values, kind))
    lengths = np.array([len(value) for value in values], np.int64)
    if pa.types.is_string(kind.value_type):
        return Column(_flat([text for texts in values for text in texts], kind.value_type), lengths)
    return Column(_flat(np.concatenate(values), kind.value_type), lengths)


def _flat(values: Any, kind: pa.DataType) -> np.ndarray | list[bytes]:
    if pa.types.is_string(kind):
        return [text.encode() for text in values]
    return np.asarray(values, np.dtype(kind.to_pandas_dtype()))
