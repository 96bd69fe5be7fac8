"""What a push may not do: take a person's files, mix with another push, or say that all is there
where it is not."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lrdata.errors import LongRecipeError
from lrdata.hub import pull, push, repository
from lrdata.hub.plain import PlainFolder
from lrdata.verifying import verify
from tests.corpora import content
from tests.lrdata.hub_datasets import REPO, made, of_dataset
from tests.lrdata.hub_server import HubServer

# A person's files


MINE: dict[str, dict[str, bytes]] = {
    "a file": {"thesis.tex": b"x"},
    "files where ours would lie": {"report/thesis.tex": b"x", "README.md": b"mine"},
    "names of ours": {"report/index.html": b"x", "extend/train-00000-of-00001.parquet": b"x"},
    "a manifest of another program": {
        "manifest.json": b'{"name": "extension"}',
        "report/thesis.tex": b"x",
    },
}


@pytest.mark.parametrize("held", MINE.values(), ids=MINE)
def test_a_folder_of_somebody_s_is_left_alone(
    held: dict[str, bytes], dataset: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    for name, data in held.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_bytes(data)
    for _ in range(2):
        with pytest.raises(LongRecipeError, match=r"empty folder|no dataset's of ours"):
            push(dataset, mine)
        if "manifest.json" not in held:
            with pytest.raises(LongRecipeError, match=r"empty folder"):
                pull(dataset, mine)
        assert content(mine) == held
        assert not (mine / ".push").exists()
    assert content(dataset)["notes.txt"]


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_what_a_person_put_beside_a_dataset_stays(
    where: str, hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    theirs = {"report/thesis.tex": b"x", "replay/notes.md": b"y", "more.png": b"z"}
    if where == "hub":
        hub.put(REPO, {**of_dataset(dataset), **theirs})
        place: Any = REPO
    else:
        place = tmp_path / "shared"
        push(dataset, place)
        for name, data in theirs.items():
            (place / name).write_bytes(data)
    other = made(tmp_path / "other", first=100, parts=3)
    push(other, place)
    there = hub.files(REPO) if where == "hub" else content(place)
    assert there == {**of_dataset(other), **theirs}


def test_foreign_files_where_ours_would_lie_on_the_hub(hub: HubServer, dataset: Path) -> None:
    hub.put(REPO, {"replay/buffer.bin": b"x"})
    with pytest.raises(LongRecipeError, match=r"holds replay/buffer.bin, which is no dataset's"):
        push(dataset, REPO)
    assert hub.files(REPO) == {"replay/buffer.bin": b"x"}
    hub.put(REPO, {"manifest.json": b"{}", "replay/buffer.bin": b"x"})
    with pytest.raises(LongRecipeError, match=r"holds a manifest.json that is no dataset's"):
        push(dataset, REPO)
    assert len(hub.files(REPO)) == 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("report/index.html", b"x"),
        ("report/coverage.png", b"x"),
        ("quarantine/mine.jsonl", b"{}"),
        ("extend/train-00000-of-00001.parquet", b"x"),
        ("README.md", b"# My card\n"),
        ("README.md", b"---\nlicense: mit\n---\nMy card\n"),
        ("croissant.json", b'{"keywords": ["mine"]}'),
        ("croissant.json", b"[1]"),
    ],
)
def test_files_of_our_names_and_no_dataset_stay_on_the_hub(
    name: str, data: bytes, hub: HubServer, dataset: Path
) -> None:
    held = {name: data, "data.csv": b"1"}
    hub.put(REPO, held)
    for _ in range(2):
        with pytest.raises(LongRecipeError, match=rf"holds {name}, which is no dataset's of ours"):
            push(dataset, REPO)
        assert hub.files(REPO) == held


@pytest.mark.parametrize(
    "card",
    [b"---\nlicense: mit\n---\n", b"---\nlicense: other\nlicense_name: x y\n---", b"---\n---\n"],
)
def test_a_repository_made_on_the_hub_s_pages_takes_a_dataset(
    card: bytes, hub: HubServer, dataset: Path
) -> None:
    hub.put(REPO, {"README.md": card, ".gitattributes": b"x", "data.csv": b"1"})
    push(dataset, REPO)
    others = {".gitattributes": b"x", "data.csv": b"1"}
    assert hub.files(REPO) == {**of_dataset(dataset), **others}


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_a_second_push_that_was_killed_goes_on_beside_a_person_s_files(
    where: str, hub: HubServer, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Any = REPO if where == "hub" else tmp_path / "shared"
    kind: Any = repository.Repository if where == "hub" else PlainFolder

    def there() -> dict[str, bytes]:
        return hub.files(REPO) if where == "hub" else content(place)

    push(dataset, place)
    mine = {"report/thesis.tex": b"x"}
    if where == "hub":
        hub.put(REPO, {**hub.files(REPO), **mine})
    else:
        (place / "report/thesis.tex").write_bytes(b"x")

    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    other = made(tmp_path / "other", first=100, parts=3)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            push(other, place)
    assert "manifest.json" not in there()
    push(other, place)
    found = there()
    found.pop(".gitattributes", None)
    assert found == {**of_dataset(other), **mine}


def test_a_push_into_a_folder_that_was_killed_goes_on(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, rename = tmp_path / "shared", os.replace

    def dying(source: Any, target: Any) -> None:
        if "train-00003" in str(target):
            raise KeyboardInterrupt
        rename(source, target)

    push(made(tmp_path / "first", parts=7), shared)
    other = made(tmp_path / "other", first=100)
    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        push(other, shared)
    monkeypatch.setattr(os, "replace", rename)
    assert not (shared / "manifest.json").exists()
    push(dataset, shared)
    assert content(shared) == of_dataset(dataset)
    assert not (shared / ".push").exists()


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def test_two_at_once_do_not_take_each_other_s_files(dataset: Path, tmp_path: Path) -> None:
    with held_by_another(tmp_path / "shared/.push"):
        with pytest.raises(LongRecipeError, match=r"another run is at work"):
            push(dataset, tmp_path / "shared")
        assert (tmp_path / "shared/.push").exists()
    with held_by_another(tmp_path / "out/.pull"):
        with pytest.raises(LongRecipeError, match=r"another run is at work"):
            pull(dataset, tmp_path / "out")
        assert (tmp_path / "out/.pull").exists()
    pull(dataset, tmp_path / "out")
    assert verify(tmp_path / "out") == []


def test_what_a_killed_pull_left_half_written_goes_first(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "out/.pull/extend/.train-00000-of-00005.parquet.7-0.partial"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"PAR1")
    fetch = PlainFolder.fetch

    def watched(*given: Any) -> None:
        assert not half.exists()
        fetch(*given)

    monkeypatch.setattr(PlainFolder, "fetch", watched)
    pull(dataset, tmp_path / "out")
    assert verify(tmp_path / "out") == []


def test_a_shard_that_changes_while_it_is_copied_is_no_shard(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def other(source: Any, target: Any) -> None:
        copy(source, target)
        if "train-00002" in str(source):
            with open(target, "r+b") as stream:
                stream.write(b"other")

    monkeypatch.setattr(shutil, "copyfile", other)
    with pytest.raises(LongRecipeError, match=r"00002.* was changed while it was pushed"):
        push(dataset, tmp_path / "shared")
    assert not (tmp_path / "shared/manifest.json").exists()


# Whether all is there


@pytest.mark.parametrize("ignored", [".parquet", "manifest.json"])
def test_what_the_hub_passes_over_is_not_said_to_be_there(
    ignored: str, hub: HubServer, dataset: Path
) -> None:
    hub.ignored = (ignored,)
    with pytest.raises(LongRecipeError, match=rf"does not hold .*{ignored}.*\.gitignore"):
        push(dataset, REPO)
    assert hub.broken_commits(REPO) == []
    hub.ignored = ()
    push(dataset, REPO)
    assert verify_on(hub) == []


def verify_on(hub: HubServer) -> list[str]:
    manifest = json.loads(hub.files(REPO)["manifest.json"])
    return [entry["path"] for entry in manifest["files"] if entry["path"] not in hub.files(REPO)]


def test_a_commit_that_changes_nothing_does_not_hide_another_push(
    hub: HubServer, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client makes no commit of what is there, and answers with the head, whosever it is."""
    push(dataset, REPO)
    shards = {path: data for path, data in hub.files(REPO).items() if path != "manifest.json"}
    hub.put(REPO, {path: data for path, data in shards.items() if "00004" not in path})
    add, first = repository.Repository.add, iter([True])

    def adopting(self: Any, *given: Any) -> None:
        add(self, *given)
        if next(first, False):
            hub.put(REPO, {path: data for path, data in shards.items() if "00003" not in path})
            self._commit = hub.repos[REPO].branches["main"]

    monkeypatch.setattr(repository.Repository, "add", adopting)
    with pytest.raises(LongRecipeError, match=r"does not hold .*00003"):
        push(dataset, REPO)
    assert hub.broken_commits(REPO) == []


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_a_part_does_not_replace_its_whole(
    where: str, hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    place = REPO if where == "hub" else tmp_path / "shared"
    push(dataset, place)
    pull(place, tmp_path / "part", only=["extend"])
    with pytest.raises(LongRecipeError, match=r"holds replay/.*, which this part was pulled with"):
        push(tmp_path / "part", place)
    there = hub.files(REPO) if where == "hub" else content(tmp_path / "shared")
    assert there.items() >= of_dataset(dataset).items()
