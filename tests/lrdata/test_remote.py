"""Corpora at https://, s3:// and hf:// addresses give the bytes that local ones give, from servers
that fail as real ones do; what cannot be read is said in a line that holds no secret."""

import base64
import glob
import gzip
import hashlib
import io
import json
import os
import random
import re
import signal
import sys
import threading
import tracemalloc
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lrdata.building import build
from lrdata.cli import main
from lrdata.corpus import SourceFile, Unit, find_files, open_source, plan_units, source_hash
from lrdata.errors import LongRecipeError
from lrdata.manifest import read_manifest
from lrdata.recipe import BuildRecipe
from lrdata.remote import last_part, matches
from tests.conftest import generated_text
from tests.loopback import Fault, Hub, Request, Site, faults


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy, no credentials of whoever runs the tests, and pauses of a fraction of a second."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "HF_", "HUGGING")):
            monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("LRDATA_RETRY_SECONDS", "20")
    huggingface_hub.close_session()  # it keeps the proxies of when it was opened
    yield
    huggingface_hub.close_session()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site({}) as site:
        yield site


def _find(*corpora: str) -> SourceFile:
    (file,) = find_files(corpora)
    return file


def _read(file: SourceFile) -> bytes:
    with open_source(file) as stream:
        return bytes(stream.read())


# ---- builds ----


def _jsonl(name: str, count: int, seed: int) -> bytes:
    draw = random.Random(seed)
    texts = ("".join(generated_text(draw.randint(1, 40), seed + at)) for at in range(count))
    records = ({"id": f"{name}-{at}", "text": text} for at, text in enumerate(texts))
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _table(name: str) -> pa.Table:
    records = [json.loads(line) for line in _jsonl(name, 30, 4).splitlines()]
    return pa.Table.from_pylist(records)


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """A corpus in each format, in several units each where a format can be cut."""
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(_table("p"), parquet, row_group_size=5)
    table = _table("i")
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return {
        "plain.jsonl": _jsonl("plain", 60, 1),
        "packed.jsonl.zst": zstandard.compress(_jsonl("zst", 30, 2)),
        "zipped.jsonl.gz": gzip.compress(_jsonl("gz", 30, 3), mtime=0),
        "rows.parquet": parquet.getvalue(),
        "deep/rows.arrow": arrow.getvalue(),
        "deep/notes.txt": "".join(generated_text(200, 5)).encode(),
    }


@pytest.fixture(scope="module")
def local(contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder, `books`."""
    folder = tmp_path_factory.mktemp("corpus") / "books"
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def recipe(local: Path, contents: dict[str, bytes], tiny_tokenizer: Path) -> BuildRecipe:
    """Of all files, one by one."""
    return BuildRecipe(
        corpora=tuple(str(local / name) for name in contents),
        tokenizer=str(tiny_tokenizer),
        target_len=512,
        holdout=0.1,
        id_field="id",
        replay=(str(local / "plain.jsonl"),),
        unit_bytes=20_000,
    )


@pytest.fixture(scope="module")
def built(recipe: BuildRecipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return _built(recipe, tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="module")
def built_folder(
    recipe: BuildRecipe, local: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = replace(recipe, corpora=(str(local),), replay=(), id_field=None)
    return _built(folder, tmp_path_factory.mktemp("local-folder"))


def _built(recipe: BuildRecipe, out: Path, workers: int = 1) -> dict[str, bytes]:
    """The shards of a build."""
    build(recipe, out / "shards", workers=workers)
    shards = (out / "shards").rglob("*.parquet")
    return {str(path.relative_to(out)): path.read_bytes() for path in shards}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("tagged", [True, False], ids=["tagged", "untagged"])
def test_a_failing_server_gives_the_shards_of_the_local_files(
    workers: int,
    tagged: bool,
    contents: dict[str, bytes],
    recipe: BuildRecipe,
    built: dict[str, bytes],
    site: Site,
    tmp_path: Path,
) -> None:
    site.files = contents
    site.faults = faults(seed=workers)
    if not tagged:  # then a cut body is not gone on with by obstore
        site.tag = lambda data: None
    remote = replace(
        recipe,
        corpora=tuple(site.url(name) for name in contents),
        replay=(site.url("plain.jsonl"),),
    )
    assert _built(remote, tmp_path, workers) == built
    assert len(built) >= 3
    assert site.failed > 10


def test_footers_are_read_once_several_at_a_time(
    contents: dict[str, bytes],
    site: Site,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And the units are those of local files."""
    names = [f"{number}.parquet" for number in range(6)]
    site.files = dict.fromkeys(names, contents["rows.parquet"])
    for name, data in site.files.items():
        (tmp_path / name).write_bytes(data)
    remote = find_files([site.url(name) for name in names])
    together = threading.Barrier(len(names))

    def fault(request: Request) -> Fault:
        together.wait(timeout=20)  # else it breaks, and no answer comes
        return None

    site.faults = fault
    site.requests.clear()
    units = plan_units(remote, 20_000)
    assert sorted(request.target for request in site.requests) == [f"/{name}" for name in names]

    def described(units: list[Unit]) -> list[list[tuple[str, int, int, int]]]:
        return [
            [(piece.file.name, piece.start, piece.stop, piece.text_bytes) for piece in unit.pieces]
            for unit in units
        ]

    local = plan_units(find_files([str(tmp_path / name) for name in names]), 20_000)
    assert described(units) == described(local)
    assert len(units) > len(names)
    assert "reading footers: 6/6" in capfd.readouterr().err


def test_a_finished_build_is_left_alone_until_a_file_changes(
    contents: dict[str, bytes], recipe: BuildRecipe, site: Site, tmp_path: Path
) -> None:
    site.files = dict(contents)
    remote = replace(recipe, corpora=(site.url("plain.jsonl"),), replay=())
    before = _built(remote, tmp_path)
    assert _built(remote, tmp_path) == before
    site.files["plain.jsonl"] = contents["plain.jsonl"].replace(b"plain-1", b"plain_1")
    with pytest.raises(LongRecipeError, match=r"corpus file plain\.jsonl"):
        _built(remote, tmp_path)


def test_no_secret_and_no_host_is_published(
    contents: dict[str, bytes], recipe: BuildRecipe, site: Site, tmp_path: Path
) -> None:
    site.files = contents
    address = site.url("plain.jsonl").replace("//", "//user:hunter2@") + "?sig=hunter3"
    _built(replace(recipe, corpora=(address,), replay=()), tmp_path)
    for path in (tmp_path / "shards").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not [word for word in (b"hunter", b"127.0.0.1", b"user") if word in data], path
    (source,) = read_manifest(tmp_path / "shards").sources
    assert (source.name, source.bytes) == ("plain.jsonl", len(contents["plain.jsonl"]))


# ---- reading ----

_DATA = random.Random(0).randbytes(3_000_000)


@pytest.fixture(scope="module")
def failing() -> Iterator[Site]:
    with Site({"data.txt": _DATA}) as site:
        site.faults = faults(seed=5, share=0.3)
        yield site


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3_100_000), st.integers(0, 1_500_000)), max_size=6))
def test_any_part_is_what_the_file_holds(failing: Site, parts: list[tuple[int, int]]) -> None:
    with open_source(_find(failing.url("data.txt"))) as stream:
        assert stream.size() == len(_DATA)
        for start, size in parts:
            stream.seek(start)
            assert stream.read(size) == _DATA[start : start + size]
            assert stream.read_at(size, start) == _DATA[start : start + size]


def test_a_large_file_is_never_held(site: Site) -> None:
    whole = random.Random(0).randbytes(1_000_000) * 100
    site.files, site.tag = {"a.txt": whole}, lambda data: '"fixed"'
    file = _find(site.url("a.txt"))
    tracemalloc.start()
    with open_source(file) as stream:
        read = hashlib.sha256()
        while part := stream.read(100_000):
            read.update(part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read.digest() == hashlib.sha256(whole).digest()
    assert peak < len(whole) / 3  # of the server's answers, too


def test_a_cut_body_is_not_fetched_again_from_its_start(site: Site) -> None:
    site.files, answers = {"a.txt": _DATA}, iter(["end", "cut", None])
    file = _find(site.url("a.txt"))
    site.requests.clear()
    site.faults = lambda request: next(answers, None)
    with open_source(file) as stream:
        assert stream.read(100) == _DATA[:100]
    starts = [int(request.range[6:].split("-")[0]) for request in site.requests if request.range]
    assert len(starts) == len(set(starts)) == 3
    assert starts == sorted(starts)


def test_a_server_without_ranges_is_read_from_the_start(site: Site) -> None:
    site.files, site.ranges = {"a.txt": _DATA}, False
    file = _find(site.url("a.txt"))
    # Reading goes on after each cut, though the server begins anew each time.
    answers = iter([None, *["cut", "end"] * 4])
    site.faults = lambda request: next(answers, None)
    assert _read(file) == _DATA
    assert site.failed == 8
    with open_source(file) as stream:
        stream.read(10)
        stream.seek(2_000_000)
        with pytest.raises(LongRecipeError, match=r"gives whole files only.*download it first"):
            stream.read(10)


@pytest.mark.parametrize(
    ("tag", "length"), [('"other"', len(_DATA)), (None, len(_DATA) - 1), (None, 10)]
)
def test_a_file_that_changes_is_an_error(site: Site, tag: str | None, length: int) -> None:
    site.files = {"a.txt": _DATA}
    site.tag, site.dated = lambda data: tag and '"first"', False
    with open_source(_find(site.url("a.txt"))) as stream:
        assert stream.read(10) == _DATA[:10]
        site.tag = lambda data: tag
        site.files["a.txt"] = _DATA[:length]
        stream.seek(2_000_000)
        with pytest.raises(LongRecipeError, match=r"a\.txt changed while it was being read"):
            stream.read(10)


def test_a_parquet_file_that_changes_is_not_taken_for_a_damaged_one(
    recipe: BuildRecipe, site: Site, contents: dict[str, bytes], tmp_path: Path
) -> None:
    site.files = dict(contents)
    opened = [site.url("rows.parquet")]

    def changes(request: Any) -> Fault:
        if len(site.requests) == 4:  # after it was found and its row groups were listed
            site.tag = lambda data: '"other"'
        return None

    site.faults = changes
    with pytest.raises(LongRecipeError, match=r"rows\.parquet changed while it was being read"):
        _built(replace(recipe, corpora=tuple(opened), replay=()), tmp_path)


def test_a_server_without_head_is_asked_otherwise(site: Site) -> None:
    site.files, site.heads = {"a b.txt": b"text"}, False
    file = _find(site.url("a%20b.txt?sig=x%2Fy"))
    assert (file.name, file.source, _read(file)) == ("a b.txt", "a b", b"text")
    assert {request.target for request in site.requests} == {"/a%20b.txt?sig=x%2Fy"}


def test_a_password_in_an_address_is_used(site: Site) -> None:
    site.files = {"a.txt": b"text"}
    assert _read(_find(site.url("a.txt").replace("//", "//me:pass@"))) == b"text"
    sent = "Basic " + base64.b64encode(b"me:pass").decode()
    assert {request.authorization for request in site.requests} == {sent}


def test_a_slash_that_is_hidden_in_an_address_leads_out_of_no_folder(site: Site) -> None:
    site.files = {"in/../../b.txt": b"text"}
    assert _find(site.url("in%2F..%2F..%2Fb.txt")).name == "b.txt"


def test_an_empty_file_is_read(site: Site) -> None:
    site.files = {"a.jsonl": b""}
    assert _read(_find(site.url("a.jsonl"))) == b""


def test_ctrl_c_is_heard_while_a_server_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRDATA_RETRY_SECONDS", "60")

    def fault(request: object) -> Fault:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        site.faults = lambda request: 503
        return 503

    site.faults = fault
    # As Python begins: tests before this one, in this process, may have left another handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            find_files([site.url("a.txt")])
    finally:
        signal.signal(signal.SIGINT, before)


# ---- errors ----


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (None, r"x\.txt is not there \(404\)"),
        (403, r"x\.txt may not be read \(403\)"),
        (401, r"x\.txt may not be read \(401\)"),
        (503, r"x\.txt cannot be read: HTTP 503"),
        (429, r"x\.txt cannot be read: HTTP 429"),
        ("refuse", r"x\.txt cannot be read: the connection failed"),
    ],
)
def test_what_a_server_refuses_is_a_line_with_its_address(
    site: Site, monkeypatch: pytest.MonkeyPatch, fault: Fault, line: str
) -> None:
    monkeypatch.setenv("LRDATA_RETRY_SECONDS", "1")
    site.faults = lambda request: fault
    command = ["build", site.url("x.txt?sig=secret"), "--tokenizer", "t", "--target-len", "1k"]
    result = CliRunner().invoke(main, [*command, "--out", "nowhere"])
    (text,) = (text for text in result.stderr.splitlines() if text.startswith("error: "))
    assert result.exit_code == 1
    assert re.search(f"{site.root}/{line}", text)
    assert "secret" not in result.output
    lasting = fault in (None, 401, 403)
    assert len(site.requests) <= 2 if lasting else len(site.requests) > 3


@pytest.mark.parametrize(
    ("corpus", "line"),
    [
        ("https://", "names no file"),
        ("https://host/folder/", "names no file"),
        ("https://[::/x.txt?secret", "not an address"),
        ("https://me:secret@[::1/x.jsonl", r"^https://\[::1/x\.jsonl is not an address"),
        ("https://me:secret@x@[::1/x.jsonl#secret", "not an address"),
        ("https://two words/x.txt?secret", "not an address"),
        ("s3://", "names no bucket"),
        ("hf://owner/name", "names no dataset of the hub"),
        ("hf://datasets/owner", "names no dataset of the hub"),
        ("gs://bucket/x.txt", "use https://, s3:// or hf://"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(corpus: str, line: str) -> None:
    with pytest.raises(LongRecipeError, match=line) as caught:
        find_files([corpus])
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRDATA_RETRY_SECONDS", "1")
    with Site({}) as gone:
        pass
    with pytest.raises(LongRecipeError, match=r"x\.txt cannot be read: the connection was refused"):
        find_files([gone.url("x.txt")])


def test_retries_end_in_the_middle_of_a_file_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files = {"a.txt": _DATA}
    monkeypatch.setenv("LRDATA_RETRY_SECONDS", "1")
    with open_source(_find(site.url("a.txt"))) as stream:
        stream.read(10)
        site.faults = lambda request: 503
        with pytest.raises(LongRecipeError, match=r"a\.txt cannot be read: HTTP 503"):
            stream.read()


def test_two_remote_files_of_one_name_are_refused_without_their_secrets(site: Site) -> None:
    site.files = {"a/x.txt": b"a", "b/x.txt": b"b"}
    corpora = [site.url("a/x.txt?secret"), site.url("b/x.txt?secret")]
    with pytest.raises(LongRecipeError, match=r"would both be named x\.txt") as caught:
        find_files(corpora)
    assert "secret" not in str(caught.value)
    assert find_files([corpora[0], corpora[0]]) == find_files(corpora[:1])


@pytest.mark.parametrize("corpus", ["https://host/x.txt", "s3://b/x.txt", "hf://datasets/a/b"])
def test_without_the_extra_it_is_named(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(LongRecipeError, match=r"pip install 'longrecipe\[remote\]'"):
        find_files([corpus])


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("https://me:pass@host/a/b%20c.jsonl?sig=x/y#z", "b c.jsonl"),
        ("s3://bucket/a/books/", "books"),
        ("s3://bucket/books/**/*.jsonl", "books/**/*.jsonl"),
        ("hf://datasets/me/books@v1/data/x[12].txt", "data/x[12].txt"),
    ],
)
def test_the_last_part_of_an_address_is_what_may_be_published(address: str, part: str) -> None:
    assert last_part(address) == part


# ---- folders and globs ----

_STEP = st.sampled_from(["a", "b.txt", "ab", ".h", "c.txt"])
_PATTERN_STEP = st.sampled_from(["**", "*", "*.txt", "a", "[ab]*", "?.txt", ".*", "b.txt"])


@settings(max_examples=60)
@given(
    st.lists(st.lists(_STEP, min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(_PATTERN_STEP, min_size=1, max_size=4),
)
def test_globs_choose_what_local_globs_choose(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]], pattern: list[str]
) -> None:
    root = tmp_path_factory.mktemp("glob")
    for path in paths:
        with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            root.joinpath(*path).parent.mkdir(parents=True, exist_ok=True)
            root.joinpath(*path).write_text("")
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    local = glob.iglob("/".join(pattern), root_dir=root, recursive=True)
    chosen = {path for path in files if matches(path.split("/"), pattern)}
    # Of a file `a`, Python 3.11 says that `a/**` matches `a/`: a folder that is none.
    assert chosen == {path for path in local if (root / path).is_file() and path[-1] != "/"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of an S3 server with an empty bucket `shelf`, which AWS_* lead to."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        # What another test put into a server of this process is still there.
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="shelf")
        yield client
    finally:
        server.stop()


def _put(bucket: Any, files: dict[str, bytes], **settings: str) -> None:
    for name, data in files.items():
        bucket.put_object(Bucket="shelf", Key=name, Body=data, **settings)


def test_a_folder_on_s3_gives_the_shards_of_the_local_one(
    bucket: Any,
    contents: dict[str, bytes],
    recipe: BuildRecipe,
    built_folder: dict[str, bytes],
    tmp_path: Path,
) -> None:
    _put(bucket, {f"in/books/{name}": data for name, data in contents.items()})
    _put(bucket, {"in/books/deep/": b"", "in/books/x.py": b"x", "in/bookshop/y.txt": b"y"})
    remote = replace(recipe, corpora=("s3://shelf/in/books/",), replay=(), id_field=None)
    assert _built(remote, tmp_path) == built_folder


def test_names_on_s3_are_those_of_local_files(bucket: Any) -> None:
    files = ["in/a b.txt", "in/50%25.txt", "in/é.txt", "in/sub/c.jsonl", "in/.hidden.txt", "d.md"]
    _put(bucket, {name: name.encode() for name in files})
    for corpus, names in {
        "s3://shelf/in": ["in/50%25.txt", "in/a b.txt", "in/sub/c.jsonl", "in/é.txt"],
        "s3://shelf/in/*.txt": ["in/50%25.txt", "in/a b.txt", "in/é.txt"],
        "s3://shelf/**/*.jsonl": ["shelf/in/sub/c.jsonl"],
        "s3://shelf/in/sub/c.jsonl": ["c.jsonl"],
        "s3://shelf": [
            *("shelf/d.md", "shelf/in/50%25.txt", "shelf/in/a b.txt"),
            *("shelf/in/sub/c.jsonl", "shelf/in/é.txt"),
        ],
    }.items():
        found = find_files([corpus])
        assert [file.name for file in found] == names
        assert all(file.name.endswith(_read(file).decode().rpartition("/")[2]) for file in found)


def test_an_object_that_is_overwritten_is_an_error(bucket: Any) -> None:
    _put(bucket, {"a.txt": _DATA})
    file = _find("s3://shelf/a.txt")
    with open_source(file) as stream:
        stream.read(10)
        _put(bucket, {"a.txt": _DATA[::-1]})
        with pytest.raises(LongRecipeError, match=r"s3://shelf/a\.txt changed while it was"):
            stream.read()
    assert source_hash(file) == f'etag:"{hashlib.md5(_DATA).hexdigest()}"'


def test_s3_without_keys_reads_what_is_public(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(bucket, {"private.txt": b"no"})
    _put(bucket, {"public.txt": b"yes"}, ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(LongRecipeError, match=r"set AWS_ACCESS_KEY_ID.*or neither"):
        find_files(["s3://shelf/public.txt"])
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert _read(_find("s3://shelf/public.txt")) == b"yes"
    with pytest.raises(LongRecipeError, match=r"private\.txt may not be read.*AWS_ACCESS_KEY_ID"):
        find_files(["s3://shelf/private.txt"])


@pytest.mark.parametrize("corpus", ["s3://shelf/none.txt", "s3://nobody/a/", "s3://shelf/*.nix"])
def test_what_is_not_on_s3_is_said_in_a_line(bucket: Any, corpus: str) -> None:
    _put(bucket, {"a.txt": b""})
    with pytest.raises(LongRecipeError, match=r"is not there|holds no corpus file") as caught:
        find_files([corpus])
    assert "\n" not in str(caught.value)


# ---- the hub ----


@pytest.fixture
def hub(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub whose only dataset me/library needs a token, which HF_TOKEN holds."""
    files = {f"books/{name}": data for name, data in contents.items()}
    with Hub("me/library", {**files, "README.md": b"# books"}, token="hf_secret") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.root)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


def test_a_folder_on_a_failing_hub_gives_the_shards_of_the_local_one(
    hub: Hub, recipe: BuildRecipe, built_folder: dict[str, bytes], local: Path, tmp_path: Path
) -> None:
    hub.faults, hub.storage.faults = faults(1, share=0.2, in_a_row=1), faults(2)
    corpus = "hf://datasets/me/library@main/books"
    assert (
        _built(replace(recipe, corpora=(corpus,), replay=(), id_field=None), tmp_path)
        == built_folder
    )
    assert hub.storage.failed > 5
    assert hub.storage.requests
    assert all(request.authorization is None for request in hub.storage.requests)
    assert "hf_secret" not in (tmp_path / "shards" / "manifest.json").read_text()
    digests = {file.name: source_hash(file) for file in find_files([corpus])}
    assert digests == {file.name: source_hash(file) for file in find_files([str(local)])}


def test_the_hub_is_read_at_the_commit_that_was_found(hub: Hub) -> None:
    file = _find("hf://datasets/me/library/README.md")
    assert (file.name, _read(file)) == ("README.md", b"# books")
    assert f"/resolve/{hub.commit}/" in hub.requests[-1].target
    assert source_hash(file).startswith("git:")
    globbed = find_files(["hf://datasets/me/library/books/**/*.txt"])
    assert [file.name for file in globbed] == ["books/deep/notes.txt"]


@pytest.mark.parametrize(
    ("corpus", "line"),
    [
        ("hf://datasets/me/library/none.txt", "none.txt is not there"),
        ("hf://datasets/me/library@v9", "v9 is not there"),
        ("hf://datasets/you/other", "you/other is not there"),
        ("hf://datasets/me/library/books/*.nix", "holds no corpus file"),
    ],
)
def test_what_is_not_on_the_hub_is_said_in_a_line(hub: Hub, corpus: str, line: str) -> None:
    with pytest.raises(LongRecipeError, match=line) as caught:
        find_files([corpus])
    assert "\n" not in str(caught.value)


def test_the_hub_without_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", os.devnull)
    with pytest.raises(LongRecipeError, match=r"library may not be read \(401\); set HF_TOKEN"):
        find_files(["hf://datasets/me/library"])
