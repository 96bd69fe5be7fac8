"""What may not be published stays home, the token goes to the endpoint alone, and a hostile
dataset does no harm."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lrdata
from lrdata.errors import LongRecipeError
from lrdata.hub import pull, push
from lrdata.hub.places import HubAddress, parse_place
from lrdata.hub.publishable import absolute_paths
from lrdata.manifest import read_manifest
from lrdata.staging import complete
from tests.lrdata.build_runs import ROOT
from tests.lrdata.hub_datasets import (
    ADDRESS,
    PULLED_WITHOUT,
    REPO,
    TOKEN,
    asked_for,
    command,
    content,
    edit,
    of_dataset,
)
from tests.lrdata.hub_server import HubServer

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
        assert [line[:7] for line in result.stderr.splitlines()].count("error: ") == 1
        assert "Traceback" not in result.stderr


def test_a_public_repository_does_not_get_a_private_dataset(hub: HubServer, dataset: Path) -> None:
    hub.put(REPO, {"README.md": b"public"})
    with pytest.raises(LongRecipeError, match="is there and public, so nothing was sent"):
        push(dataset, REPO, private=True)
    assert hub.storage.uploads.total() == 0


def _no_licence(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["sources"][0].update(licence=None))


def _absolute(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["sources"][0].update(name="/home/me/books/a.jsonl"))


def _absolute_in_card(folder: Path) -> None:
    with open(folder / "README.md", "a") as card:
        card.write("\nBuilt in ~/texts/books, see https://host/a/b and a/b.\n")


def _absolute_key(folder: Path) -> None:
    edit(folder, lambda manifest: manifest["recipe"].update(weights={"C:\\Users\\me": 2}))


def _emphasized_in_card(folder: Path) -> None:
    with open(folder / "README.md", "a") as card:
        card.write("\nBuilt in **/home/me/books**, of path:/home/me/x.\n")


def _card_of_other_bytes(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"\xff\xfe")


def _changed(folder: Path) -> None:
    shard = folder / "extend/train-00001-of-00005.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def _link(folder: Path) -> None:
    (folder / "report/coverage.png").unlink()
    (folder.parent / "secret.png").write_bytes(b"secret")
    (folder / "report/coverage.png").symlink_to(folder.parent / "secret.png")


def _no_card(folder: Path) -> None:
    (folder / "README.md").unlink()


def _unnamed(folder: Path) -> None:
    shutil.copy(folder / "extend/train-00001-of-00005.parquet", folder / "extend/more.parquet")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (_no_licence, r"has sources without a licence \(books\).*--allow-unlicensed"),
        (_absolute, r"manifest.json has the absolute path '/home/me/books/a.jsonl'"),
        (_absolute_in_card, r"README.md has the absolute path '~/texts/books'"),
        (_absolute_key, r"manifest.json has the absolute path 'C:"),
        (_emphasized_in_card, r"README.md has the absolute path '/home/me/books'"),
        (_card_of_other_bytes, r"README.md cannot be read \("),
        (_changed, r"is damaged: extend/train-00001-of-00005.parquet: its sha256"),
        (_link, r"coverage.png is a link to a file outside"),
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


def test_absolute_paths_can_be_pushed_knowingly(
    hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "shards")
    _absolute(copy)
    assert command("push", copy, REPO).exit_code == 1
    assert command("push", copy, REPO, "--allow-absolute-paths").exit_code == 0


@pytest.mark.parametrize(
    "text",
    [
        *("books (1)/part/a.jsonl", "c++/src/main.cpp", "x/[ab]/part/a.jsonl", "c#/a", "a!/b/c"),
        *("see [parent](/datasets/me/base)", "from /r/science/ and s3://data/home/x", "a/home/b"),
        *("https://host/home/me", "me/tiny", "either/or", "hf://datasets/me/x", "sc:Dataset", "/"),
        *("1/2", "~5", "tests/tmp/x", "a:b", "</p>", "** / home"),
        *("wiki/*/media/*.txt", "x/**/tmp/a", "lrdata build '*/media/*.txt' x", "in `*/home/x`"),
    ],
)
def test_what_is_no_path_of_a_machine(text: str) -> None:
    assert list(absolute_paths(text)) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/data/books", "/data/books"),
        ("~/books", "~/books"),
        ("C:\\books", "C:\\books"),
        ("\\\\host\\share", "\\\\host\\share"),
        ("file:///data/x", "file:///data/x"),
        ("**/home/me/books**", "/home/me/books"),
        ("at path:/home/me/x.", "/home/me/x."),
        ("at **path:**/home/me/x", "/home/me/x"),
        ("***/home/me/*.jsonl***", "/home/me/"),
        ("_**/home/me**_", "/home/me"),
        ("`/tmp/a b`", "/tmp/a"),
        ("(see ~/work)", "~/work"),
        ("see file:/data/x", "file:/data/x"),
        (f"in {Path.cwd()}/x", f"{Path.cwd()}/x"),
    ],
)
def test_what_is_a_path_of_a_machine(text: str, path: str) -> None:
    assert list(absolute_paths(text)) == [path]


@pytest.mark.parametrize("name", ["code", "main", "section"])
def test_the_end_of_an_element_is_no_path_of_a_machine(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the working directory is called so."""
    monkeypatch.setattr(Path, "cwd", lambda: Path(f"/{name}"))
    assert list(absolute_paths(f'<{name} class="x">a</{name}>\n<{name}>b</{name}>')) == []
    for text, path in {
        f"<{name}>/{name}/a</{name}>": f"/{name}/a</{name}",
        f"<{name}></{name}/a>": f"/{name}/a",
        f"see </{name}>": f"/{name}",
        f"<{name}> in /{name}": f"/{name}",
    }.items():
        assert list(absolute_paths(text)) == [path]


@pytest.mark.parametrize("glob", ["*/media/*.txt", "**/media/*", "wiki/*/media/*.txt"])
def test_a_dataset_of_a_glob_can_be_pushed(
    glob: str, hub: HubServer, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "shards")
    edit(copy, lambda manifest: manifest["recipe"].update(corpora=[glob]))
    complete(copy, read_manifest(copy))
    assert f"lrdata build '{glob}'" in (copy / "README.md").read_text()
    (copy / "report/index.html").write_text(f"<code>{glob}</code> &#x27;{glob}&#x27;")
    push(copy, REPO)


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


def _entry(path: str, kind: str = "page") -> dict[str, Any]:
    hashes = {"sha256": hashlib.sha256(b"").hexdigest(), "content_sha256": ""}
    return {"path": path, "kind": kind, "rows": 0, "tokens": 0, "bytes": 0, **hashes}


HOSTILE: list[tuple[Callable[[Any], object], str]] = [
    (_first(path="../../stolen.parquet"), "outside its folder"),
    (_first(path="/tmp/stolen.parquet"), "outside its folder"),
    (_first(path="extend/.pull"), "not a name of extend rows"),
    (_first(path="\x1b[2Jextend"), r"␛\[2Jextend: not a name of extend rows"),
    (_first(kind="\x1b[2J"), "the files hold"),
    (lambda manifest: manifest["files"].append(_entry("sitecustomize.py")), "unknown kind 'page'"),
    (lambda manifest: manifest["files"].append(_entry(".envrc", "extend")), "not a name of extend"),
    (lambda manifest: manifest["left_out"].append(_entry("a/b")), "unknown kind 'page'"),
    (lambda manifest: manifest.update(recipe={"corpora": 5}), "the recipe's 'corpora' is 5"),
    (_first(bytes=10**18), "the manifest says 1000000000000000000"),
    (_first(bytes=-1), r"rows and .* tokens in -1 bytes"),
    (_first(rows=10**30), "rows is 10+"),
    (_first(rows=10**9), "has 1,000,000,000 rows and"),
    (_first(path="x" * 10**6), "path is 'x{60,90}[.]{3}"),
    (_first(sha256="0" * 64), "does not have the sha256 of the manifest"),
    (_first(path="extend/train-00001-of-00005.parquet"), "the manifest names it twice"),
    (lambda manifest: manifest.update(files="all"), "is damaged"),
    (lambda manifest: manifest.update(format_version="9.0"), "format version 9.0"),
    (lambda manifest: manifest["left_out"].append({"path": "../x"}), "is damaged"),
    (lambda manifest: manifest["ledger"].update(kept=10**30), "kept is 10"),
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
    after = content(tmp_path)
    mine = [name for name in after if name == "deep/" or name.startswith("deep/out/.pull")]
    assert {name: data for name, data in after.items() if name not in mine} == before
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
