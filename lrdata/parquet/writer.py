"""The writer: some rows at a time, as a page of each column; some pages as a row group."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import zstandard

from lrdata.parquet import metadata
from lrdata.parquet.encodings import delta_binary_packed, levels, plain
from lrdata.parquet.metadata import Bounds, Chunk, Encoding, Page, Place

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


class ParquetFile:
    """Writes one file to a stream that stands at its start. Not thread-safe.

    Holds the compressed pages of one row group. delta: the columns whose integers are encoded as
    differences (DELTA_BINARY_PACKED). Raises ValueError for a schema that it cannot write.
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
        self._rows = 0
        self._pending: list[list[tuple[Page, bytes]]] = [[] for _ in schema]  # of each column
        self._zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self._put(_MAGIC)

    def add_page(self, columns: Sequence[Column]) -> None:
        """Add rows, at least one, to the row group: columns in the order of the schema."""
        counts = {column.rows for column in columns}
        if len(counts) != 1 or not min(counts):
            raise ValueError(f"columns of {[column.rows for column in columns]} rows")
        known: dict[bytes, tuple[bytes, int]] = {}  # levels, which several columns share
        for field, column, pages in zip(self._schema, columns, self._pending, strict=True):
            if pa.types.is_list(field.type) != (column.lengths is not None):
                raise ValueError(f"{field.name} is {field.type}")
            head, entries = b"", column.rows
            if column.lengths is not None:
                key = column.lengths.tobytes()
                if key not in known:
                    known[key] = levels(column.lengths)
                head, entries = known[key]
            pages.append(self._page(column.values, self._encoding(field), head, entries))
        self._rows += columns[0].rows

    def end_group(self) -> None:
        """Write the pages of the row group, column after column."""
        if not self._rows:
            return
        chunks = []
        for field, pages in zip(self._schema, self._pending, strict=True):
            placed = []
            for page, data in pages:
                placed.append(page.at(self._offset))
                self._put(data)
            chunks.append(Chunk(field, self._encoding(field), placed))
            pages.clear()
        self._groups.append((self._rows, chunks))
        self._rows = 0

    def finish(self) -> None:
        """Write what is left, the page indexes and the footer."""
        self.end_group()
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

    def _encoding(self, field: pa.Field) -> Encoding:
        return Encoding.DELTA_BINARY_PACKED if field.name in self._delta else Encoding.PLAIN

    def _page(
        self, values: np.ndarray | list[bytes], encoding: Encoding, head: bytes, entries: int
    ) -> tuple[Page, bytes]:
        """A page with its levels in `head`, and its bytes."""
        delta = encoding == Encoding.DELTA_BINARY_PACKED
        raw = head + (delta_binary_packed(np.asarray(values)) if delta else plain(values))
        packed = self._zstd.compress(raw)
        header = metadata.page_header(entries, encoding, len(raw), packed)
        page = Page(
            size=len(header) + len(packed),
            raw_size=len(header) + len(raw),
            first_row=self._rows,
            entries=entries,
            nulls=entries - len(values),
            bounds=_bounds(values),
        )
        return page, header + packed


def _bounds(values: np.ndarray | list[bytes]) -> Bounds | None:
    """The least and the greatest value; of floats none, which need not have them."""
    if not len(values):
        return None
    if isinstance(values, list):
        least, most = min(values), max(values)
        return (least, most) if max(len(least), len(most)) <= _LONGEST_BOUND else None
    if values.dtype.kind == "f":
        return None
    return int(values.min()), int(values.max())
