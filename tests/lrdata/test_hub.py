"""Datasets pushed and pulled by the Hub's real client, against a server on loopback: the same
bytes, through interruptions, and nothing that may not be published or trusted."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import lrdata
from lrdata import cli_hub
from lrdata.errors import Commands, LongRecipeError
from lrdata.hub import pull, push, pushing, repository
from lrdata.hub.places import HubAddress, parse_place
from lrdata.manifest import Manifest, read_manifest, write_manifest
from lrdata.staging import complete
from lrdata.verifying import verify
from tests.loopback import Fault, Request
from tests.lrdata.build_runs import ROOT
from tests.lrdata.hub_server import HubServer, at_loopback
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
        "report/spans.png": PICTURE,
        "report/index.html": b"<script>1</script>",
        "notes.txt": b"my own",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def of_dataset(folder: Path, *left: str) -> dict[str, bytes]:
    """What is published of a folder, but for some names."""
    home = ("quarantine/books.jsonl", "notes.txt", *left)
    return {name: data for name, data in content(folder).items() if name not in home}


PULLED_WITHOUT = "report/index.html"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("made") / "shards")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with at_loopback(monkeypatch, tmp_path / "cache", TOKEN) as server:
        yield server


def command(*arguments: object) -> Result:
    group = Commands("lrdata", commands={"push": cli_hub.push, "pull": cli_hub.pull})
    return CliRunner().invoke(group, [str(argument) for argument in arguments])


def asked_for(hub: HubServer, folder: Path) -> dict[str, int]:
    """How often each shard of a dataset was asked of the storage."""
    entries = read_manifest(folder).files
    return {entry.path: hub.storage.downloads[entry.sha256] for entry in entries}


# Round trips


def test_a_round_trip_gives_the_same_bytes(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    first = iter(["cut", "end"])
    hub.storage.faults = lambda request: next(first, None) if request.method == "GET" else None
    result = command("push", dataset, REPO)
    assert result.exit_code == 0, result.output
    assert f"lrtrain run {ADDRESS} " in result.output
    sent = hub.files(REPO)
    assert sent.pop(".gitattributes")
    assert sent == of_dataset(dataset)
    result = command("pull", ADDRESS, tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "again") == of_dataset(dataset, PULLED_WITHOUT)
    assert hub.storage.failed == 2
    assert hub.broken_commits(REPO) == []
    assert verify(tmp_path / "again", deep=True) == []


def test_what_is_there_is_neither_sent_nor_fetched_again(
    hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    push(dataset, REPO)
    messages, uploads = list(hub.repos[REPO].messages), hub.storage.uploads.copy()
    push(dataset, REPO)
    assert hub.repos[REPO].messages == messages
    assert hub.storage.uploads == uploads
    pull(REPO, tmp_path / "again")
    downloads = hub.storage.downloads.copy()
    pull(REPO, tmp_path / "again")
    assert hub.storage.downloads == downloads


def test_a_commit_holds_a_batch_and_the_manifest_has_its_own(
    hub: HubServer, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "_BATCH_FILES", 3)
    push(dataset, REPO, message="Mine")
    assert hub.repos[REPO].messages == [
        "initial commit",
        *(f"Mine ({number} of 4)" for number in range(1, 5)),
        "Mine",
    ]
    commits = list(hub.repos[REPO].commits.values())
    assert set(commits[-1]) - set(commits[-2]) == {"manifest.json"}
    assert hub.broken_commits(REPO) == []


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_another_dataset_in_its_place_leaves_nothing_of_the_first(
    where: str, hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    place = REPO if where == "hub" else tmp_path / "shared"
    push(dataset, place, quarantine=True)
    other = made(tmp_path / "other", first=100, parts=3)
    push(other, place)
    there = hub.files(REPO) if where == "hub" else content(tmp_path / "shared")
    there.pop(".gitattributes", None)
    assert there == of_dataset(other)
    if where == "hub":
        assert hub.broken_commits(REPO) == []


def test_a_branch_is_made_and_read(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    assert push(dataset, REPO, revision="wide/1") == f"{ADDRESS}@wide/1"
    assert "manifest.json" not in hub.files(REPO)
    pull(REPO, tmp_path / "again", revision="wide/1")
    assert content(tmp_path / "again") == of_dataset(dataset, PULLED_WITHOUT)
    with pytest.raises(LongRecipeError, match="rows@none has no such revision"):
        pull(f"{REPO}@none", tmp_path / "third")
    with pytest.raises(LongRecipeError, match="is no dataset of ours: it has no manifest"):
        pull(REPO, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_quarantine_stays_home_unless_asked_for(hub: HubServer, dataset: Path) -> None:
    push(dataset, REPO)
    assert not any("quarantine" in name for name in hub.files(REPO))
    push(dataset, REPO, quarantine=True)
    assert "quarantine/books.jsonl" in hub.files(REPO)


def test_plain_folders(dataset: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    assert push(dataset, f"file://{shared}") == str(shared)
    assert content(shared) == of_dataset(dataset)
    pull(shared, tmp_path / "again")
    assert content(tmp_path / "again") == of_dataset(dataset, PULLED_WITHOUT)
    (shared / "extend/train-00002-of-00005.parquet").unlink()
    with pytest.raises(LongRecipeError, match=r"00002.* is named by the manifest but missing"):
        pull(shared, tmp_path / "third")
    push(dataset, shared)
    assert content(shared) == of_dataset(dataset)
    with pytest.raises(LongRecipeError, match="--private is for the Hub"):
        push(dataset, tmp_path / "new", private=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    for call in (lambda: push(dataset, tmp_path / "mine"), lambda: pull(shared, tmp_path / "mine")):
        with pytest.raises(LongRecipeError, match="empty folder"):
            call()
    assert content(tmp_path / "mine") == {"thesis.tex": b"x"}


# Interruptions


def only_first(count: int, method: str, fault: Fault) -> Callable[[Request], Fault]:
    """Answer so many requests of a method, and none after them."""
    lock, seen = threading.Lock(), 0

    def decide(request: Request) -> Fault:
        nonlocal seen
        with lock:
            seen += request.method == method
            return fault if request.method == method and seen > count else None

    return decide


def test_a_push_whose_connection_breaks_sends_the_rest_later(
    hub: HubServer, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_UPLOAD_TOGETHER", 2)
    hub.storage.faults = only_first(4, "PUT", "refuse")
    result = command("push", dataset, REPO)
    assert result.exit_code == 1
    assert "error: hf://datasets/me/rows cannot be written: the connection failed" in result.stderr
    assert "signature" not in result.output
    assert "manifest.json" not in hub.files(REPO)
    before = hub.storage.uploads.total()
    assert 0 < before <= 4
    hub.storage.faults = lambda request: None
    push(dataset, REPO)
    assert max(hub.storage.uploads.values()) == 1
    assert hub.storage.uploads.total() == SHARDS + 1  # the picture
    assert hub.broken_commits(REPO) == []


def killed_while(hub: HubServer, method: str, count: int, *arguments: object) -> None:
    """Run a command in a process of its own, and kill it when it has been given so many files."""
    reached, go_on = threading.Event(), threading.Event()
    decide = only_first(count, method, "refuse")

    def hold(request: Request) -> Fault:
        fault = decide(request)
        if fault:
            reached.set()
            go_on.wait(60)
        return fault

    hub.storage.faults = hold
    name, *rest = arguments
    code = f"from lrdata.hub import client; from lrdata.cli_hub import {name} as c; c()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, rest)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_DISABLE_XET": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert reached.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
        go_on.set()
    hub.storage.faults = lambda request: None


def test_a_push_that_is_killed_sends_the_rest_later(hub: HubServer, dataset: Path) -> None:
    killed_while(hub, "PUT", 3, "push", dataset, REPO)
    before = hub.storage.uploads.total()
    assert 0 < before < SHARDS
    assert "manifest.json" not in hub.files(REPO)
    push(dataset, REPO)
    assert max(hub.storage.uploads.values()) == 1
    assert hub.storage.uploads.total() == SHARDS + 1
    assert hub.broken_commits(REPO) == []


def test_a_pull_that_is_killed_fetches_the_rest_later(
    hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    push(dataset, REPO)
    out = tmp_path / "again"
    killed_while(hub, "GET", 3, "pull", REPO, out)
    assert [path.name for path in out.iterdir()] == [".pull"]
    before = asked_for(hub, dataset)
    assert sum(before.values()) == 4  # the last one was asked for in vain
    pull(REPO, out)
    assert content(out) == of_dataset(dataset, PULLED_WITHOUT)
    assert sum(asked_for(hub, dataset).values()) == SHARDS + 1


@pytest.mark.parametrize("name", ["extend/train-00003-of-00005.parquet", "README.md", "manifest"])
def test_a_pull_that_dies_while_files_get_their_names_is_completed(
    name: str, hub: HubServer, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(dataset, REPO)
    rename = os.replace

    def dying(source: Any, target: Any) -> None:
        final = Path(target).is_relative_to(tmp_path / "again") and ".pull" not in str(target)
        if final and name in str(target):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        pull(REPO, tmp_path / "again")
    monkeypatch.setattr(os, "replace", rename)
    assert not (tmp_path / "again/manifest.json").exists()
    before = asked_for(hub, dataset)
    pull(REPO, tmp_path / "again")
    assert content(tmp_path / "again") == of_dataset(dataset, PULLED_WITHOUT)
    assert asked_for(hub, dataset) == before


def test_what_a_killed_pull_left_is_not_taken_for_another_dataset(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, out = os.replace, tmp_path / "again"

    def dying(source: Any, target: Any) -> None:
        if str(target) == str(out / "README.md"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        pull(dataset, out)
    monkeypatch.setattr(os, "replace", rename)
    other = made(tmp_path / "other", first=100, parts=3)
    (other / "README.md").unlink()  # a card is made where there is none
    pull(other, out)
    assert verify(out, deep=True) == []
    left = (PULLED_WITHOUT, "README.md", "croissant.json")
    assert content(out) == {**of_dataset(other, *left), **content_of_card(out)}


def content_of_card(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("README.md", "croissant.json")}


def test_two_pushes_at_once_do_not_mix(
    hub: HubServer, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made(tmp_path / "other", first=100)
    add = repository.Repository.add

    def late(self: Any, *given: Any) -> None:
        monkeypatch.setattr(repository.Repository, "add", add)
        push(other, REPO)
        add(self, *given)

    monkeypatch.setattr(repository.Repository, "add", late)
    with pytest.raises(LongRecipeError, match="was changed while it was pushed to"):
        push(dataset, REPO)
    assert hub.broken_commits(REPO) == []


# What is refused, and what is sent to whom


def test_the_token_goes_to_the_endpoint_alone(
    hub: HubServer, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [command("push", dataset, REPO, "--private").output]
    assert hub.repos[REPO].private
    outputs += [command("pull", REPO, tmp_path / "again").output]
    assert {request.authorization for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in hub.storage.requests} == {None}
    assert not any(TOKEN in output for output in outputs)
    monkeypatch.delenv("HF_TOKEN")
    for call in (("pull", REPO, tmp_path / "third"), ("push", dataset, REPO)):
        result = command(*call)
        assert result.exit_code == 1
        assert "HF_TOKEN" in result.stderr
        assert len(result.stderr.splitlines()) == 1 or call[0] == "push"


def test_a_public_repository_does_not_get_a_private_dataset(hub: HubServer, dataset: Path) -> None:
    hub.put(REPO, {"README.md": b"public"})
    with pytest.raises(LongRecipeError, match="is there and public, so nothing was sent"):
        push(dataset, REPO, private=True)
    assert hub.storage.uploads.total() == 0


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def _no_licence(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["sources"][0].update(licence=None))


def _absolute(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["sources"][0].update(name="/home/me/books/a.jsonl"))


def _absolute_in_card(folder: Path) -> None:
    with open(folder / "README.md", "a") as card:
        card.write("\nBuilt in ~/work/books, see https://host/a/b and a/b.\n")


def _changed(folder: Path) -> None:
    shard = folder / "extend/train-00001-of-00005.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def _link(folder: Path) -> None:
    (folder / "report/spans.png").unlink()
    (folder.parent / "secret.png").write_bytes(b"secret")
    (folder / "report/spans.png").symlink_to(folder.parent / "secret.png")


def _no_card(folder: Path) -> None:
    (folder / "README.md").unlink()


def _unnamed(folder: Path) -> None:
    shutil.copy(folder / "extend/train-00001-of-00005.parquet", folder / "extend/more.parquet")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (_no_licence, r"has sources without a licence \(books\).*--allow-unlicensed"),
        (_absolute, r"manifest.json has the absolute path '/home/me/books/a.jsonl'"),
        (_absolute_in_card, r"README.md has the absolute path '~/work/books'"),
        (_changed, r"is damaged: extend/train-00001-of-00005.parquet: its sha256"),
        (_link, r"spans.png is a link to a file outside"),
        (_no_card, r"README.md is missing"),
        (_unnamed, r"is damaged: extend/more.parquet: not named by the manifest"),
    ],
)
def test_what_may_not_be_published_is_refused_before_the_hub_is_asked(
    spoil: Callable[[Path], None], line: str, hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "shards")
    spoil(copy)
    with pytest.raises(LongRecipeError, match=line):
        push(copy, REPO)
    assert hub.requests == []


def test_sources_without_a_licence_can_be_pushed_knowingly(
    hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "shards")
    _no_licence(copy)
    assert command("push", copy, REPO).exit_code == 1
    assert command("push", copy, REPO, "--allow-unlicensed").exit_code == 0


def test_a_card_that_the_hub_refuses_stops_the_push_before_the_shards(
    hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "shards")
    (copy / "README.md").write_text("---\n[\n---\n")
    with pytest.raises(LongRecipeError, match=r"cannot be written: Invalid metadata in README"):
        push(copy, REPO)
    assert not any(name.endswith("parquet") for name in hub.files(REPO))


# What is not trusted


def test_a_wrong_byte_is_named_and_gets_no_name(
    hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    push(dataset, REPO)
    entry = read_manifest(dataset).files[3]
    good = hub.storage.files[f"blob/{entry.sha256}"]
    hub.storage.files[f"blob/{entry.sha256}"] = good[:-9] + b"?" + good[-8:]
    with pytest.raises(LongRecipeError, match=f"{entry.path} came with other bytes"):
        pull(REPO, tmp_path / "again")
    assert [path.name for path in (tmp_path / "again").iterdir()] == [".pull"]
    hub.storage.files[f"blob/{entry.sha256}"] = good
    pull(REPO, tmp_path / "again")
    assert content(tmp_path / "again") == of_dataset(dataset, PULLED_WITHOUT)
    assert max(asked_for(hub, dataset).values()) == 2


def _first(**changes: Any) -> Callable[[Any], object]:
    return lambda manifest: manifest["files"][0].update(changes)


HOSTILE: list[tuple[Callable[[Any], object], str]] = [
    (_first(path="../../stolen.parquet"), "outside its folder"),
    (_first(path="/tmp/stolen.parquet"), "outside its folder"),
    (_first(path="extend/.pull"), "not a name of extend rows"),
    (_first(path="\x1b[2Jextend"), r"\?\[2Jextend: not a name of extend rows"),
    (_first(kind="\x1b[2J"), "the files hold"),
    (_first(bytes=10**18), "the manifest says 1000000000000000000"),
    (_first(bytes=-1), "the manifest says -1"),
    (_first(rows=10**30), "the files hold 1000000000000000000000000000008"),
    (_first(sha256="0" * 64), "does not have the sha256 of the manifest"),
    (_first(path="extend/train-00001-of-00005.parquet"), "the manifest names it twice"),
    (lambda manifest: manifest.update(files="all"), "is damaged"),
    (lambda manifest: manifest.update(format_version="9.0"), "format version 9.0"),
    (lambda manifest: manifest["left_out"].append({"path": "../x"}), "is damaged"),
    (lambda manifest: manifest["ledger"].update(kept=10**30), "kept 10"),
]


@pytest.mark.parametrize("where", ["hub", "folder"])
@pytest.mark.parametrize(("change", "line"), HOSTILE)
def test_a_hostile_manifest_does_no_harm(
    change: Callable[[Any], object],
    line: str,
    where: str,
    hub: HubServer,
    dataset: Path,
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "in/shards")
    edit(copy, lambda manifest: manifest.update(left_out=[]))
    edit(copy, change)
    hub.put(REPO, content(copy))
    before = content(tmp_path)
    place = REPO if where == "hub" else copy
    if where == "folder" and "sha256" in line:
        line = "came with other bytes"
    result = command("pull", place, tmp_path / "deep/out")
    assert result.exit_code == 1
    (said,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert "\x1b" not in said
    with pytest.raises(LongRecipeError, match=line):
        pull(place, tmp_path / "deep/out")
    after = {name: data for name, data in content(tmp_path).items() if "deep/out/.pull" not in name}
    assert after == before
    assert not (tmp_path / "deep/out/manifest.json").exists()
    if where == "hub":
        assert not (tmp_path / "deep/out").exists()
        with pytest.raises(LongRecipeError):
            lrdata.open_dataset(ADDRESS)


def test_a_manifest_that_is_not_json_or_too_large_is_refused(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(REPO, {"manifest.json": b"[" * 100_000})
    with pytest.raises(LongRecipeError, match="is damaged"):
        pull(REPO, tmp_path / "out")
    monkeypatch.setattr("lrdata.hub.places.LARGEST_MANIFEST", 1000)
    with pytest.raises(LongRecipeError, match="too many to be one"):
        pull(REPO, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_before_the_download(
    hub: HubServer, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(dataset, REPO)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(LongRecipeError, match=r"needs .* bytes more, the disk .* has 1,000"):
        pull(REPO, tmp_path / "out")
    assert sum(asked_for(hub, dataset).values()) == 0


def test_a_link_in_a_shared_folder_brings_nothing_in(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "shared")
    (tmp_path / "secret").write_text("secret")
    (copy / "README.md").unlink()
    (copy / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(LongRecipeError, match="is a link to a file outside"):
        pull(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# A part of a dataset


@pytest.mark.parametrize("only", [("extend",), ("replay",), ("holdout", "extend")])
def test_a_part_is_a_whole_dataset_that_says_what_it_lacks(
    only: tuple[str, ...], hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    push(dataset, REPO)
    whole, out = read_manifest(dataset), tmp_path / "part"
    result = command("pull", REPO, out, *(word for kind in only for word in ("--only", kind)))
    assert result.exit_code == 0, result.output
    assert verify(out, deep=True) == []
    part = read_manifest(out)
    assert {entry.kind for entry in part.files} == set(only)
    assert sorted(map(_path, [*part.files, *part.left_out])) == sorted(map(_path, whole.files))
    assert part.ledger == whole.ledger
    shards = lrdata.open_dataset(out)
    assert shards.kinds == [kind for kind in ("extend", "replay", "holdout") if kind in only]
    assert_same_rows(shards, lrdata.open_dataset(dataset), shards.kinds)
    card = (out / "README.md").read_text()
    catalogue = json.loads((out / "croissant.json").read_text())
    assert {entry["@id"] for entry in catalogue["recordSet"]} == set(only)
    assert all((f"config_name: {kind}" in card) == (kind in only) for kind in whole_kinds(whole))
    fetched = {path for path, times in asked_for(hub, dataset).items() if times}
    assert fetched == {entry.path for entry in part.files}
    # It can be shared again, as the part that it is.
    push(out, "me/part")
    assert pull("me/part", tmp_path / "again") == part
    assert content(tmp_path / "again") == content(out)


def _path(entry: Any) -> str:
    return str(entry.path)


def whole_kinds(manifest: Manifest) -> set[str]:
    return {entry.kind for entry in manifest.files}


def test_a_part_that_was_tampered_with_is_found(dataset: Path, tmp_path: Path) -> None:
    part = pull(dataset, tmp_path / "part", only=["extend"])
    for changed in (
        replace(part, left_out=part.left_out[:-1]),
        replace(part, left_out=[*part.left_out, part.files[0]]),
        replace(part, files=part.files[:-1]),
    ):
        write_manifest(tmp_path / "part", changed)
        assert verify(tmp_path / "part")


def test_only_names_kinds_that_are_there(dataset: Path, tmp_path: Path) -> None:
    pull(dataset, tmp_path / "part", only=["extend"])
    with pytest.raises(LongRecipeError, match="holds no replay rows; it has extend"):
        pull(tmp_path / "part", tmp_path / "none", only=["replay"])
    assert not (tmp_path / "none").exists()
    assert asdict(pull(dataset, tmp_path / "all", only=["extend", "replay", "holdout"])) == asdict(
        read_manifest(dataset)
    )


def test_another_dataset_in_the_folder_is_left_alone(dataset: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other", first=100)
    before = content(other)
    with pytest.raises(LongRecipeError, match="holds another dataset"):
        pull(dataset, other)
    assert content(other) == before


# Streaming


def assert_same_rows(one: lrdata.Shards, two: lrdata.Shards, kinds: list[str]) -> None:
    for kind in kinds:
        assert one.rows(kind) == two.rows(kind)
        for index in range(one.rows(kind)):
            first, second = (vars(shards.read_row(kind, index)) for shards in (one, two))
            assert all(np.array_equal(first[name], second[name]) for name in second)


def test_an_address_opens_as_the_folder_does(hub: HubServer, dataset: Path) -> None:
    push(dataset, REPO)
    shards = lrdata.open_dataset(ADDRESS)
    assert sum(asked_for(hub, dataset).values()) == 0
    shards.read_row("extend", 0)
    while any(thread.name == "next shard" for thread in threading.enumerate()):
        time.sleep(0.01)
    assert list(asked_for(hub, dataset).values()) == [1, 1, 0, 0, 0, 0, 0]
    assert_same_rows(shards, lrdata.open_dataset(dataset), ["extend", "replay", "holdout"])
    assert set(asked_for(hub, dataset).values()) == {1}
    assert_same_rows(lrdata.open_dataset(f"{ADDRESS}@main"), shards, ["extend"])
    assert set(asked_for(hub, dataset).values()) == {1}  # the cache has them


def test_a_run_stays_at_the_commit_that_it_began_with(
    hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    push(dataset, REPO)
    shards = lrdata.open_dataset(ADDRESS)
    other = made(tmp_path / "other", first=100)
    push(other, REPO)
    assert_same_rows(shards, lrdata.open_dataset(dataset), ["extend"])
    assert_same_rows(lrdata.open_dataset(ADDRESS), lrdata.open_dataset(other), ["extend"])


def test_a_wrong_byte_stops_reading(hub: HubServer, dataset: Path) -> None:
    push(dataset, REPO)
    entry = read_manifest(dataset).files[1]
    good = hub.storage.files[f"blob/{entry.sha256}"]
    hub.storage.files[f"blob/{entry.sha256}"] = good[:-9] + b"?" + good[-8:]
    shards = lrdata.open_dataset(ADDRESS)
    shards.read_row("extend", 0)
    with pytest.raises(LongRecipeError, match=r"00001.* is damaged: its sha256 .* from the cache"):
        shards.read_row("extend", 2)


def test_an_address_that_holds_nothing_is_said_in_a_line(
    hub: HubServer, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LongRecipeError, match=r"none is not there, or is private \(404\)"):
        lrdata.open_dataset("hf://datasets/me/none")
    with pytest.raises(LongRecipeError, match="write hf://datasets/owner/name"):
        lrdata.open_dataset("s3://bucket/rows")
    hub.faults["revision"] = hub.faults["rows"] = 503
    with pytest.raises(LongRecipeError, match=r"rows cannot be read: HTTP 503"):
        lrdata.open_dataset(ADDRESS)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(LongRecipeError, match=r"pip install 'longrecipe\[hub\]'"):
        lrdata.open_dataset(ADDRESS)


# Names


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("me/rows", HubAddress("me/rows")),
        ("me/rows@v1", HubAddress("me/rows", "v1")),
        ("hf://datasets/me/ro.ws_1-k@refs%2Fpr%2F3", HubAddress("me/ro.ws_1-k", "refs/pr/3")),
        ("hf://datasets/me/rows/", HubAddress("me/rows")),
        ("./me/rows", Path("me/rows")),
        ("../rows", Path("../rows")),
        ("/mnt/rows", Path("/mnt/rows")),
        ("file:rows", Path("rows")),
        ("file:///mnt/my%20rows", Path("/mnt/my rows")),
        ("tests/lrdata", Path("tests/lrdata")),
        ("~/rows", Path.home() / "rows"),
    ],
)
def test_a_name_is_an_address_or_a_folder(
    where: str, place: Path | HubAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert parse_place(where) == place


@pytest.mark.parametrize(
    "where", ["rows", "s3://bucket/x", "hf://models/me/x", "a/b/c", "me/@v", ""]
)
def test_a_name_that_cannot_be_meant_is_refused(where: str) -> None:
    with pytest.raises(LongRecipeError, match="names no dataset; write owner/name"):
        parse_place(where)


def test_two_revisions_are_refused() -> None:
    with pytest.raises(LongRecipeError, match="two revisions"):
        parse_place("me/rows@a", "b")
    with pytest.raises(LongRecipeError, match="is a folder, which has no --revision"):
        parse_place("./rows", "b")


def test_hashes_of_the_server_are_those_of_git(tmp_path: Path) -> None:
    """So that what is small is not sent again either: git itself says what a blob's hash is."""
    (tmp_path / "a").write_bytes(b"rows\n")
    said = subprocess.run(["git", "hash-object", tmp_path / "a"], capture_output=True, check=True)
    from lrdata.hub.places import Held, Sent

    sent = Sent("a", tmp_path / "a", 5, hashlib.sha256(b"rows\n").hexdigest())
    assert sent.is_held(Held(5, blob=said.stdout.decode().strip()))
    assert not sent.is_held(Held(5, blob="0" * 40))
    assert not sent.is_held(None)
