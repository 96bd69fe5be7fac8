"""croissant.json is valid by mlcroissant itself, which reads our rows through it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlcroissant
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrdata.atomic import write_json
from lrdata.layout import SPLITS
from lrdata.manifest import Manifest
from lrdata.report.croissant import croissant
from lrdata.shard_writer import writing_shard
from lrdata.shards import LSD_FIELD, SCHEMA, schema_of
from lrdata.staging import complete
from tests.lrdata.made_dataset import extend_row, good_rows, write_dataset


def _write(folder: Path, kinds: Iterable[str], lsd: bool = False) -> Manifest:
    """A dataset of these kinds with its croissant.json."""
    manifest = write_dataset(folder, {kind: good_rows()[kind] for kind in kinds})
    if lsd:
        manifest = replace(manifest, lsd=True)
        gains = np.where(np.arange(32) % 3, 0.5, np.nan).astype(np.float16)
        for entry in manifest.files:
            with writing_shard(folder / entry.path, SCHEMA.append(LSD_FIELD)) as shard:
                shard.write(extend_row(lsd=gains))
    write_json(folder / "croissant.json", croissant(manifest))
    return manifest


def _document(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize(
    ("kinds", "lsd"),
    [
        (["extend"], False),
        (["extend", "replay"], False),
        (["extend", "replay", "holdout"], False),
        (["extend"], True),
    ],
)
def test_mlcroissant_accepts_it_and_reads_our_rows(
    tmp_path: Path, kinds: list[str], lsd: bool
) -> None:
    manifest = _write(tmp_path, kinds, lsd)
    dataset = mlcroissant.Dataset(str(tmp_path / "croissant.json"))
    assert dataset.metadata.ctx.issues.errors == set()
    assert [records.id for records in dataset.metadata.record_sets] == kinds
    for kind in kinds:
        ours = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / kind).iterdir()))
        assert ours.schema.names == schema_of(manifest, kind).names
        theirs = list(dataset.records(kind))
        assert len(theirs) == ours.num_rows > 0
        for record, row in zip(theirs, ours.to_pylist(), strict=True):
            assert list(record) == [f"{kind}/{column}" for column in ours.schema.names]
            for column, value in row.items():
                _assert_same(record[f"{kind}/{column}"], value)


def _assert_same(theirs: Any, ours: Any) -> None:
    """mlcroissant gives texts as bytes."""
    if isinstance(ours, list) and ours and isinstance(ours[0], str):
        assert [text.decode() for text in theirs] == ours
    elif isinstance(ours, str):
        assert theirs.decode() == ours
    else:
        np.testing.assert_array_equal(theirs, ours)


def test_mlcroissant_would_say_what_is_wrong(tmp_path: Path) -> None:
    _write(tmp_path, ["extend"])
    document = _document(tmp_path)
    document["recordSet"][0]["field"][0]["source"]["fileSet"]["@id"] = "nowhere"
    with pytest.raises(mlcroissant.ValidationError, match="nowhere"):
        mlcroissant.Dataset(document)


def test_it_names_every_file_and_column(tmp_path: Path) -> None:
    manifest = _write(tmp_path, SPLITS)
    found = _document(tmp_path)
    objects = [item for item in found["distribution"] if item["@type"] == "cr:FileObject"]
    assert {item["contentUrl"] for item in objects} == {entry.path for entry in manifest.files}
    for item in objects:
        data = (tmp_path / item["contentUrl"]).read_bytes()
        assert item["sha256"] == hashlib.sha256(data).hexdigest()
        assert item["contentSize"] == f"{len(data)} B"
    sets = {item["@id"]: item for item in found["distribution"] if item["@type"] == "cr:FileSet"}
    for records in found["recordSet"]:
        assert [field["name"] for field in records["field"]] == SCHEMA.names
        for field, column in zip(records["field"], SCHEMA, strict=True):
            files = sets[field["source"]["fileSet"]["@id"]]
            listed = sorted((tmp_path / records["name"]).iterdir())
            assert sorted(tmp_path.glob(files["includes"])) == listed
            assert field.get("repeated", False) == pa.types.is_list(column.type)


def test_equal_builds_have_equal_files_in_whatever_folder(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "made")
    folders = [tmp_path / "one", tmp_path / "another"]
    for folder in folders:
        folder.mkdir()
        complete(folder, manifest)
    for name in ("README.md", "croissant.json", "manifest.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    first, *others = manifest.files
    changed = replace(manifest, files=[replace(first, content_sha256="0" * 64), *others])
    assert croissant(changed)["name"] != croissant(manifest)["name"]


@pytest.mark.parametrize("licence", ["MIT", '"}], <script>', "日本語\n\u2028"])
def test_text_of_a_manifest_is_text(tmp_path: Path, licence: str) -> None:
    manifest = write_dataset(tmp_path)
    sources = [replace(manifest.sources[0], licence=licence), *manifest.sources[1:]]
    named = replace(manifest.tokenizer, name="</script>\x1b")
    write_json(
        tmp_path / "croissant.json", croissant(replace(manifest, sources=sources, tokenizer=named))
    )
    dataset = mlcroissant.Dataset(str(tmp_path / "croissant.json"))
    assert dataset.metadata.license == [licence]
    assert "</script>\x1b" in dataset.metadata.description
