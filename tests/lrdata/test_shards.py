"""Shards and the manifest: what is written is read back; what is not as it was written is said."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.errors import LongRecipeError
from lrdata.manifest import Ledger, read_manifest, safe_path
from lrdata.shards import (
    SCHEMA,
    ContentHash,
    Row,
    Shards,
    open_shards,
    rows_to_table,
    table_to_rows,
    writing_shard,
)
from tests.lrdata.made_dataset import TRAIN, extend_row, good_rows, write_dataset


def _equal(left: Row, right: Row) -> bool:
    pairs = ((getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(Row))
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs if a is not None)


_ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40),
        st.lists(st.text(max_size=5), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=8,
)


@given(_ROWS)
def test_rows_come_back_equal_and_the_content_hash_ignores_grouping(
    values: list[tuple[list[int], list[str]]],
) -> None:
    rows = [
        extend_row(
            input_ids=np.array(ids, np.int32),
            impact_mask=np.array(ids) % 2 == 0,
            doc_ids=names,
            doc_offsets=np.array([len(name) << 40 for name in names], np.int64),
        )
        for ids, names in values
    ]
    table = rows_to_table(rows)
    assert table.schema == SCHEMA
    back = list(table_to_rows(table))
    assert len(back) == len(rows)
    assert all(map(_equal, rows, back))
    whole, single = ContentHash(SCHEMA), ContentHash(SCHEMA)
    whole.update(table)
    for row in rows:
        single.update(rows_to_table([row]))
    assert whole.hexdigest() == single.hexdigest()
    changed = dataclasses.replace(rows[0], input_ids=rows[0].input_ids ^ 1)
    other = ContentHash(SCHEMA)
    other.update(rows_to_table([changed, *rows[1:]]))
    assert other.hexdigest() != whole.hexdigest()


def test_a_shard_has_what_the_contract_says(tmp_path: Path) -> None:
    """The schema, zstd, a page index, and values that pyarrow alone reads."""
    write_dataset(tmp_path)
    for entry in read_manifest(tmp_path).files:
        file = pq.ParquetFile(tmp_path / entry.path)
        assert file.schema_arrow.equals(SCHEMA)
        group = file.metadata.row_group(0)
        columns = [group.column(at) for at in range(group.num_columns)]
        assert {column.compression for column in columns} == {"ZSTD"}
        assert all(column.has_offset_index for column in columns)
        data = (tmp_path / entry.path).read_bytes()
        assert entry.sha256 == hashlib.sha256(data).hexdigest()


def test_any_row_is_read_by_its_number(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    shards = open_shards(tmp_path)
    for kind, files in good_rows().items():
        rows = [row for file in files for row in file]
        for index in (*range(len(rows)), 0):
            assert _equal(shards.read_row(kind, index), rows[index])
        with pytest.raises(LongRecipeError, match=f"has {len(rows)} {kind} rows"):
            shards.read_row(kind, len(rows))


def test_any_row_is_read_out_of_its_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of three rows in two groups, and fewer groups kept than there are."""
    monkeypatch.setattr("lrdata.shards.ROW_GROUP_BYTES", 2 * 10 * TRAIN)
    manifest = write_dataset(tmp_path)
    assert pq.ParquetFile(tmp_path / manifest.files[0].path).num_row_groups == 2
    shards = Shards(tmp_path, manifest, cached_groups=1)
    rows = [row for file in good_rows()["extend"] for row in file]
    for index in (*range(len(rows)), *reversed(range(len(rows)))):
        assert _equal(shards.read_row("extend", index), rows[index])


def test_the_content_hash_tells_the_same_tokens_in_other_rows() -> None:
    def of(*lengths: int) -> str:
        parts = np.split(np.arange(5, dtype=np.int32), np.cumsum(lengths)[:-1])
        content = ContentHash(SCHEMA)
        content.update(rows_to_table([extend_row(input_ids=part) for part in parts]))
        return content.hexdigest()

    assert of(2, 3) == of(2, 3)
    assert of(2, 3) != of(3, 2)


def test_a_row_more_leaves_most_bytes_of_a_shard_as_they_were(tmp_path: Path) -> None:
    """What content-defined chunking is for: storage that deduplicates keeps the rest."""
    draw = np.random.default_rng(0)
    one, *rows = (
        extend_row(input_ids=draw.integers(0, 50_000, 4_000, np.int32)) for _ in range(801)
    )
    for name, chosen in (("a", rows), ("b", [*rows[:2], one, *rows[2:]])):
        with writing_shard(tmp_path / name) as shard:
            for row in chosen:
                shard.write(row)
    before, after = ((tmp_path / name).read_bytes() for name in "ab")
    places = range(len(before) // 4, len(before) - 64, len(before) // 100)
    found = [before[place : place + 64] in after for place in places]
    assert np.mean(found) > 0.7


def test_a_shard_that_was_not_finished_does_not_exist(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with writing_shard(tmp_path / "a.parquet") as shard:
            shard.write(extend_row())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert not (tmp_path / "a.parquet").exists()


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (Path.unlink, "missing; pull it again"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "the manifest says"),
        (_flip, "its sha256 is not the manifest's"),
    ],
)
def test_a_spoiled_file_is_said(tmp_path: Path, spoil: Any, line: str) -> None:
    write_dataset(tmp_path)
    spoil(tmp_path / "extend/train-00000-of-00002.parquet")
    with pytest.raises(LongRecipeError, match=line):
        open_shards(tmp_path).read_row("extend", 0)


def test_a_manifest_comes_back_equal_and_unknown_keys_are_passed_over(tmp_path: Path) -> None:
    written = write_dataset(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert read_manifest(tmp_path) == written


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda raw: raw.update(format_version="2.0"), "reads 1.x: install the version"),
        (lambda raw: raw.update(format="else"), "has the format 'else'"),
        (lambda raw: raw.pop("files"), "is damaged"),
        (lambda raw: raw.update(target_len="64"), "target_len is '64'"),
        (lambda raw: raw["files"][0].update(path="../x.parquet"), "outside its folder"),
        (lambda raw: raw["files"][0].update(rows=True), "rows is True"),
    ],
)
def test_a_manifest_that_is_not_ours_is_said_in_a_line(
    tmp_path: Path, change: Any, line: str
) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "manifest.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(LongRecipeError, match=line) as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_broken_manifest_is_said_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(LongRecipeError, match="damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b", "..", "", "c:x", "a\\b"])
def test_a_name_that_leaves_the_folder_is_not_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(LongRecipeError, match="outside its folder"):
        safe_path(tmp_path, name)


def test_a_ledger_that_does_not_add_up_says_which_equation() -> None:
    good = Ledger(records_read=3, records_built=2, records_quarantined=1, encoded=9, kept=9)
    assert good.problems() == []
    assert len(dataclasses.replace(good, records_read=4).problems()) == 1
    assert len(dataclasses.replace(good, dropped=1).problems()) == 1
    good.add(good)
    assert (good.encoded, good.records_read) == (18, 6)
