"""A dataset hub on 127.0.0.1 that the Hub's own client pushes to and pulls from.

It speaks the part of the Hub's protocol that is used: repositories, branches, commits of regular
and of large files, listings in pages, downloads with ranges. Large files lie on `storage`, another
port, as they do at the Hub; what was uploaded stays there though no commit names it.

Large files go up and down as they do without Xet, the Hub's newer way to store them: its protocol
is not spoken here, the client is told not to use it, and so nothing is shown of it.
"""

import base64
import hashlib
import json
import os
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

from tests.loopback import Request, Site, _reset, _send, _Server

_PAGE = 4
_LARGE = (".parquet", ".png")
Files = dict[str, bytes]


class Storage(Site):
    """Large files by sha256. uploads: how often each was stored; downloads: how often asked for."""

    def __init__(self) -> None:
        super().__init__({})
        handler: Any = self._listener.RequestHandlerClass
        handler.do_PUT = handler.do_GET
        self.uploads: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()

    def answer(self, handler: BaseHTTPRequestHandler, request: Request, body: bytes) -> None:
        digest = request.target.partition("?")[0].rpartition("/")[2]
        if request.method != "PUT":
            self.downloads[digest] += request.method == "GET"
            return super().answer(handler, request, body)
        fault = self.faults(request)
        if fault is not None:
            return _reset(handler) if fault == "refuse" else _send(handler, int(fault), {})
        if hashlib.sha256(body).hexdigest() != digest:
            return _send(handler, 400, {}, b"other bytes than promised")
        self.files[f"blob/{digest}"] = body
        self.uploads[digest] += 1
        return _send(handler, 200, {"ETag": f'"{digest}"'})


class Repo:
    """The commits of a repository, each all of its files; large ones as their sha256."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.branches: dict[str, str] = {}
        self.commits: dict[str, Files] = {}
        self.messages: list[str] = []
        self.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")

    def commit(self, branch: str, files: Files, message: str) -> str:
        said = repr((sorted(files.items()), message, self.branches.get(branch))).encode()
        made = hashlib.sha1(said).hexdigest()
        self.commits[made], self.branches[branch] = files, made
        self.messages.append(message)
        return made

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class HubServer(_Server):
    """Repositories by name. Where `token` is set, private ones are told to it alone, and only it
    may write. faults: a status for a request, instead of an answer. ignored: how the names end that
    a repository's .gitignore has, which the client then leaves out of commits, without an error."""

    def __init__(self, token: str | None = None) -> None:
        super().__init__()
        self.token, self.repos = token, dict[str, Repo]()
        self.storage = Storage()
        self.faults = dict[str, int]()
        self.ignored: tuple[str, ...] = ()

    def __enter__(self) -> "HubServer":
        self.storage.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.storage.__exit__(*raised)

    # For tests

    def put(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> None:
        """Files that nobody pushed, as one commit."""
        repo = self.repos.setdefault(name, Repo(private=False))
        repo.commit(branch, {path: self._stored(path, data) for path, data in files.items()}, "put")

    def files(self, name: str, revision: str = "main") -> Files:
        """The files of a repository, with the content of large ones."""
        repo = self.repos[name]
        held = repo.commits[repo.resolve(revision) or ""]
        return {path: self._content(path, data) for path, data in held.items()}

    def broken_commits(self, name: str) -> list[str]:
        """The messages of commits that have a manifest, and not all that it names."""
        repo, broken = self.repos[name], []
        for commit, message in zip(repo.commits, repo.messages, strict=True):
            files = self.files(name, commit)
            named = json.loads(files.get("manifest.json", b'{"files": []}'))["files"]
            digests = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
            if any(digests.get(entry["path"]) != entry["sha256"] for entry in named):
                broken.append(message)
        return broken

    def _stored(self, path: str, data: bytes) -> bytes:
        if not path.endswith(_LARGE):
            return data
        digest = hashlib.sha256(data).hexdigest()
        self.storage.files[f"blob/{digest}"] = data
        return digest.encode()

    def _content(self, path: str, data: bytes) -> bytes:
        return self.storage.files[f"blob/{data.decode()}"] if path.endswith(_LARGE) else data

    # The protocol

    def answer(self, handler: BaseHTTPRequestHandler, request: Request, body: bytes) -> None:
        # A revision holds quoted slashes, so the path is taken apart before it is unquoted.
        split = urllib.parse.urlsplit(request.target)
        parts = [urllib.parse.unquote(part) for part in split.path.strip("/").split("/")]
        for word, status in self.faults.items():
            if word in parts:
                return _send(handler, status, {}, b"{}")
        knows = self.token is None or request.authorization == f"Bearer {self.token}"
        if parts[:2] == ["api", "validate-yaml"]:
            return self._validate(handler, json.loads(body)["content"])
        writes = {"create", "branch", "preupload", "commit", "batch", "verify"}
        if not knows and (request.method == "POST" and writes & set(parts)):
            return _send(handler, 401, {}, b"{}")
        if parts[:3] == ["api", "repos", "create"]:
            return self._create(handler, json.loads(body))
        large = parts[0] == "datasets" and parts[-1] == "batch"
        where = parts[1:] if parts[0] == "datasets" else parts[2:]
        name = "/".join(where[:2]).removesuffix(".git")
        repo = self.repos.get(name)
        if repo is None or (repo.private and not knows):
            return _send(handler, 401 if not knows else 404, {"X-Error-Code": "RepoNotFound"})
        if large:
            return self._batch(handler, json.loads(body))
        verb, rest = (where[2], where[3:]) if len(where) > 2 else ("revision", ["main"])
        if verb == "branch":
            return self._branch(handler, repo, rest[0])
        if verb == "verify":
            return _send(handler, 200, {}, b"{}")
        commit = repo.resolve(rest[0])
        if commit is None:
            return _send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        if verb == "revision":
            return _tell(handler, {"id": name, "sha": commit, "private": repo.private})
        if verb == "tree":
            return self._tree(handler, repo.commits[commit], split)
        if verb == "preupload":
            return self._preupload(handler, repo.commits[commit], json.loads(body))
        if verb == "commit":
            return self._commit(handler, name, rest[0], body)
        assert verb == "resolve", request
        return self._resolve(handler, request, repo, commit, "/".join(rest[1:]))

    def _create(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.repos else 200
        assert asked["type"] == "dataset"
        self.repos.setdefault(name, Repo(asked.get("visibility") == "private"))
        _tell(handler, {"url": f"{self.root}/datasets/{name}", "id": name}, status)

    def _branch(self, handler: BaseHTTPRequestHandler, repo: Repo, branch: str) -> None:
        status = 409 if branch in repo.branches else 200
        repo.branches.setdefault(branch, repo.branches["main"])
        _tell(handler, {}, status)

    def _validate(self, handler: BaseHTTPRequestHandler, content: str) -> None:
        try:
            front = yaml.safe_load(content.split("---\n")[1])
            errors = [] if isinstance(front, dict) else [{"message": "no metadata"}]
        except (IndexError, yaml.YAMLError) as problem:
            errors = [{"message": f"not YAML: {type(problem).__name__}"}]
        _tell(handler, {"errors": errors, "warnings": []}, 400 if errors else 200)

    def _preupload(self, handler: BaseHTTPRequestHandler, there: Files, asked: Any) -> None:
        def about(path: str) -> dict[str, Any]:
            mode = "lfs" if path.endswith(_LARGE) else "regular"
            found = {"oid": _oid(path, there[path])} if path in there else {}
            ignored = path.endswith(self.ignored)
            return {"path": path, "uploadMode": mode, "shouldIgnore": ignored, **found}

        _tell(handler, {"files": [about(file["path"]) for file in asked["files"]]})

    def _batch(self, handler: BaseHTTPRequestHandler, asked: Any) -> None:
        def about(file: dict[str, Any]) -> dict[str, Any]:
            if f"blob/{file['oid']}" in self.storage.files:
                return file
            href = self.storage.url(f"blob/{file['oid']}") + "?signature=of-the-storage"
            return {**file, "actions": {"upload": {"href": href}}}

        assert asked["operation"] == "upload"
        objects = [about(file) for file in asked["objects"]]
        _tell(handler, {"transfer": "basic", "objects": objects})

    def _commit(self, handler: BaseHTTPRequestHandler, name: str, branch: str, body: bytes) -> None:
        repo = self.repos[name]
        header, *changes = [json.loads(line) for line in body.splitlines()]
        parent = header["value"].get("parentCommit", repo.branches[branch])
        if parent != repo.branches[branch]:
            return _send(handler, 412, {}, b"{}")
        files = dict(repo.commits[parent])
        for change in changes:
            value = change["value"]
            if change["key"] == "deletedFile":
                del files[value["path"]]
            elif change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert f"blob/{value['oid']}" in self.storage.files
                files[value["path"]] = value["oid"].encode()
        made = repo.commit(branch, files, header["value"]["summary"])
        url = f"{self.root}/datasets/{name}/commit/{made}"
        return _tell(handler, {"commitUrl": url, "commitOid": made})

    def _tree(
        self, handler: BaseHTTPRequestHandler, files: Files, split: urllib.parse.SplitResult
    ) -> None:
        query = dict(urllib.parse.parse_qsl(split.query))
        start = int(query.get("cursor", 0))
        folders = {path.rpartition("/")[0] for path in files} - {""}
        entries = [
            *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders),
            *(self._entry(path, data) for path, data in sorted(files.items())),
        ]
        headers = {}
        if start + _PAGE < len(entries):
            following = urllib.parse.urlencode({**query, "cursor": start + _PAGE})
            headers["Link"] = f'<{self.root}{split.path}?{following}>; rel="next"'
        _tell(handler, entries[start : start + _PAGE], headers=headers)

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        content = self._content(path, data)
        entry = {"type": "file", "path": path, "oid": _blob(data), "size": len(content)}
        if path.endswith(_LARGE):
            entry["lfs"] = {"oid": data.decode(), "size": len(content), "pointerSize": 130}
        return entry

    def _resolve(
        self,
        handler: BaseHTTPRequestHandler,
        request: Request,
        repo: Repo,
        commit: str,
        path: str,
    ) -> None:
        data = repo.commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if data is None:
            return _send(handler, 404, {**headers, "X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{_oid(path, data)}"'
        if not path.endswith(_LARGE):
            return _send(handler, 200, headers, data)
        headers["X-Linked-Etag"] = headers["ETag"]
        headers["X-Linked-Size"] = str(len(self._content(path, data)))
        location = self.storage.url(f"blob/{data.decode()}")
        return _send(handler, 302, {**headers, "Location": location})


@contextmanager
def at_loopback(
    patch: pytest.MonkeyPatch, cache: Path, token: str = "hf_secret"
) -> Iterator[HubServer]:
    """An empty hub that HF_ENDPOINT names, a token for it in HF_TOKEN, and a cache of its own."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")):
            patch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        patch.setenv(name, "127.0.0.1")
    patch.setenv("LRDATA_RETRY_SECONDS", "2")
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    patch.setattr("huggingface_hub.utils._http.time", quick)
    patch.setattr("huggingface_hub.file_download.time", quick)
    huggingface_hub.close_session()  # it keeps the proxies of when it was opened
    with HubServer(token) as server:
        patch.setenv("HF_ENDPOINT", server.root)
        patch.setenv("HF_TOKEN", token)
        yield server
        _wait_for_readers()
    huggingface_hub.close_session()


def _wait_for_readers() -> None:
    """Until no shard is being fetched ahead. A reader that outlives its hub cannot connect, and
    the client then closes the connections of its whole process: the next test's too."""
    for thread in threading.enumerate():
        if thread.name == "next shard":
            thread.join()


def _tell(
    handler: BaseHTTPRequestHandler,
    answer: object,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> None:
    body = json.dumps(answer).encode()
    _send(handler, status, {"Content-Type": "application/json", **(headers or {})}, body)


def _oid(path: str, data: bytes) -> str:
    """What the Hub says a file is: git's hash, or the sha256 of a large file."""
    return data.decode() if path.endswith(_LARGE) else _blob(data)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
