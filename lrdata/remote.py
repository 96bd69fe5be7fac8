"""Corpora on other machines: the files that lie at an address, without their content.

    find_remote("s3://bucket/books/").files    # address, size, version, perhaps sha256 of each

    https://host/a.jsonl.zst                   one file; also http://, and signed addresses
    s3://bucket/key  .../folder/  .../*.txt    AWS_* of the environment; anonymous without a key
    hf://datasets/owner/name[@revision]/...    a file, folder or glob of a dataset on the hub, at
                                               the commit of now; HF_TOKEN, HF_ENDPOINT

`lrdata.remote_file` reads them.
"""

import fnmatch
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from lrdata.errors import LongRecipeError
from lrdata.remote_io import (
    connect,
    explained,
    obstore,
    pauses,
    retry_seconds,
    shown,
    status_of,
    version_of,
    wait,
)

_HUB_ADDRESS = re.compile(
    r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)"
    r"(@(?P<revision>refs/(convert|pr)/[^/]+|[^/]+))?(/(?P<path>.*))?"
)


_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file that was found. `path`: its own name, or its path in the folder that was searched.

    version: `etag:...` or `modified:...` as the server says, `git:...` on the hub, `size:...` where
    nothing more is known. sha256: of the content, where the hub tells it.
    """

    address: str = field(repr=False)  # may hold a password or a signature
    path: str
    size: int
    version: str
    sha256: str | None = None


@dataclass(frozen=True)
class Found:
    """What an address stands for. folder: the name of the folder that was searched, None for a
    file that was named. chosen: by a glob, rather than all that the folder holds."""

    files: list[RemoteFile]
    folder: str | None = None
    chosen: bool = False


def is_remote(corpus: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", corpus) is not None


def find_remote(corpus: str) -> Found:
    """The files at an address. Raises LongRecipeError where it cannot be read or nothing is."""
    scheme = corpus.partition("://")[0].lower()
    finders = {"http": _find_http, "https": _find_http, "s3": _find_s3, "hf": _find_on_hub}
    if scheme not in finders:
        raise LongRecipeError(
            f"{shown(corpus)} is a remote corpus of an unknown kind; use https://, s3:// or hf://, "
            "or download it first"
        )
    return finders[scheme](corpus)


def last_part(corpus: str) -> str:
    """An address as it may be published: its last part, with the folder before it for a glob."""
    path = shown(corpus).partition("://")[2]
    if corpus.lower().startswith("http"):
        return unquote(_name(path))
    fixed, pattern = _split(path)
    return f"{_name(fixed)}/{pattern}" if pattern else _name(path)


def _find_http(corpus: str) -> Found:
    try:
        parts = urlsplit(corpus)
    except ValueError as problem:
        scheme, _, rest = re.split("[?#]", corpus)[0].partition("://")  # as `shown`, of any text
        place = f"{scheme}://{rest.rpartition('@')[2]}"
        raise LongRecipeError(f"{place} is not an address ({problem})") from None
    name = _name(unquote(parts.path.rpartition("/")[2]))  # a slash may be hidden in it
    if not name or not parts.hostname:
        raise LongRecipeError(f"{shown(corpus)} names no file; folders cannot be listed over http")
    store, _ = connect(corpus, _patience())

    async def meta() -> Any:
        try:
            return await obstore().head_async(store, "")
        except Exception as problem:
            if status_of(problem) not in (400, 403, 404, 405, 501):
                raise
            # A server without HEAD, or an address that is signed for GET.
            return (await obstore().get_async(store, "")).meta

    try:
        found = wait(meta())
    except Exception as problem:
        raise explained(corpus, problem) from None
    return Found([RemoteFile(corpus, name, found["size"], version_of(found))])


def _find_s3(corpus: str) -> Found:
    bucket, _, path = corpus.removeprefix("s3://").partition("/")
    if not bucket:
        raise LongRecipeError(f"{corpus} names no bucket; write s3://bucket/path")
    store, _ = connect(corpus, _patience())
    fixed, pattern = _split(path)

    async def metas() -> list[Any]:
        if path and not path.endswith("/") and not pattern:
            try:
                return [await obstore().head_async(store, path)]
            except FileNotFoundError:
                pass  # then it should be a folder
        return [meta async for batch in obstore().list(store, fixed or None) for meta in batch]

    try:
        found = wait(metas())
    except Exception as problem:
        raise explained(corpus, problem) from None
    files = [
        RemoteFile(f"s3://{bucket}/{meta['path']}", meta["path"], meta["size"], version_of(meta))
        for meta in found
    ]
    # An empty object may stand for a folder.
    folders = {str(above) for file in files for above in PurePosixPath(file.path).parents}
    files = [file for file in files if file.path not in folders]
    return _found(corpus, files, fixed, pattern, bucket)


def _find_on_hub(corpus: str) -> Found:
    parts = _HUB_ADDRESS.fullmatch(corpus)
    if not parts:
        raise LongRecipeError(
            f"{corpus} names no dataset of the hub; write hf://datasets/owner/name/path"
        )
    obstore()  # that it is missing should be said before the hub is asked
    from huggingface_hub import HfApi, RepoFile

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    repo, revision = parts["repo"], unquote(parts["revision"] or "") or None
    fixed, pattern = _split(parts["path"] or "")

    def entries() -> tuple[str, list[Any]]:
        commit = api.dataset_info(repo, revision=revision).sha or ""
        at: dict[str, Any] = {"repo_type": "dataset", "revision": commit}
        if fixed and not pattern:
            named = api.get_paths_info(repo, [fixed], **at)
            if not named or isinstance(named[0], RepoFile):
                return commit, named
        return commit, list(api.list_repo_tree(repo, fixed or None, recursive=True, **at))

    commit, found = _insist(corpus, entries)
    files = [
        RemoteFile(
            f"hf://datasets/{repo}@{commit}/{entry.path}",
            entry.path,
            entry.size,
            f"git:{entry.blob_id}",
            entry.lfs.sha256 if entry.lfs else None,
        )
        for entry in found
        if isinstance(entry, RepoFile)
    ]
    return _found(corpus, files, fixed, pattern, _name(repo))


def _insist(address: str, request: Callable[[], _Result]) -> _Result:
    """The answer of a request to the hub, tried again while that may help."""
    left = pauses(_patience())
    while True:
        try:
            return request()
        except Exception as problem:
            status = status_of(problem)
            passing = status is None or status >= 500 or status in (408, 429)
            pause = next(left, None) if passing and not isinstance(problem, ValueError) else None
            if pause is None:
                raise explained(address, problem) from None
        time.sleep(pause)


def _patience() -> float:
    """Someone waits for the first answer, and an address may be mistyped."""
    return retry_seconds() / 6


def _found(corpus: str, files: list[RemoteFile], fixed: str, pattern: str, root: str) -> Found:
    """`files` have whole paths; `root` is the name of the folder without a path."""
    if not files:
        raise LongRecipeError(f"{shown(corpus)} is not there, or holds no file; check the address")
    if [file.path for file in files] == [fixed] and not pattern:
        return Found([replace(files[0], path=_name(fixed))])
    start = len(fixed) + 1 if fixed else 0
    inside = [replace(file, path=file.path[start:]) for file in files]
    if pattern:
        steps = pattern.split("/")
        inside = [file for file in inside if matches(file.path.split("/"), steps)]
    return Found(inside, _name(fixed) or root, chosen=bool(pattern))


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _split(path: str) -> tuple[str, str]:
    """`a/b/*.txt` -> (`a/b`, `*.txt`): the folder above the first wildcard, and what follows."""
    steps = [step for step in path.split("/") if step]
    magic = (at for at, step in enumerate(steps) if re.search(r"[*?[]", step))
    first = next(magic, len(steps))
    return "/".join(steps[:first]), "/".join(steps[first:])


def matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """By the rules of `glob`: `**` stands for any folders, no wildcard for a leading dot."""
    if not pattern or not path:
        return not pattern and not path
    visible = not path[0].startswith(".")
    if pattern[0] == "**":
        if len(pattern) == 1:
            return visible and (len(path) == 1 or matches(path[1:], pattern))
        return matches(path, pattern[1:]) or (visible and matches(path[1:], pattern))
    named = visible or pattern[0].startswith(".")
    return named and fnmatch.fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])
