"""Datasets pushed and pulled by the Hub's real client, against a server on loopback: the same
bytes, whole or in part, and through interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

import lrdata
from lrdata.errors import LongRecipeError
from lrdata.hub import pull, push, pushing, repository
from lrdata.manifest import Manifest, read_manifest, write_manifest
from lrdata.report.card import card
from lrdata.verifying import verify
from lrtrain.cli import main as lrtrain
from tests.loopback import Fault, Request
from tests.lrdata.build_runs import ROOT
from tests.lrdata.hub_datasets import (
    ADDRESS,
    PULLED_WITHOUT,
    REPO,
    SHARDS,
    asked_for,
    assert_same_rows,
    command,
    content,
    made,
    of_dataset,
)
from tests.lrdata.hub_server import HubServer

# Round trips


def test_a_round_trip_gives_the_same_bytes(hub: HubServer, dataset: Path, tmp_path: Path) -> None:
    first = iter(["cut", "end"])
    hub.storage.faults = lambda request: next(first, None) if request.method == "GET" else None
    result = command("push", dataset, REPO)
    assert result.exit_code == 0, result.output
    command_line = result.output.splitlines()[-1].partition("with: ")[2]
    assert command_line == f"lrtrain run {ADDRESS} --model MODEL --out RUN"
    _, name, *words = command_line.split()
    assert lrtrain.commands[name].make_context(name, words).params["shards"] == ADDRESS
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


XET = "Task error: File reconstruction error: CAS Client Error: error sending request for url (x)"


def of_the_client(said: str) -> Callable[[], None]:
    """Raises as code of the client does that calls hf_xet, which has no errors of its own."""
    home = {"__name__": "huggingface_hub.file_download", "said": said}
    exec("def get():\n    raise RuntimeError(said)", home)
    get: Callable[[], None] = home["get"]  # type: ignore[assignment]
    return get


@pytest.mark.parametrize(
    ("said", "fails", "line"),
    [
        (XET, 2, None),
        (XET, 100, "cannot be read: the connection failed; the same command goes on"),
        ("Task error: No space left on device (os error 28)", 1, "No space left on device"),
        ("Task error: Disk quota exceeded (os error 122)", 1, "Disk quota exceeded"),
        ("a bug", 0, "a bug"),
    ],
)
def test_a_pull_by_xet_is_tried_again_while_that_may_help(
    said: str,
    fails: int,
    line: str | None,
    hub: HubServer,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push(dataset, REPO)
    real, left = huggingface_hub.HfApi.hf_hub_download, [of_the_client(said)] * fails

    def download(client: Any, repo: str, path: str, **named: Any) -> str:
        if path.endswith(".parquet") and left:
            left.pop()()
        if not fails:  # what is raised elsewhere is a bug, and is not tried again
            raise RuntimeError(said)
        return real(client, repo, path, **named)

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", download)
    if line is None:
        pull(REPO, tmp_path / "out")
        assert verify(tmp_path / "out") == []
        return
    kind = {1: OSError, 100: LongRecipeError}.get(fails, RuntimeError)
    with pytest.raises(kind, match=line) as caught:
        pull(REPO, tmp_path / "out")
    assert fails != 100 or "url" not in str(caught.value)


def test_what_the_client_of_a_killed_pull_left_takes_no_place(
    hub: HubServer, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins a file anew under another name, so what it left is no byte less to fetch."""
    push(dataset, REPO)
    out, needed = tmp_path / "out", sum(entry.bytes for entry in read_manifest(dataset).files)
    left = out / ".pull/.cache/huggingface/download/extend/a.1b2c3d4e.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * needed)

    def usage(folder: Path) -> Any:
        assert not left.exists()
        return SimpleNamespace(free=needed - 1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(LongRecipeError, match=f"needs {needed:,} bytes more"):
        pull(REPO, out)


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
    assert (out / "report/coverage.png").exists()
    other = made(tmp_path / "other", first=100, parts=3)
    for name in ("README.md", "report/coverage.png"):  # a card is made where there is none
        (other / name).unlink()
    pull(other, out)
    assert verify(out, deep=True) == []
    assert (out / "README.md").read_text() == card(read_manifest(other))
    assert content(out) == {
        **of_dataset(other, PULLED_WITHOUT),
        "README.md": (out / "README.md").read_bytes(),
    }


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
