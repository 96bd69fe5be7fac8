"""A dataset at an address reads as the folder does, of one commit, and fetches what it needs."""

import errno
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest

import lrdata
from lrdata.errors import LongRecipeError
from lrdata.hub import push
from lrdata.manifest import read_manifest
from tests.lrdata.hub_datasets import (
    ADDRESS,
    REPO,
    asked_for,
    assert_same_rows,
    made,
)
from tests.lrdata.hub_server import HubServer


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


def test_only_the_connection_is_tried_again(
    hub: HubServer, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(dataset, REPO)
    problems: list[Exception] = [ConnectionResetError(errno.ECONNRESET, "reset"), TypeError("bug")]
    asked = 0

    def failing(*given: object, **named: object) -> str:
        nonlocal asked
        asked += 1
        raise problems.pop(0)

    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", failing)
    with pytest.raises(TypeError, match="bug"):
        lrdata.open_dataset(ADDRESS)
    assert asked == 2
    problems += [_of_a_closed_client(), TypeError("bug")]
    with pytest.raises(TypeError, match="bug"):
        lrdata.open_dataset(ADDRESS)
    assert asked == 4
    problems += [OSError(errno.ENOSPC, "full")]
    with pytest.raises(OSError, match="full"):
        lrdata.open_dataset(ADDRESS)
    assert asked == 5


def _of_a_closed_client() -> RuntimeError:
    """What a thread gets whose connections another one closed, as it could not connect."""
    client = huggingface_hub.get_session()
    huggingface_hub.close_session()
    with pytest.raises(RuntimeError) as raised:
        client.get("http://127.0.0.1/")
    return raised.value


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
