"""Parquet and Arrow records are what pyarrow reads; damage costs the damaged part and no more."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrdata.errors import LongRecipeError
from lrdata.records import Fields
from tests.lrdata.reading import read_file

_TEXTS = [f"text {number} ж漢" * (1 + number % 7) for number in range(50)]


def _table(kind: pa.DataType) -> pa.Table:
    return pa.table({"number": range(50), "text": pa.array(_TEXTS).cast(kind)})


def _write(table: pa.Table, path: Path, how: str) -> Path:
    if how == "parquet":
        pq.write_table(table, path, row_group_size=7)
    elif how == "feather":
        feather.write_feather(table, str(path), compression="zstd", chunksize=7)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    return path


_WAYS = [("t.parquet", "parquet"), ("t.feather", "feather"), ("t.arrow", "stream")]


@pytest.mark.parametrize(("name", "how"), _WAYS)
@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_every_kind_of_text_column_is_read(
    tmp_path: Path, name: str, how: str, kind: pa.DataType
) -> None:
    path = _write(_table(kind), tmp_path / name, how)
    found, rejected = read_file(path, Fields(id="number"), unit_bytes=500)
    assert not rejected
    assert found.texts == _TEXTS
    assert found.records == list(range(50))
    assert found.ids == [str(number) for number in range(50)]
    assert set(found.sources) == {"t"}


_VALUES = st.lists(st.none() | st.text(max_size=20), max_size=30)


@given(_VALUES, st.integers(1, 9), st.integers(1, 200), st.sampled_from(_WAYS))
def test_every_row_is_a_document_or_rejected(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    group: int,
    unit_bytes: int,
    way: tuple[str, str],
) -> None:
    path = tmp_path_factory.mktemp("c") / way[0]
    table = pa.table({"text": pa.array(texts, pa.string())})
    if way[1] == "parquet":
        pq.write_table(table, path, row_group_size=group)
    else:
        _write(table, path, way[1])
    found, rejected = read_file(path, unit_bytes=unit_bytes)
    usable = {
        at: text for at, text in enumerate(texts) if text and text.strip() and "\0" not in text
    }
    assert dict(zip(found.records, found.texts, strict=True)) == usable
    assert found.records == sorted(found.records)
    refused = sorted(entry.record for entry in rejected)
    assert refused == [at for at in range(len(texts)) if at not in usable]


def test_fields_of_structs_are_found_by_dotted_names(tmp_path: Path) -> None:
    rows = [{"body": {"text": f"t{at}"}, "meta": {"id": at, "src": "web"}} for at in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    fields = Fields(text="body.text", id="meta.id", source="meta.src")
    found, _ = read_file(tmp_path / "t.parquet", fields)
    assert found.texts == [row["body"]["text"] for row in rows]
    assert found.ids == [str(at) for at in range(9)]
    assert set(found.sources) == {"web"}


@pytest.mark.parametrize(("name", "how"), _WAYS)
def test_a_missing_field_and_one_of_numbers_are_said_in_a_line(
    tmp_path: Path, name: str, how: str
) -> None:
    path = _write(_table(pa.string()), tmp_path / name, how)
    with pytest.raises(LongRecipeError, match=r"no field 'body' .* its fields are: number, text"):
        read_file(path, Fields(text="body"))
    with pytest.raises(LongRecipeError, match=r"'number' of .* is int64, not text"):
        read_file(path, Fields(text="number"))


def test_bytes_that_are_not_utf8_cost_their_row_only(tmp_path: Path) -> None:
    values = [b"good", b"\xff\xfe", b"better"]
    pq.write_table(pa.table({"text": pa.array(values, pa.binary())}), tmp_path / "t.parquet")
    found, rejected = read_file(tmp_path / "t.parquet")
    assert found.texts == ["good", "better"]
    assert [(entry.record, entry.reason) for entry in rejected] == [(1, "text is not UTF-8")]


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_row_group_is_rejected_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"text": [f"{number:05d}" * 50 for number in range(40)]})
    pq.write_table(
        table,
        path,
        row_group_size=10,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    column: Any = pq.read_metadata(path).row_group(2).column(0)
    _flip(path, column.data_page_offset + column.total_compressed_size // 2)
    found, rejected = read_file(path)
    assert found.records == [*range(20), *range(30, 40)]
    assert [(entry.record, entry.count, entry.reason) for entry in rejected] == [
        (20, 10, "damaged row group 2")
    ]


@pytest.mark.parametrize(("name", "how"), _WAYS)
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.6])
def test_a_truncated_file_is_rejected_where_it_ends(
    tmp_path: Path, name: str, how: str, kept: float
) -> None:
    path = _write(_table(pa.string()), tmp_path / name, how)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    found, rejected = read_file(path)
    assert found.texts == _TEXTS[: len(found)]
    assert len(found) < 50
    if how == "stream" and kept == 0.6:
        assert len(found) > 0  # a stream needs no footer
    assert len(rejected) == 1
    assert rejected[0].reason.startswith("damaged")


@example(place=0.5234375, way=("t.parquet", "parquet"))  # in a column's name
@example(place=0.017968696598091638, way=("t.arrow", "stream"))  # a name that is no text
@given(place=st.floats(0, 1, exclude_max=True), way=st.sampled_from(_WAYS))
def test_a_flipped_byte_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, place: float, way: tuple[str, str]
) -> None:
    path = _write(_table(pa.string()), tmp_path_factory.mktemp("d") / way[0], way[1])
    _flip(path, int(place * path.stat().st_size))
    with suppress(LongRecipeError):  # where the name of the column itself was hit
        found, _ = read_file(path)
        assert len(found) <= 50
