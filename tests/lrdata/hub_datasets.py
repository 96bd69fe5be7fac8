"""Datasets to push and pull, and what to look at when that is done."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

import lrdata
from lrdata import cli_hub
from lrdata.commands import Commands
from lrdata.manifest import read_manifest
from lrdata.staging import complete
from tests.corpora import content
from tests.lrdata.hub_server import HubServer
from tests.lrdata.made_dataset import MAKERS, write_dataset

REPO, ADDRESS, TOKEN = "me/rows", "hf://datasets/me/rows", "hf_secret"
SHARDS = 7
PICTURE = b"\x89PNG\r\n" + bytes(100)


def made(folder: Path, first: int = 0, parts: int = 5) -> Path:
    """A dataset whose extend rows, from number `first` on, are in several files."""
    rows = {
        "extend": [[MAKERS["extend"](first + 2 * p + n) for n in range(2)] for p in range(parts)],
        "replay": [[MAKERS["replay"](n) for n in range(3)]],
        "holdout": [[MAKERS["holdout"](n) for n in range(3)]],
    }
    manifest = write_dataset(folder, rows)
    sources = [replace(entry, licence="cc-by-4.0") for entry in manifest.sources]
    complete(folder, replace(manifest, sources=sources))
    for name, data in {
        "quarantine/books.jsonl": b'{"reason": "no text"}\n',
        "report/coverage.png": PICTURE,
        "report/index.html": b"<script>1</script>",
        "notes.txt": b"my own",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def of_dataset(folder: Path, *left: str) -> dict[str, bytes]:
    """What is published of a folder, but for some names."""
    home = ("quarantine/books.jsonl", "notes.txt", *left)
    return {name: data for name, data in content(folder).items() if name not in home}


PULLED_WITHOUT = "report/index.html"


def command(*arguments: object) -> Result:
    group = Commands("lrdata", commands={"push": cli_hub.push, "pull": cli_hub.pull})
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def asked_for(hub: HubServer, folder: Path) -> dict[str, int]:
    """How often each shard of a dataset was asked of the storage."""
    entries = read_manifest(folder).files
    return {entry.path: hub.storage.downloads[entry.sha256] for entry in entries}


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def assert_same_rows(one: lrdata.Shards, two: lrdata.Shards, kinds: list[str]) -> None:
    for kind in kinds:
        assert one.rows(kind) == two.rows(kind)
        for index in range(one.rows(kind)):
            first, second = (vars(shards.read_row(kind, index)) for shards in (one, two))
            assert all(np.array_equal(first[name], second[name]) for name in second)
