"""Servers on 127.0.0.1 for tests: files over HTTP that fail as real ones do, and a small hub.

    with Site({"a.jsonl": data}) as site:
        site.faults = faults(seed=1)
        ... site.url("a.jsonl") ...

Each takes a free port and is closed at the end of its `with` block.
"""

import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

Fault = str | int | None
"""None: the request is answered. "refuse" and "cut": the connection is reset before the answer, or
in the middle of its body. "end": it is closed in order, but too early. "slow": the answer begins
late. A number: this status, and no file."""


class Request(NamedTuple):
    """What a server was asked."""

    method: str
    target: str
    range: str | None
    authorization: str | None


def faults(seed: int, share: float = 0.5, in_a_row: int = 3) -> Callable[[Request], Fault]:
    """Faults in a random `share` of the requests; never more than `in_a_row` for one after another,
    so that whoever keeps trying gets on."""
    draw, lock = random.Random(seed), threading.Lock()
    failed = 0

    def fault(request: Request) -> Fault:
        nonlocal failed
        with lock:
            if failed == in_a_row or draw.random() >= share:
                failed = 0
                return None
            failed += 1
            return draw.choice(["refuse", "cut", "end", "slow", 500, 503, 429])

    return fault


class _Server:
    """An HTTP server in a thread; `requests` lists what it was asked."""

    def __init__(self) -> None:
        server = self
        self.requests: list[Request] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def do_GET(self) -> None:
                server._take(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients leave when they have what they want

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.port = self._listener.server_port
        self._thread = threading.Thread(
            target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        headers = handler.headers
        request = Request(
            handler.command, handler.path, headers.get("Range"), headers.get("Authorization")
        )
        self.requests.append(request)
        length = int(headers.get("Content-Length") or 0)
        self.answer(handler, request, handler.rfile.read(length))

    def answer(self, handler: BaseHTTPRequestHandler, request: Request, body: bytes) -> None:
        raise NotImplementedError


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    body: bytes = b"",
    stop: int | None = None,
) -> None:
    """An answer with a body (none to HEAD), of which only the first `stop` bytes are sent."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body[:stop])


def _reset(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection with a reset instead of an orderly end."""
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True
    handler.connection.close()


class Site(_Server):
    """`files` by path. `faults` decides what goes wrong with a request.

    ranges: whether parts of a file are given; tag: a file's ETag, None for none; dated: whether
    Last-Modified is sent; heads: whether HEAD is answered; moved: redirects, path -> URL;
    failed: requests with a fault so far.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self.files = files
        self.faults: Callable[[Request], Fault] = lambda request: None
        self.ranges = self.dated = self.heads = True
        self.tag: Callable[[bytes], str | None] = lambda data: f'"{hashlib.md5(data).hexdigest()}"'
        self.moved: dict[str, str] = {}
        self.failed = 0
        self._draw = random.Random(0)

    def url(self, path: str) -> str:
        return f"{self.root}/{path}"

    def answer(self, handler: BaseHTTPRequestHandler, request: Request, body: bytes) -> None:
        fault = self.faults(request)
        self.failed += fault is not None
        if fault == "refuse":
            return _reset(handler)
        if fault == "slow":
            time.sleep(0.05)
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.target).path).lstrip("/")
        if isinstance(fault, int):
            return _send(handler, fault, {}, b"<html>no</html>\n")
        if path in self.moved:
            return _send(handler, 302, {"Location": self.moved[path]})
        if path not in self.files:
            return _send(handler, 404, {}, b"<html>not here</html>\n")
        if request.method == "HEAD" and not self.heads:
            return _send(handler, 405, {})
        self._give(handler, request, self.files[path], fault)

    def _give(
        self, handler: BaseHTTPRequestHandler, request: Request, data: bytes, fault: Fault
    ) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        tag = self.tag(data)
        if tag:
            headers["ETag"] = tag
        if self.dated:
            headers["Last-Modified"] = "Wed, 01 Jan 2025 00:00:00 GMT"
        part, status = data, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range or "")
        if asked and self.ranges:
            start, stop = int(asked[1]), int(asked[2] or len(data)) + 1
            if start >= len(data):
                return _send(handler, 416, {"Content-Range": f"bytes */{len(data)}"})
            part, status = data[start:stop], 206
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        if fault in ("cut", "end") and request.method == "GET":
            _send(handler, status, headers, part, stop=self._draw.randrange(len(part) + 1))
            if fault == "cut":
                return _reset(handler)
            handler.close_connection = True
            return None
        return _send(handler, status, headers, part)


class Hub(_Server):
    """The part of a dataset hub that listing and reading need, with one repository.

    Files lie on `storage`, a Site on another port, to which the hub redirects; those whose name is
    not .md are listed with their sha256. Where `token` is set, nothing is told without it.
    """

    def __init__(self, repo: str, files: dict[str, bytes], token: str | None = None) -> None:
        super().__init__()
        self.repo, self.files, self.token = repo, files, token
        self.commit = hashlib.sha1(repr(sorted(files)).encode()).hexdigest()
        self.storage = Site({f"blob/{path}": data for path, data in files.items()})
        self.faults: Callable[[Request], Fault] = lambda request: None

    def __enter__(self) -> Self:
        self.storage.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.storage.__exit__(*raised)

    def answer(self, handler: BaseHTTPRequestHandler, request: Request, body: bytes) -> None:
        fault = self.faults(request)
        if fault == "refuse":
            return _reset(handler)
        if isinstance(fault, int):
            return _send(handler, fault, {})
        if self.token and request.authorization != f"Bearer {self.token}":
            return _send(handler, 401, {})
        target = urllib.parse.unquote(urllib.parse.urlsplit(request.target).path)
        api, files = f"/api/datasets/{self.repo}", f"/datasets/{self.repo}/resolve/{self.commit}/"
        if target in (api, f"{api}/revision/main", f"{api}/revision/{self.commit}"):
            return self._tell(handler, {"id": self.repo, "sha": self.commit})
        if target == f"{api}/paths-info/{self.commit}":
            return self._tell(handler, [self._entry(path) for path in self._asked(body)])
        if target.startswith(f"{api}/tree/{self.commit}"):
            return self._list(handler, target.removeprefix(f"{api}/tree/{self.commit}").strip("/"))
        if target.startswith(files):
            blob = urllib.parse.quote(f"blob/{target.removeprefix(files)}")
            return _send(handler, 302, {"Location": self.storage.url(blob)})
        return _send(handler, 404, {"X-Error-Code": "RepoNotFound"})

    def _tell(self, handler: BaseHTTPRequestHandler, answer: object) -> None:
        body = json.dumps(answer).encode()
        _send(handler, 200, {"Content-Type": "application/json"}, body)

    def _asked(self, body: bytes) -> list[str]:
        """The paths of a form or of JSON that exist, folders too."""
        try:
            asked = json.loads(body)["paths"]
        except ValueError:
            asked = urllib.parse.parse_qs(body.decode())["paths"]
        asked = [asked] if isinstance(asked, str) else asked
        return [path for path in asked if path in self.files or self._inside(path)]

    def _inside(self, folder: str) -> list[str]:
        return [
            path for path in sorted(self.files) if path.startswith(f"{folder}/" if folder else "")
        ]

    def _list(self, handler: BaseHTTPRequestHandler, folder: str) -> None:
        inside = self._inside(folder)
        if not inside:
            return _send(handler, 404, {"X-Error-Code": "EntryNotFound"})
        folders = {path.rpartition("/")[0] for path in inside} - {"", folder}
        return self._tell(handler, [self._entry(path) for path in [*sorted(folders), *inside]])

    def _entry(self, path: str) -> dict[str, Any]:
        data = self.files.get(path)
        if data is None:
            return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"type": "file", "path": path, "oid": blob, "size": len(data)}
        if not path.endswith(".md"):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return entry
