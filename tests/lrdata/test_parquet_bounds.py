"""How large a row group gets: never less than what pyarrow decodes, and known for bombs too."""

import io
import random
import re
import subprocess
import sys
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.parquet.bounds import decoded_bytes
from lrdata.parquet.thrift import Value, binary, boolean, i32, i64, listed, read_struct, struct
from lrdata.shard_file import LARGEST_GROUP, ShardFile
from tests.lrdata.build_runs import ROOT
from tests.lrdata.made_dataset import good_rows, rows_to_table


@given(
    rows=st.integers(1, 60),
    longest=st.integers(0, 300),
    dictionary=st.booleans(),
    version=st.sampled_from(["1.0", "2.0"]),
    compression=st.sampled_from(["zstd", "none", "snappy"]),
    page=st.sampled_from([64, 4096, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_it_is_no_less_than_what_is_decoded(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    longest: int,
    dictionary: bool,
    version: str,
    compression: str,
    page: int,
    seed: int,
) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(0, longest) for _ in range(rows)]
    required = pa.field("element", pa.int32(), False)
    texts = ["é" * draw.randint(0, 20) for _ in range(3)]
    table = pa.table(
        {
            "ids": pa.array([[draw.randint(0, 3)] * n for n in lengths], pa.list_(required)),
            "names": pa.array([[draw.choice(texts)] * n for n in lengths], pa.list_(pa.string())),
            "gain": pa.array([[0.5] * n for n in lengths], pa.list_(pa.float16())),
            "wide": pa.array(lengths, pa.int64()),
            "one": pa.array([draw.choice(texts) for _ in lengths]),
            "bit": pa.array([n % 2 == 0 for n in lengths]),
        }
    )
    path = tmp_path_factory.mktemp("bounds") / "a.parquet"
    pq.write_table(
        table,
        path,
        use_dictionary=dictionary,
        data_page_version=version,
        compression=compression,
        data_page_size=page,
    )
    with pq.ParquetFile(path) as file:
        assert decoded_bytes(path, file.metadata, 0) >= _payload(file.read_row_group(0))


def _payload(table: pa.Table) -> int:
    """Bytes of the values alone; what every group has beside them is no matter of bombs."""
    arrays = [column.combine_chunks() for column in table.columns]
    flat = [array.flatten() if pa.types.is_list(array.type) else array for array in arrays]
    return sum(
        pa.compute.sum(pa.compute.binary_length(array)).as_py() or 0
        if pa.types.is_string(array.type)
        else len(array) * array.type.bit_width // 8
        for array in flat
    )


def test_shards_of_ours_are_far_from_the_limit(tmp_path: Path) -> None:
    table = rows_to_table(good_rows()["extend"][0])
    pq.write_table(table, tmp_path / "a.parquet")
    with ShardFile(tmp_path / "a.parquet") as file:
        assert file.read(0).equals(table)
    with pq.ParquetFile(tmp_path / "a.parquet") as plain:
        assert decoded_bytes(tmp_path / "a.parquet", plain.metadata, 0) < LARGEST_GROUP / 1000


def zeros(path: Path, count: int, said: int | None = None) -> None:
    """`count` zeros in some hundred bytes, and a footer that says there are `said` of them."""
    stream = io.BytesIO()
    row = pa.array([np.zeros(count, np.int32)], pa.list_(pa.field("element", pa.int32(), False)))
    pq.write_table(pa.table({"ids": row}), stream, compression="zstd", data_page_size=1 << 30)
    raw = stream.getvalue()
    if said is not None:
        footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
        true = i64(count).data
        lie = bytearray(i64(said).data)
        while len(lie) < len(true):  # the same number in as many bytes
            lie[-1] |= 0x80
            lie.append(0)
        assert true in raw[footer:]
        raw = raw[:footer] + raw[footer:].replace(true, bytes(lie))
    path.write_bytes(raw)


_READ = """
import sys
import pyarrow as pa
from lrdata.shard_file import ShardFile

with ShardFile(sys.argv[1]) as file:
    try:
        file.read(0)
    except pa.ArrowInvalid as problem:
        print(problem)
print(pa.default_memory_pool().max_memory())
"""


def refused(path: Path) -> str:
    """What is said of a file by a process that Arrow gave no more than a megabyte to, ever."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *said, most = done.stdout.splitlines()
    assert int(most) < 10**6
    return "".join(said)


@pytest.mark.parametrize("said", [None, 100])
def test_a_bomb_of_equal_values_is_not_decoded(tmp_path: Path, said: int | None) -> None:
    path = tmp_path / "bomb.parquet"
    zeros(path, 140_000_000, said)
    assert path.stat().st_size < 1000
    if said:
        assert pq.ParquetFile(path).metadata.row_group(0).column(0).num_values == said
    assert "not decoded" in refused(path)


def test_a_bomb_of_one_long_text_is_not_decoded(tmp_path: Path) -> None:
    names = pa.array(["x" * 1_000_000]).take(pa.array(np.zeros(1500, np.int32)))
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"doc_ids": names}), path, compression="zstd", data_page_size=1 << 30)
    assert path.stat().st_size < 10_000
    assert "not decoded" in refused(path)


@pytest.mark.parametrize("digits", [3, 9, 18, 38])
def test_decimals_are_wider_decoded_than_written(tmp_path: Path, digits: int) -> None:
    values = pa.array([Decimal(1)] * 5000, pa.decimal128(digits))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": values}), path, store_decimal_as_integer=True)
    with pq.ParquetFile(path) as file:
        assert decoded_bytes(path, file.metadata, 0) >= file.read_row_group(0).nbytes


def test_files_of_which_arrow_reads_beyond_a_column_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1]}), path)
    raw = path.read_bytes()
    (ours,) = re.findall(rb"parquet-cpp-arrow version [0-9.]+", raw)
    path.write_bytes(raw.replace(ours, b"parquet-mr version 1.2.8".ljust(len(ours))))
    with ShardFile(path) as file, pytest.raises(pa.ArrowInvalid, match="parquet-mr"):
        file.read(0)


def test_texts_that_are_no_utf_8_are_an_error_of_arrow(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": pa.array([b"\xff"]).view(pa.string())}), path)
    with ShardFile(path) as file, pytest.raises(pa.ArrowInvalid, match="UTF8"):
        file.read(0)


@given(data=st.binary(max_size=300), place=st.floats(0, 1))
def test_broken_headers_are_an_error_of_arrow(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, place: float
) -> None:
    path = tmp_path_factory.mktemp("broken") / "a.parquet"
    stream = io.BytesIO()
    pq.write_table(pa.table({"ids": list(range(100)), "names": ["a"] * 100}), stream)
    raw = stream.getvalue()
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    at = 4 + int(place * (footer - 4))
    path.write_bytes(raw[:at] + data[: footer - at] + raw[at + len(data[: footer - at]) :])
    with pq.ParquetFile(path) as file, suppress(pa.ArrowInvalid):
        assert decoded_bytes(path, file.metadata, 0) >= 0


def test_structs_are_read_as_they_were_written() -> None:
    inner = struct({1: boolean(True), 3: boolean(False), 4: binary(b"x" * 200)})
    texts = listed([binary(b"a"), binary(b"")])
    many = listed([i32(n - 20) for n in range(40)])
    written = struct({1: i32(-7), 2: i64(1 << 60), 5: inner, 6: texts, 7: many, 8: listed([inner])})
    fields, end = read_struct(written.data + b"more", 0)
    expected = {1: True, 3: False, 4: b"x" * 200}
    assert end == len(written.data)
    assert fields == {
        **{1: -7, 2: 1 << 60, 5: expected, 6: [b"a", b""]},
        **{7: [n - 20 for n in range(40)], 8: [expected]},
    }


@given(st.binary(max_size=80))
def test_no_bytes_do_more_than_raise_value_error(data: bytes) -> None:
    try:
        _, end = read_struct(data, 0)
    except ValueError:
        return
    assert end <= len(data)


def test_structs_without_end_are_refused() -> None:
    for each in (0x1C, 0x19):  # structs in structs, lists in lists
        with pytest.raises(ValueError, match="too deep"):
            read_struct(bytes([each]) * 10_000, 0)


@pytest.mark.parametrize("page", [binary(b""), binary(b"xxxxxx"), i32(7), listed([i32(1)] * 9)])
def test_a_page_header_of_another_type_is_an_error_of_arrow(tmp_path: Path, page: Value) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"ids": list(range(100))}), path, use_dictionary=False)
    header = struct({1: i32(0), 2: i32(4), 3: i32(4), 5: page}).data
    raw = bytearray(path.read_bytes())
    raw[4 : 4 + len(header)] = header
    path.write_bytes(raw)
    with (
        pq.ParquetFile(path) as file,
        pytest.raises(pa.ArrowInvalid, match="broken page header"),
    ):
        decoded_bytes(path, file.metadata, 0)
