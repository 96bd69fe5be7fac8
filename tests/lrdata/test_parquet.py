"""Our Parquet files are what three other implementations of the format read: pyarrow's (C++),
polars' (Rust) and DuckDB's."""

import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lrdata.parquet import Column, ParquetFile
from lrdata.parquet.encodings import delta_binary_packed

_TYPES = {
    "ids": pa.int32(),
    "offsets": pa.int64(),
    "mask": pa.bool_(),
    "texts": pa.string(),
    "gains": pa.float16(),
    "weights": pa.float32(),
}
_DELTA = ("ids", "delta_list", "offsets_list")


def _field(name: str, kind: pa.DataType, listed: bool) -> pa.Field:
    if listed:
        kind = pa.list_(pa.field("element", kind, nullable=False))
    return pa.field(name, kind, nullable=False)


SCHEMA = pa.schema(
    [
        *(_field(name, kind, False) for name, kind in _TYPES.items()),
        *(_field(f"{name}_list", kind, True) for name, kind in _TYPES.items()),
        _field("delta_list", pa.int32(), True),
    ]
)


def _values(kind: pa.DataType, count: int, draw: np.random.Generator) -> list[Any]:
    """Values of all sizes: runs of the same, small ones, and the extremes of the type."""
    if pa.types.is_string(kind):
        return ["é" * int(size) for size in draw.integers(0, 5, count)]
    if pa.types.is_boolean(kind):
        return (draw.random(count) < draw.random()).tolist()
    if pa.types.is_floating(kind):
        return draw.normal(size=count).astype(kind.to_pandas_dtype()).tolist()
    bits = np.iinfo(kind.to_pandas_dtype()).bits
    wide = draw.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count, np.int64)
    return (wide >> draw.choice([0, 8, bits - 2, bits - 1], count)).tolist()


def _table(rows: int, seed: int) -> pa.Table:
    draw = np.random.default_rng(seed)
    columns = []
    for field in SCHEMA:
        if pa.types.is_list(field.type):
            lengths = draw.choice([0, 1, 2, 40, 500], rows)
            kind = field.type.value_type
            values: list[Any] = [_values(kind, int(length), draw) for length in lengths]
        else:
            values = _values(field.type, rows, draw)
        columns.append(pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _columns(table: pa.Table) -> list[Column]:
    columns = []
    for name in table.column_names:
        array, lengths = table.column(name).combine_chunks(), None
        if pa.types.is_list(array.type):
            lengths = np.array([len(row) for row in array.to_pylist()], np.int64)
            array = array.flatten()
        if pa.types.is_string(array.type):
            columns.append(Column([text.encode() for text in array.to_pylist()], lengths))
        else:
            columns.append(Column(array.to_numpy(zero_copy_only=False), lengths))
    return columns


def _write(stream: BinaryIO, groups: list[pa.Table], page_rows: int) -> None:
    file = ParquetFile(stream, SCHEMA, _DELTA)
    for table in groups:
        for start in range(0, table.num_rows, page_rows):
            file.add_page(_columns(table.slice(start, page_rows)))
        file.end_group()
    file.finish()


@pytest.mark.parametrize("page_rows", [1, 13, 1000])
@pytest.mark.parametrize("sizes", [(1,), (7, 1), (200, 3, 90)])
def test_three_other_readers_read_what_was_written(
    tmp_path: Path, page_rows: int, sizes: tuple[int, ...]
) -> None:
    groups = [_table(rows, seed) for seed, rows in enumerate(sizes)]
    table, path = pa.concat_tables(groups), tmp_path / "t.parquet"
    with path.open("wb") as stream:
        _write(stream, groups, page_rows)
    back = pq.read_table(path, page_checksum_verification=True)
    assert back.schema.equals(SCHEMA)
    assert back.equals(table)
    assert pl.read_parquet(path).equals(pl.from_arrow(table))
    with duckdb.connect() as database:
        found = database.sql(f"SELECT * FROM '{path}'").to_arrow_table()
    loose = pa.schema([(f.name, _loose(f.type)) for f in SCHEMA])  # it reads halves as floats
    assert found.cast(loose).equals(table.cast(loose))


def _loose(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_loose(kind.value_type))
    return pa.float32() if pa.types.is_float16(kind) else kind


@settings(max_examples=40)
@given(rows=st.integers(1, 12), seed=st.integers(0, 2**32), page_rows=st.integers(1, 12))
def test_any_rows_come_back(rows: int, seed: int, page_rows: int) -> None:
    table, stream = _table(rows, seed), io.BytesIO()
    _write(stream, [table], page_rows)
    assert pq.read_table(stream, page_checksum_verification=True).equals(table)


_INTEGERS = st.sampled_from([np.int32, np.int64]).flatmap(
    lambda kind: arrays.arrays(kind, st.integers(1, 700), fill=st.just(kind(3)))
)


@given(_INTEGERS)
def test_differences_come_back(values: np.ndarray) -> None:
    """Any integers, also where a difference is too large for their type."""
    schema = pa.schema([pa.field("x", pa.from_numpy_dtype(values.dtype), nullable=False)])
    stream = io.BytesIO()
    file = ParquetFile(stream, schema, ["x"])
    file.add_page([Column(values)])
    file.finish()
    column = pq.ParquetFile(stream).metadata.row_group(0).column(0)
    assert "DELTA_BINARY_PACKED" in column.encodings
    assert np.array_equal(pq.read_table(stream)["x"].to_numpy(), values)


def test_differences_are_as_small_as_pyarrow_makes_them() -> None:
    draw = np.random.default_rng(0)
    skips = np.where(draw.random(40_000) < 1 / 88, draw.integers(0, 400, 40_000), 1)
    values = np.cumsum(skips).astype(np.int32)
    stream = io.BytesIO()
    pq.write_table(
        pa.table({"x": values}),
        stream,
        use_dictionary=False,
        compression="none",
        column_encoding={"x": "DELTA_BINARY_PACKED"},
        write_statistics=False,
    )
    theirs = pq.ParquetFile(stream).metadata.row_group(0).column(0).total_uncompressed_size
    assert len(delta_binary_packed(values)) == pytest.approx(theirs, rel=0.01)


def test_statistics_are_the_smallest_and_largest_values() -> None:
    groups, stream = [_table(50, 0), _table(60, 1)], io.BytesIO()
    _write(stream, groups, 7)
    metadata = pq.ParquetFile(stream).metadata
    for number, table in enumerate(groups):
        group = metadata.row_group(number)
        assert group.num_rows == table.num_rows
        for index, field in enumerate(SCHEMA):
            array = table.column(field.name)
            if pa.types.is_list(field.type):
                array = array.combine_chunks().flatten()
            found = group.column(index)
            assert found.has_offset_index
            if pa.types.is_floating(array.type):
                assert not found.statistics.has_min_max
                continue
            values = array.to_pylist()
            assert found.has_column_index
            assert (found.statistics.min, found.statistics.max) == (min(values), max(values))


@pytest.mark.parametrize("page_rows", [1, 13, 1000])
def test_a_page_index_says_where_the_pages_are(page_rows: int) -> None:
    """Its offsets lead to page headers, whose checksums and sizes are right, row after row."""
    groups, stream = [_table(200, 5), _table(90, 6)], io.BytesIO()
    _write(stream, groups, page_rows)
    data = stream.getvalue()
    footer = _Compact(data, len(data) - 8 - int.from_bytes(data[-8:-4], "little")).struct()
    for group, table in zip(footer[4], groups, strict=True):
        for field, chunk in zip(SCHEMA, group[1], strict=True):
            places = _Compact(data, chunk[4]).struct()[1]
            at = chunk[3][9]
            lengths = [1] * table.num_rows
            if pa.types.is_list(field.type):
                lengths = [max(len(row), 1) for row in table[field.name].to_pylist()]
            firsts = [place[3] for place in places]
            assert firsts == list(range(0, table.num_rows, page_rows))
            stops = [*firsts[1:], table.num_rows]
            for place, stop in zip(places, stops, strict=True):
                assert place[1] == at
                reader = _Compact(data, at)
                header = reader.struct()
                packed = data[reader.at : reader.at + header[3]]
                assert header[4] & 0xFFFFFFFF == zlib.crc32(packed)
                assert place[2] == reader.at - at + header[3]
                assert header[5][1] == sum(lengths[place[3] : stop])
                at += place[2]
            assert at == chunk[3][9] + chunk[3][7]
            if 6 in chunk:
                index = _Compact(data, chunk[6]).struct()
                assert len(index[1]) == len(index[2]) == len(index[3]) == len(places)


class _Compact:
    """Reads Thrift's compact protocol, as far as Parquet uses it."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    def value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            number = self.varint()
            return number >> 1 ^ -(number & 1)
        if kind == 8:
            size = self.varint()
            self.at += size
            return self.data[self.at - size : self.at]
        if kind == 9:
            head = self.byte()
            count = self.varint() if head >> 4 == 15 else head >> 4
            item = head & 15
            return [self.byte() if item == 1 else self.value(item) for _ in range(count)]
        assert kind == 12
        return self.struct()

    def struct(self) -> dict[int, Any]:
        fields, number = {}, 0
        while head := self.byte():
            number += head >> 4
            fields[number] = self.value(head & 15)
        return fields


def test_a_file_without_rows_has_its_schema() -> None:
    stream = io.BytesIO()
    _write(stream, [], 1)
    table = pq.read_table(stream)
    assert table.schema.equals(SCHEMA)
    assert not len(table)


@pytest.mark.parametrize(
    ("field", "line"),
    [
        (pa.field("x", pa.int32()), "x may hold nulls"),
        (pa.field("x", pa.list_(pa.int32()), nullable=False), "x may hold nulls"),
        (pa.field("x", pa.date32(), nullable=False), "x is of type date32"),
    ],
)
def test_a_column_that_cannot_be_written_is_refused(field: pa.Field, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        ParquetFile(io.BytesIO(), pa.schema([field]))


def test_differences_of_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="texts has no integers"):
        ParquetFile(io.BytesIO(), SCHEMA, ["texts"])


def test_columns_that_do_not_fit_are_refused() -> None:
    schema = pa.schema([_field("x", pa.int32(), True), _field("y", pa.int32(), False)])
    file = ParquetFile(io.BytesIO(), schema)
    one, two = np.zeros(1, np.int32), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="columns of"):
        file.add_page([Column(two, np.array([2])), Column(two)])
    with pytest.raises(ValueError, match="x is list"):
        file.add_page([Column(one), Column(one)])
    with pytest.raises(ValueError, match="columns of"):
        file.add_page([Column(one[:0], np.zeros(0, np.int64)), Column(one[:0])])
