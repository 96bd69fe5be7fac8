"""A dataset made to do harm: every command says one line, and nothing happens elsewhere.

What `push` and `pull` make of one on the Hub is in test_hub_refusals.py; test_fuzz.py damages
corpora.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from lrdata.building import build
from lrdata.cli import main
from lrdata.recipe import BuildRecipe
from lrdata.shards import file_sha256
from tests.corpora import content, some_texts, write_jsonl
from tests.lrdata.build_runs import ROOT
from tests.lrdata.made_dataset import (
    extend_row,
    good_rows,
    holdout_row,
    rows_to_table,
    write_dataset,
)
from tests.lrdata.test_parquet_bounds import zeros

COMMANDS: dict[str, list[str]] = {
    "verify": [],
    "inspect": [],
    "report": ["--out", "OUT"],
    "retarget": ["--target-len", "1024", "--out", "OUT"],
    "export": ["--format", "trl", "--out", "OUT"],
    "pull": ["OUT"],
    "rebuild": ["--root", "SOURCES", "--workers", "1", "--out", "OUT"],
}


def manifest(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "manifest.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return spoil


def shard(write: Callable[[Path], None], kind: str = "extend", **told: int) -> Callable[..., None]:
    """Another first shard of a kind, and a manifest that tells the truth about its bytes."""

    def tell(folder: Path, raw: Any) -> None:
        entry = next(entry for entry in raw["files"] if entry["kind"] == kind)
        path = folder / entry["path"]
        path.unlink()
        write(path)
        true = {"bytes": path.stat().st_size}
        if path.is_file():
            true["sha256"] = file_sha256(path)
        entry.update(true, **told)

    return lambda folder: manifest(lambda raw: tell(folder, raw))(folder)


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
    lists = pa.list_(pa.field("element", names.type, nullable=False))
    ids = pa.ListArray.from_arrays(pa.array([0, 1000], pa.int32()), names, type=lists)
    field = pa.field("doc_ids", lists, nullable=False)
    table = table.set_column(table.schema.get_field_index("doc_ids"), field, ids)
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


def _texts_for_positions(path: Path) -> None:
    """As many as there are tokens."""
    table = rows_to_table(good_rows()["extend"][0])
    texts = pa.array([list(map(str, row)) for row in table["position_ids"].to_pylist()])
    at = table.schema.get_field_index("position_ids")
    pq.write_table(table.set_column(at, "position_ids", texts), path)


def _no_window(path: Path) -> None:
    table = rows_to_table(good_rows()["extend"][0])
    at = table.schema.get_field_index("target_len")
    column = pa.array([-5] * len(table), pa.int32())
    pq.write_table(table.set_column(at, table.schema.field(at), column), path)


def _other_bytes(path: Path) -> None:
    """Names that are no UTF-8, which Arrow neither writes nor reads with care."""
    table = rows_to_table(good_rows()["extend"][0])
    names = pa.array([b"\xff:0:0:0"] * len(table)).view(pa.string())
    at = table.schema.get_field_index("sample_id")
    pq.write_table(table.set_column(at, table.schema.field(at), names), path)


def _device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


_PAGE = {"path": "sitecustomize.py", "kind": "page", "rows": 0, "tokens": 0, "bytes": 0}
_PAGE |= {"sha256": "", "content_sha256": ""}

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
    "texts for positions": shard(_texts_for_positions, rows=3),
    "a window of no length": shard(_no_window, rows=3),
    "a bomb of sources": shard(_long_sources, "holdout", rows=1002),
    "a file of no kind": manifest(lambda raw: raw["files"].append(_PAGE)),
    "names that are no UTF-8": shard(_other_bytes, rows=3),
    "a shard without end": shard(_device),
    "a manifest without end": lambda folder: _device(folder / "manifest.json"),
    "a number for a list": manifest(lambda raw: raw["recipe"].update(corpora=5)),
    "a text for a number": manifest(lambda raw: raw["recipe"].update(unit_bytes="5")),
    "no Parquet": shard(lambda path: _write(path, "PAR1" * 1000 + "PAR1")),
}


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """A folder with a dataset deep in it, and what it was built from."""
    root = tmp_path_factory.mktemp("good")
    books = write_jsonl(root / "sources/books.jsonl", some_texts(30, 1))
    chat = write_jsonl(root / "sources/chat.jsonl", some_texts(20, 2, longest=3))
    shutil.copytree(tiny_tokenizer, root / "sources/tiny")
    recipe = BuildRecipe(
        (str(books),), str(root / "sources/tiny"), 512, holdout=0.3, replay=(str(chat),)
    )
    build(recipe, root / "a/b/shards", workers=1)
    return root


@pytest.fixture(scope="module", params=HOSTILE)
def hostile(
    request: pytest.FixtureRequest, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same, and the dataset spoiled."""
    root = tmp_path_factory.mktemp("hostile") / "root"
    shutil.copytree(good, root)
    HOSTILE[request.param](root / "a/b/shards")
    return root


def invoke(root: Path, command: str) -> Result:
    """Run a command on the dataset in `root`, with its output at `root / "a/b/out"`."""
    names = {"OUT": str(root / "a/b/out"), "SOURCES": str(root / "sources")}
    words = [names.get(word, word) for word in COMMANDS[command]]
    return CliRunner().invoke(main, [command, str(root / "a/b/shards"), *words])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_spoiled_does_no_command_harm(
    good: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what a hostile dataset is refused for is what is hostile in it."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "root"
    shutil.copytree(good, root)
    done = invoke(root, command)
    assert done.exit_code == 0, done.output


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
    root = tmp_path / "root"
    shutil.copytree(hostile, root, symlinks=True)
    (root / "cwd").mkdir()
    monkeypatch.chdir(root / "cwd")
    before = content(root)
    done = invoke(root, command)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.exit_code:
        assert done.exit_code == 1, done.output
        assert len(lines) == 1, done.output
        assert "Traceback" not in done.output
        assert "--debug" not in lines[0], "a failure that nobody thought of"
    else:  # it did not need what is spoiled
        assert command in ("pull", "inspect", "export", "report")
    after = content(root)
    out = [name for name in after if name.startswith("a/b/out/")]
    assert {name: data for name, data in after.items() if name not in out} == before
    assert not any(name.endswith((".py", ".sh", ".envrc")) for name in out)


_UNDER_A_LIMIT = """
import json, resource, sys
from click.testing import CliRunner
import lrdata.exporting, lrdata.inspecting.page, lrdata.report.dataset, lrdata.retargeting
from lrdata.cli import main

now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 600 * 10**6,) * 2)
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, words)
    print(json.dumps([words[0], done.exit_code, done.output]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and counts memory as Linux does")
@pytest.mark.parametrize("bomb", [name for name in HOSTILE if "bomb" in name])
def test_a_bomb_takes_no_memory(bomb: str, good: Path, tmp_path: Path) -> None:
    """Under a limit that is less than any of them decodes to."""
    root = tmp_path / "root"
    shutil.copytree(good, root)
    HOSTILE[bomb](root / "a/b/shards")
    shards, of = str(root / "a/b/shards"), ["--kind", "holdout"] if "sources" in bomb else []
    commands = [
        ["verify", shards],
        ["export", shards, "--format", "trl", "--out", str(root / "out"), *of],
        ["inspect", shards, *(["--row", "5"] if of else []), *of],
        ["retarget", shards, "--target-len", "1024", "--out", str(root / "wide")],
        ["report", shards, "--no-plots", "--out", str(root / "report")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", _UNDER_A_LIMIT, json.dumps(commands)],
        cwd=ROOT,
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in said] == [words[0] for words in commands]
    for _, code, output in said:
        assert code == 1, output
        assert not re.search("alloc |MemoryError|out of memory", output), output
    # What lacks columns, or has them of other types, is refused for that before.
    assert any("not decoded" in output for *_, output in said) == (bomb in OF_OUR_COLUMNS)


OF_OUR_COLUMNS = ("a bomb of zeros", "a bomb of long names", "a bomb of sources")


def test_verify_finds_every_one(hostile: Path) -> None:
    done = CliRunner().invoke(main, ["verify", str(hostile / "a/b/shards")])
    assert done.exit_code == 1, done.output
