"""What a Parquet file says about itself: page headers, page indexes and the footer."""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from lrdata.parquet.thrift import Value, binary, boolean, i16, i32, i64, listed, struct


class Encoding(IntEnum):
    """Of values; levels are always RLE."""

    PLAIN = 0
    RLE = 3
    DELTA_BINARY_PACKED = 5


_BYTE_ARRAY, _FIXED_LEN_BYTE_ARRAY = 6, 7
_TYPES = {
    pa.bool_(): 0,
    pa.int32(): 1,
    pa.int64(): 2,
    pa.float32(): 4,
    pa.string(): _BYTE_ARRAY,
    pa.float16(): _FIXED_LEN_BYTE_ARRAY,
}
_REQUIRED, _REPEATED = i32(0), i32(2)

Place = tuple[int, int]
"""Where something is in the file, and how many bytes it takes; 0 where it is left out."""


Bounds = tuple[Any, Any]
"""The smallest and the largest of some values: int (of booleans too) or bytes."""


@dataclass(frozen=True)
class Page:
    """A page of a column of a row group."""

    size: int  # bytes, with its header
    raw_size: int  # the same before compression
    first_row: int
    entries: int  # values, and empty lists
    nulls: int  # empty lists
    bounds: Bounds | None  # None: not known, or there are no values
    offset: int = -1  # in the file, when it is there

    def at(self, offset: int) -> "Page":
        """The same page, at its place in the file."""
        return replace(self, offset=offset)


@dataclass(frozen=True)
class Chunk:
    """A column of a row group, in pages."""

    field: pa.Field
    encoding: Encoding
    pages: list[Page]

    @property
    def entries(self) -> int:
        return sum(page.entries for page in self.pages)

    @property
    def nulls(self) -> int:
        return sum(page.nulls for page in self.pages)

    @property
    def size(self) -> int:
        return sum(page.size for page in self.pages)

    @property
    def raw_size(self) -> int:
        return sum(page.raw_size for page in self.pages)

    @property
    def bounded(self) -> bool:
        """Whether the bounds of every page that holds values are known."""
        return all(page.bounds or page.entries == page.nulls for page in self.pages)


def item_field(field: pa.Field) -> pa.Field:
    """The field of a list's elements; a field that is no list as it is."""
    return field.type.value_field if pa.types.is_list(field.type) else field


def why_not(field: pa.Field) -> str | None:
    """Why a column cannot be written, or None where it can."""
    item = item_field(field)
    if field.nullable or item.nullable:
        return f"{field.name} may hold nulls"
    return None if item.type in _TYPES else f"{field.name} is of type {field.type}"


def page_header(entries: int, encoding: Encoding, raw_size: int, packed: bytes) -> bytes:
    """PageHeader of a data page of version 1."""
    crc = zlib.crc32(packed)
    rle = i32(Encoding.RLE)
    data_page = struct({1: i32(entries), 2: i32(encoding), 3: rle, 4: rle})
    signed = crc - (crc >> 31 << 32)
    sizes = {1: i32(0), 2: i32(raw_size), 3: i32(len(packed)), 4: i32(signed)}
    return struct({**sizes, 5: data_page}).data


def offset_index(chunk: Chunk) -> bytes:
    """OffsetIndex: where the pages of a chunk are and which rows they begin with."""
    places = [
        struct({1: i64(page.offset), 2: i32(page.size), 3: i64(page.first_row)})
        for page in chunk.pages
    ]
    return struct({1: listed(places)}).data


def column_index(chunk: Chunk) -> bytes:
    """ColumnIndex: bounds of each page's values; b"" where they are not known."""
    if not chunk.bounded:
        return b""
    bounds = [_coded(chunk, page.bounds) if page.bounds else (b"", b"") for page in chunk.pages]
    fields = {
        1: listed([boolean(page.entries == page.nulls) for page in chunk.pages]),
        2: listed([binary(least) for least, _ in bounds]),
        3: listed([binary(most) for _, most in bounds]),
        4: i32(0),  # in no order
        5: listed([i64(page.nulls) for page in chunk.pages]),
    }
    return struct(fields).data


def row_group(
    ordinal: int, rows: int, chunks: Sequence[Chunk], indexes: Sequence[tuple[Place, Place]]
) -> Value:
    """RowGroup. indexes: where the column index and the offset index of each chunk are."""
    columns = [_column_chunk(chunk, *places) for chunk, places in zip(chunks, indexes, strict=True)]
    fields = {
        1: listed(columns),
        2: i64(sum(chunk.raw_size for chunk in chunks)),
        3: i64(rows),
        5: i64(chunks[0].pages[0].offset),
        6: i64(sum(chunk.size for chunk in chunks)),
        7: i16(ordinal) if ordinal < 1 << 15 else None,
    }
    return struct(fields)


def _column_chunk(chunk: Chunk, bounds: Place, offsets: Place) -> Value:
    item = item_field(chunk.field)
    path = [chunk.field.name] if item is chunk.field else [chunk.field.name, "list", item.name]
    metadata = {
        1: i32(_TYPES[item.type]),
        2: listed([i32(encoding) for encoding in sorted({Encoding.RLE, chunk.encoding})]),
        3: listed([binary(name.encode()) for name in path]),
        4: i32(6),  # zstd
        5: i64(chunk.entries),
        6: i64(chunk.raw_size),
        7: i64(chunk.size),
        9: i64(chunk.pages[0].offset),
        12: _statistics(chunk),
    }
    fields = {
        2: i64(0),  # once the place of a copy of the metadata
        3: struct(metadata),
        4: i64(offsets[0]),
        5: i32(offsets[1]),
        6: i64(bounds[0]) if bounds[1] else None,
        7: i32(bounds[1]) if bounds[1] else None,
    }
    return struct(fields)


def _statistics(chunk: Chunk) -> Value:
    fields = {3: i64(chunk.nulls)}
    bounds = [page.bounds for page in chunk.pages if page.bounds]
    if chunk.bounded and bounds:
        both = min(least for least, _ in bounds), max(most for _, most in bounds)
        least, most = _coded(chunk, both)
        exact = boolean(True)
        fields |= {5: binary(most), 6: binary(least), 7: exact, 8: exact}
    return struct(fields)


def _coded(chunk: Chunk, bounds: Bounds) -> tuple[bytes, bytes]:
    """Bounds as PLAIN has single values."""
    kind = item_field(chunk.field).type
    size = 1 if pa.types.is_boolean(kind) else kind.byte_width if pa.types.is_integer(kind) else 0
    least, most = (
        bound if isinstance(bound, bytes) else bound.to_bytes(size, "little", signed=True)
        for bound in bounds
    )
    return least, most


def footer(schema: pa.Schema, rows: int, groups: Sequence[Value]) -> bytes:
    """FileMetaData. The Arrow schema is in it, as pyarrow stores it, for types to come back."""
    root = struct({3: _REQUIRED, 4: binary(b"schema"), 5: i32(len(schema))})
    elements = [element for field in schema for element in _schema_elements(field)]
    arrow = base64.b64encode(schema.serialize().to_pybytes())
    defined_by_type = struct({1: struct({})})
    fields = {
        1: i32(2),
        2: listed([root, *elements]),
        3: i64(rows),
        4: listed(groups),
        5: listed([struct({1: binary(b"ARROW:schema"), 2: binary(arrow)})]),
        6: binary(f"longrecipe version {version('longrecipe')}".encode()),
        7: listed([defined_by_type] * len(schema)),  # how values of each column are ordered
    }
    return struct(fields).data


def _schema_elements(field: pa.Field) -> list[Value]:
    """A column: one element, or for a list three, one in the other."""
    name, item = binary(field.name.encode()), item_field(field)
    if item is field:
        return [_leaf(field)]
    group = {3: _REQUIRED, 4: name, 5: i32(1), 6: i32(3), 10: struct({3: struct({})})}
    repeated = {3: _REPEATED, 4: binary(b"list"), 5: i32(1)}
    return [struct(group), struct(repeated), _leaf(item)]


def _leaf(field: pa.Field) -> Value:
    is_text, is_half = pa.types.is_string(field.type), field.type == pa.float16()
    logical = struct({1: struct({})}) if is_text else struct({15: struct({})}) if is_half else None
    fields = {
        1: i32(_TYPES[field.type]),
        2: i32(2) if is_half else None,
        3: _REQUIRED,
        4: binary(field.name.encode()),
        6: i32(0) if is_text else None,  # UTF-8, for readers that know no logical types
        10: logical,
    }
    return struct(fields)
