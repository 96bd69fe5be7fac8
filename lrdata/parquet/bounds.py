"""How much memory a row group takes when it is decoded: known before anything is.

A file of some hundred bytes can decode to terabytes: a page of a billion equal values is a few
bytes long, and so is a dictionary whose one long text stands a billion times. What the footer says
of it need not be true, but a decoder makes no more values than the headers of the pages say, so
these are what is counted here.
"""

import mmap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.parquet.thrift import read_struct

_LONGEST_HEADER = 1 << 16
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_PLAIN = 0
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_DECIMAL = 32
"""The widest decimal, which Arrow makes of any INT32."""
_LEVELS = 4
"""Bytes of the two levels of a value of a list, which decoders hold at once."""


def decoded_bytes(path: Path, metadata: pq.FileMetaData, group: int) -> int:
    """No less than a row group takes decoded. Raises pa.ArrowInvalid for headers that are none."""
    if "parquet-mr" in str(metadata.created_by).lower():
        raise pa.ArrowInvalid("a file that parquet-mr wrote is none of ours: not decoded")
    chunks = metadata.row_group(group)
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        total = 0
        for number in range(chunks.num_columns):
            chunk = chunks.column(number)
            try:
                total += _chunk_bytes(data, chunk, metadata.schema.column(number))
            except (KeyError, TypeError, AttributeError, ValueError) as problem:
                raise pa.ArrowInvalid(
                    f"column {chunk.path_in_schema} has a broken page header ({problem})"
                ) from None
        return total


def _chunk_bytes(data: mmap.mmap, chunk: pq.ColumnChunkMetaData, column: pq.ColumnSchema) -> int:
    """Of one column."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    if not 0 <= at <= end <= len(data):
        raise ValueError(f"bytes {at} to {end} of {len(data)}")
    values = raw = longest = 0
    plain = True
    while at < end:
        header, size = read_struct(data[at : min(at + _LONGEST_HEADER, end)], 0)
        kind, unpacked, packed = header[1], header[2], header[3]
        if min(unpacked, packed) < 0:
            raise ValueError("a page of less than no bytes")
        at += size + packed
        raw += unpacked
        longest = max(longest, unpacked)
        if kind == _DICTIONARY_PAGE:
            plain = False
        elif kind in (_DATA_PAGE, _DATA_PAGE_V2):
            page = header[5 if kind == _DATA_PAGE else 8]
            if not isinstance(page, dict):
                raise TypeError("a page's own header is no struct")
            values += max(0, page[1])
            plain &= page[2 if kind == _DATA_PAGE else 4] == _PLAIN
    decimal = _DECIMAL if column.logical_type.type == "DECIMAL" else 0
    if chunk.physical_type == "BYTE_ARRAY":
        return (_LEVELS + 4 + decimal) * values + (raw if plain else values * longest)
    # A FIXED_LEN_BYTE_ARRAY has a length of its own.
    width = max(decimal, _WIDTHS.get(chunk.physical_type, column.length))
    return (_LEVELS + width) * values + raw
