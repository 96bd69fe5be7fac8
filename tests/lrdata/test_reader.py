"""One corpus in every format gives the same documents; prompts, ids and sources are found."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zstandard

from lrdata.corpus import find_files, plan_units
from lrdata.errors import LongRecipeError
from lrdata.reader import read_unit
from lrdata.records import Fields
from tests.lrdata.reading import read_file

_RECORDS = [
    {
        "text": f"text {number} ж\n漢字\\",
        "meta": {"id": number, "from": f"site {number % 3}"},
        "question": f"why {number}?",
        "answer": f"so {number}.",
    }
    for number in range(20)
]


def _in_every_format(folder: Path) -> list[Path]:
    data = "".join(json.dumps(record) + "\n" for record in _RECORDS).encode()
    (folder / "c.jsonl").write_bytes(data)
    (folder / "c.ndjson.gz").write_bytes(gzip.compress(data))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(data))
    table = pa.Table.from_pylist(_RECORDS)
    pq.write_table(table, folder / "c.parquet", row_group_size=6)
    feather.write_feather(table, str(folder / "c.feather"))
    with pa.ipc.new_stream(str(folder / "c.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=6)
    return sorted(folder.iterdir())


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    paths = _in_every_format(tmp_path)
    assert len(paths) == 6
    for path in paths:
        found, rejected = read_file(path, Fields(id="meta.id", source="meta.from"))
        assert not rejected
        assert found.texts == [record["text"] for record in _RECORDS]
        assert found.ids == [str(number) for number in range(20)]
        assert found.sources == [f"site {number % 3}" for number in range(20)]
        assert set(found.files) == {path.name}
        assert found.prompts is None
        found, _ = read_file(path, Fields(prompt="question", response="answer"))
        assert found.prompts == [record["question"] for record in _RECORDS]
        assert found.texts == [record["answer"] for record in _RECORDS]
        assert found.ids == [f"{path.name}:{at}" for at in found.records]


def test_an_id_or_source_that_is_no_label_falls_back_to_the_files(tmp_path: Path) -> None:
    values = [None, True, 1.5, "", [1], "\ud800", "good", 7]
    lines = [json.dumps({"text": "t", "id": value, "source": value}) for value in values]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    found, _ = read_file(tmp_path / "c.jsonl", Fields(id="id", source="source"))
    assert found.ids[-2:] == ["good", "7"]
    assert found.sources[-2:] == ["good", "7"]
    assert all(name.startswith("c.jsonl:") for name in found.ids[:-2])
    assert set(found.sources[:-2]) == {"c"}


def test_a_field_whose_name_has_a_dot_comes_before_a_way_into_objects(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"a.b": "own", "a": {"b": "inner"}}))
    found, _ = read_file(tmp_path / "c.jsonl", Fields(text="a.b"))
    assert found.texts == ["own"]


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a"}\n')
    (unit,) = plan_units(find_files([str(path)]))
    path.write_text('{"text": "another"}\n')
    with pytest.raises(LongRecipeError, match="changed while it was being read"):
        list(read_unit(unit, Fields()))


def test_batches_hold_about_what_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 1000}) + "\n" for _ in range(100)))
    (unit,) = plan_units(find_files([str(path)]))
    sizes = [len(documents) for documents, _ in read_unit(unit, Fields(), batch_bytes=10_000)]
    assert sum(sizes) == 100
    assert max(sizes) <= 10
