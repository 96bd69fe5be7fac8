"""A dataset made to do harm: every command says one line, and nothing happens elsewhere.

What `push` and `pull` make of one on the Hub is in test_hub_refusals.py; test_fuzz.py damages
corpora.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from lrdata.cli import main
from lrdata.shards import file_sha256
from tests.lrdata.made_dataset import (
    extend_row,
    good_rows,
    holdout_row,
    rows_to_table,
    write_dataset,
)
from tests.lrdata.test_parquet_bounds import zeros

FIRST = "extend/train-00000-of-00002.parquet"
HELD_OUT = "holdout/test-00000-of-00001.parquet"
COMMANDS: dict[str, list[str]] = {
    "verify": [],
    "inspect": [],
    "report": ["--out", "OUT"],
    "retarget": ["--target-len", "128", "--out", "OUT"],
    "export": ["--format", "trl", "--out", "OUT"],
    "pull": ["OUT"],
    "rebuild": ["--out", "OUT"],
}


def manifest(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "manifest.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return spoil


def shard(write: Callable[[Path], None], name: str = FIRST, **told: int) -> Callable[[Path], None]:
    """Another shard, and a manifest that tells the truth about its bytes."""

    def spoil(folder: Path) -> None:
        path = folder / name
        write(path)
        true = {"sha256": file_sha256(path), "bytes": path.stat().st_size, **told}
        manifest(lambda raw: next(one for one in raw["files"] if one["path"] == name).update(true))(
            folder
        )

    return spoil


def _zeros_among_columns(path: Path) -> None:
    """All columns, and in the first of them as many zeros as would fill the memory."""
    count = 140_000_000
    table = rows_to_table([extend_row()])
    run = pa.array([0]).take(pa.array([0] * 1000))  # grown by doubling: no list of Python numbers
    chunks = [run.cast(pa.int32())] * (count // 1000)
    values = pa.concat_arrays(chunks)
    ids = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    ids = ids.cast(table.schema.field("input_ids").type)
    table = table.set_column(0, table.schema.field("input_ids"), ids)
    pq.write_table(table, path, compression="zstd", data_page_size=1 << 30)


def _long_names(path: Path) -> None:
    """A document id of two megabytes, that stands a thousand times in a row."""
    table = rows_to_table([extend_row()])
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * 2_000_000])
    ids = pa.ListArray.from_arrays(pa.array([0, 1000], pa.int32()), names)
    table = table.set_column(table.schema.get_field_index("doc_ids"), "doc_ids", ids)
    pq.write_table(table, path, compression="zstd", data_page_size=1 << 30, store_schema=False)


def _long_sources(path: Path) -> None:
    """After a row group that is right one of a thousand rows, with two gigabytes of sources."""
    good = rows_to_table([holdout_row(0), holdout_row(1)])
    bomb = rows_to_table([holdout_row()] * 1000)
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * 2_000_000])
    bomb = bomb.set_column(bomb.schema.get_field_index("source"), "source", names)
    joined = io.BytesIO()
    with pq.ParquetWriter(
        joined, bomb.schema, compression="zstd", data_page_size=1 << 30, store_schema=False
    ) as writer:
        for table in (good.cast(bomb.schema), bomb):
            writer.write_table(table)
    path.write_bytes(joined.getvalue())


def _wrong_types(path: Path) -> None:
    table = rows_to_table(good_rows()["extend"][0])
    column = pa.array([["../../x"]] * len(table), pa.list_(pa.string()))
    pq.write_table(table.set_column(0, "input_ids", column), path)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a path that climbs": manifest(lambda raw: raw["files"][0].update(path="../../etc/passwd")),
    "an absolute path": manifest(lambda raw: raw["files"][0].update(path="/etc/passwd")),
    "a path of another system": manifest(lambda raw: raw["files"][0].update(path="C:\\x.parquet")),
    "no manifest of ours": manifest(lambda raw: raw.update(format="pickle")),
    "a later version": manifest(lambda raw: raw.update(format_version="9.0")),
    "huge counts": manifest(lambda raw: raw["files"][0].update(rows=10**18, tokens=10**18)),
    "a huge window": manifest(lambda raw: raw.update(target_len=10**18, train_len=10**17)),
    "lists for numbers": manifest(lambda raw: raw.update(target_len=[64])),
    "deep JSON": lambda folder: _write(folder / "manifest.json", "[" * 100_000),
    "a wrong checksum": manifest(lambda raw: raw["files"][0].update(sha256="0" * 64)),
    "a bomb of zeros": shard(_zeros_among_columns),
    "a bomb of one column": shard(lambda path: zeros(path, 140_000_000, 7)),
    "a bomb of long names": shard(_long_names),
    "columns of other types": shard(_wrong_types),
    "a bomb of sources": shard(_long_sources, HELD_OUT, rows=1002),
    "no Parquet": shard(lambda path: _write(path, "PAR1" * 1000 + "PAR1")),
}


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture(scope="module", params=HOSTILE)
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "shards"
    write_dataset(folder)
    HOSTILE[request.param](folder)
    return folder


def test_a_bomb_of_sources_is_not_counted(tmp_path: Path) -> None:
    write_dataset(tmp_path / "shards")
    HOSTILE["a bomb of sources"](tmp_path / "shards")
    done = CliRunner().invoke(main, ["report", str(tmp_path / "shards"), "--no-plots"])
    assert done.exit_code == 1
    assert "not decoded" in done.stderr
    assert not (tmp_path / "shards" / "report").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_one_line_and_no_harm(
    hostile: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(hostile.rglob("*"))
    out = tmp_path / "out"
    words = [str(out) if word == "OUT" else word for word in COMMANDS[command]]
    done = CliRunner().invoke(main, [command, str(hostile), *words])
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.exit_code:
        assert done.exit_code == 1, done.output
        assert len(lines) == 1, done.output
        assert "Traceback" not in done.output
        assert "--debug" not in lines[0], "a failure that nobody thought of"
    else:  # it did not need what is spoiled
        assert command in ("pull", "rebuild", "inspect", "export", "report")
    assert sorted(hostile.rglob("*")) == before
    assert not [path for path in tmp_path.rglob("*") if not path.is_relative_to(out)]
    assert pa.total_allocated_bytes() < 300 * 10**6


def test_verify_finds_every_one(hostile: Path) -> None:
    done = CliRunner().invoke(main, ["verify", str(hostile)])
    assert done.exit_code == 1, done.output
