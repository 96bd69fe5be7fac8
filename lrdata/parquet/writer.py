"""The writer: some rows at a time as a row group, their columns in pages."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import zstandard

from lrdata.parquet import metadata
from lrdata.parquet.encodings import delta_binary_packed, levels, plain
from lrdata.parquet.metadata import Bounds, Chunk, Encoding, Page, Place

PAGE_BYTES = (1024**2, 4 * 1024**2)
"""A page ends before a marked row, between these sizes (`cuts`)."""

_MAGIC = b"PAR1"
_ZSTD_LEVEL = 3
_LONGEST_BOUND = 64  # bytes of a text in page indexes and statistics; a longer one is left out


@dataclass(frozen=True)
class Column:
    """Some rows of a column.

    values: bool, int or float [n], or the UTF-8 of texts. lengths: int64 [rows], how many of them
    are each row's list; None where each row has one.
    """

    values: np.ndarray | list[bytes]
    lengths: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return len(self.values) if self.lengths is None else len(self.lengths)

    def pages(self, marks: Sequence[bool]) -> Iterator[tuple[int, "Column"]]:
        """Its pages, without a copy, each with the number of its first row."""
        counts = np.ones(self.rows, np.int64) if self.lengths is None else self.lengths
        ends = np.concatenate([[0], np.cumsum(counts)])
        for start, stop in pairwise([*cuts(self._bytes(ends), marks, *PAGE_BYTES), self.rows]):
            lengths = None if self.lengths is None else self.lengths[start:stop]
            yield start, Column(self.values[ends[start] : ends[stop]], lengths)

    def _bytes(self, ends: np.ndarray) -> np.ndarray:
        """Bytes of the values before each row and of all: int64 [rows + 1]."""
        if isinstance(self.values, list):
            return np.cumsum([0, *(4 + len(text) for text in self.values)])[ends]
        return ends // 8 if self.values.dtype == bool else ends * self.values.itemsize


class ParquetFile:
    """Writes one file to a stream that stands at its start. Not thread-safe.

    delta: the columns whose integers are encoded as differences (DELTA_BINARY_PACKED).
    Raises ValueError for a schema that it cannot write.
    """

    def __init__(
        self, stream: BinaryIO, schema: pa.Schema, delta: Collection[str] = frozenset()
    ) -> None:
        for problem in filter(None, map(metadata.why_not, schema)):
            raise ValueError(problem)
        for name in delta:
            if not pa.types.is_integer(metadata.item_field(schema.field(name)).type):
                raise ValueError(f"{name} has no integers, and hence no differences")
        self._schema, self._delta = schema, delta
        self._stream, self._offset = stream, 0
        self._groups: list[tuple[int, list[Chunk]]] = []
        self._zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self._put(_MAGIC)

    def write(self, columns: Sequence[Column], marks: Sequence[bool]) -> None:
        """Write columns in the order of the schema, of at least one row, as a row group.

        marks: of each row, whether it may begin a page. Where that follows from what the row holds,
        the same rows become the same pages wherever they stand.
        """
        if not marks or {column.rows for column in columns} != {len(marks)}:
            raise ValueError(f"{len(marks)} marks for {[column.rows for column in columns]} rows")
        pairs = zip(self._schema, columns, strict=True)
        chunks = [self._chunk(field, column, marks) for field, column in pairs]
        self._groups.append((len(marks), chunks))

    def finish(self) -> None:
        """Write the page indexes and the footer."""
        chunks = [chunk for _, chunks in self._groups for chunk in chunks]
        bounds = [self._put(metadata.column_index(chunk)) for chunk in chunks]
        offsets = [self._put(metadata.offset_index(chunk)) for chunk in chunks]
        indexes = iter(zip(bounds, offsets, strict=True))
        groups = [
            metadata.row_group(ordinal, rows, chunks, [next(indexes) for _ in chunks])
            for ordinal, (rows, chunks) in enumerate(self._groups)
        ]
        rows = sum(rows for rows, _ in self._groups)
        _, size = self._put(metadata.footer(self._schema, rows, groups))
        self._put(size.to_bytes(4, "little") + _MAGIC)

    def _put(self, data: bytes) -> Place:
        at = self._offset
        self._stream.write(data)
        self._offset += len(data)
        return at, len(data)

    def _chunk(self, field: pa.Field, column: Column, marks: Sequence[bool]) -> Chunk:
        if pa.types.is_list(field.type) != (column.lengths is not None):
            raise ValueError(f"{field.name} is {field.type}")
        delta = field.name in self._delta
        encoding = Encoding.DELTA_BINARY_PACKED if delta else Encoding.PLAIN
        pages = [self._page(page, encoding, first) for first, page in column.pages(marks)]
        return Chunk(field, encoding, pages)

    def _page(self, column: Column, encoding: Encoding, first_row: int) -> Page:
        values, entries = column.values, len(column.values)
        delta = encoding == Encoding.DELTA_BINARY_PACKED
        raw = delta_binary_packed(np.asarray(values)) if delta else plain(values)
        if column.lengths is not None:
            repetition, definition, entries = levels(column.lengths)
            raw = b"".join([_sized(repetition), _sized(definition), raw])
        packed = self._zstd.compress(raw)
        header = metadata.page_header(entries, encoding, len(raw), packed)
        at, size = self._put(header + packed)
        nulls = entries - len(values)
        return Page(at, size, len(header) + len(raw), first_row, entries, nulls, _bounds(values))


def cuts(ends: np.ndarray, marks: Sequence[bool], least: int, most: int) -> list[int]:
    """Where runs of rows begin: before a marked row that has `least` bytes before it in its run,
    and before any row with which a run of at least that would grow beyond `most`.

    Args:
        ends: int64 [rows + 1]: bytes before each row, and in all. marks: bool [rows].
    Returns:
        The first row of each run, 0 first.
    """
    starts, at = [0], ends.tolist()
    if at[-1] < least:  # as in most columns
        return starts
    for row, marked in enumerate(marks):
        before = at[row] - at[starts[-1]]
        if before >= least and (marked or at[row + 1] - at[starts[-1]] > most):
            starts.append(row)
    return starts


def _bounds(values: np.ndarray | list[bytes]) -> Bounds | None:
    """The least and the greatest value; of floats none, which need not have them."""
    if not len(values):
        return None
    if isinstance(values, list):
        least, most = min(values), max(values)
        return (least, most) if len(least) + len(most) <= 2 * _LONGEST_BOUND else None
    if values.dtype.kind == "f":
        return None
    return int(values.min()), int(values.max())


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data
