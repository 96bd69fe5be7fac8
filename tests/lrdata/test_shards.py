"""Shards and the manifest: what is written is read back; what is not as it was written is said."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.manifest import Ledger, read_manifest, safe_path
from lrdata.shards import SCHEMA, Row, Shards
from tests.lrdata.made_dataset import TRAIN, good_rows, write_dataset


def _equal(left: Row, right: Row) -> bool:
    pairs = ((getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(Row))
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs if a is not None)


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
    shards = open_dataset(tmp_path)
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
    monkeypatch.setattr("lrdata.shard_writer.PAGE_TOKENS", (2 * TRAIN, 2 * TRAIN))
    monkeypatch.setattr("lrdata.shard_writer.GROUP_TOKENS", 1)
    manifest = write_dataset(tmp_path)
    assert pq.ParquetFile(tmp_path / manifest.files[0].path).num_row_groups == 2
    shards = Shards(tmp_path, manifest, cached_groups=1)
    rows = [row for file in good_rows()["extend"] for row in file]
    for index in (*range(len(rows)), *reversed(range(len(rows)))):
        assert _equal(shards.read_row("extend", index), rows[index])


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
        open_dataset(tmp_path).read_row("extend", 0)


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
