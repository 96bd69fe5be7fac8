"""Corpus files -> units: what there is to read, and how it is cut into pieces of work.

    files = find_files(["books/", "web/*.jsonl.zst"])    # sorted; names do not tell where they lie
    units = plan_units(files)                            # fixed by bytes, never by workers
    for documents, rejected in reader.read_unit(units[0], fields): ...

A corpus is a file, a folder or a glob, here or at an address (see `lrdata.remote`). The suffix says
how a file is read:

    .jsonl .ndjson .jsonlines .json    a JSON object a line, also as .zst or .gz
    .parquet                           a row a document
    .arrow .feather                    Arrow IPC, file or stream format (what `datasets` writes)
    .txt .text .md .rst                a file a document, also as .zst or .gz

A folder gives its files with these suffixes, of all its subfolders, hidden ones left out. Any other
suffix is read as plain text, but only where a file or a glob such as `lib/**/*.py` names it.
"""

import glob
import hashlib
import heapq
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.remote import find_remote, is_remote
from lrdata.remote_file import open_remote
from lrdata.remote_io import shown

UNIT_BYTES = 128 * 1024**2
_LEAST_UNIT_BYTES, _MOST_UNIT_BYTES, _UNITS = 16 * 1024**2, 256 * 1024**2, 16

_HASHED_BYTES = 1024**2

COMPRESSION_RATIO = 3
"""What compressed text is taken to expand by when units are planned."""

_FOOTERS_AT_ONCE = 16
"""Of Parquet files: a server takes its time for each of them."""

DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What pyarrow raises for a damaged Parquet or Arrow file."""

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
_COMPRESSIONS = {".zst": "zstd", ".gz": "gzip"}
_UNREADABLE = frozenset((".xz", ".bz2", ".lz4", ".zip", ".7z", ".tar", ".tgz", ".rar"))
_BOOKKEEPING = frozenset(
    ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
)
"""What `datasets` writes beside the data of a saved dataset: not records."""

_SUFFIXES = f"{' '.join(_FORMATS)} (JSON lines and text also as .zst or .gz)"


@dataclass(frozen=True)
class SourceFile:
    """A corpus file. `name` and `source` are what a dataset publishes: they hold no folder of ours.

    name: `<folder's name>/<path inside>` for a file found in a folder or by a glob, else its own.
    source: the folder's name, or the file's name without suffixes. Windows join documents of files
    of one source only. What `--source-field` says of a document is a label: windows mix those, and
    a row has that of its first document. format: jsonl, parquet, arrow or text. compression: zstd,
    gzip or None.
    A remote file has an address, where `path` is its name alone, and the version of when it was
    found, of which every byte must be; sha256 where its server tells it.
    """

    path: Path
    name: str
    source: str
    size: int
    format: str
    compression: str | None = None
    address: str | None = field(default=None, repr=False)  # may hold a password or a signature
    version: str = ""
    sha256: str | None = None

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        return shown(self.address) if self.address else str(self.path)


@dataclass(frozen=True)
class Piece:
    """A part of a file: [start, stop) in bytes of plain JSONL (the lines whose first byte lies in
    it) or in row groups of Parquet; any other file is one piece, 0..size. text_bytes: about how
    many bytes of text it holds, where it was planned; exact for plain files."""

    file: SourceFile
    start: int
    stop: int
    text_bytes: int = 0


@dataclass(frozen=True)
class Unit:
    """What is read, encoded and written as one: pieces of one source, in corpus order."""

    index: int
    pieces: tuple[Piece, ...]


def open_source(file: SourceFile, mapped: bool = False) -> pa.NativeFile:
    """The one place where corpus files are opened, for random access; raises OSError.

    Remote files raise LongRecipeError, while they are read, too; `mapped` means nothing to them.
    """
    if file.address:
        return open_remote(file.address, file.size, file.version)
    return pa.memory_map(str(file.path)) if mapped else pa.OSFile(str(file.path), "rb")


def raise_unless_damage(problem: Exception) -> None:
    """An error of the disk is not the file's fault: it must not become a rejection."""
    if isinstance(problem, OSError) and problem.errno:
        raise problem


def changed(file: SourceFile) -> bool:
    """Whether a local file has another size than when it was found.

    A remote file has not: reading it says so with the first byte that is of another version.
    """
    return not file.address and os.stat(file.path).st_size != file.size


def source_hash(file: SourceFile, check: Callable[[], object] = lambda: None) -> str:
    """sha256 of the file's bytes as they lie on the disk, streamed.

    A remote file is not read for it: where its server tells no sha256, this is its version, which
    has a colon in it (`etag:...`, `modified:...`, `git:...`, `size:...`). check: called for every
    so many bytes; what it raises ends the work.
    """
    if file.address:
        return file.sha256 or file.version
    digest, buffer = hashlib.sha256(), bytearray(_HASHED_BYTES)
    with open(file.path, "rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
            check()
    return digest.hexdigest()


def find_files(corpora: Sequence[str]) -> list[SourceFile]:
    """The files of all corpora, each once, sorted by name.

    Raises LongRecipeError for a corpus that is missing or holds nothing to read, for a file that
    cannot be read, and for two files that would have the same name in the dataset.
    """
    files: dict[str, SourceFile] = {}
    places: set[str] = set()
    for corpus in corpora:
        for file in _expand(corpus):
            # A link is a file of its own, but a linked folder is the folder it leads to.
            folder = os.path.realpath(file.path.parent)
            place = file.address or os.path.join(folder, file.path.name)
            if place in places:
                continue
            places.add(place)
            if file.name in files:
                raise LongRecipeError(
                    f"{files[file.name].place} and {file.place} would both be named {file.name}; "
                    "rename one, or give a folder that holds both"
                )
            files[file.name] = file
    return [files[name] for name in sorted(files)]


def _expand(corpus: str) -> Iterator[SourceFile]:
    """The files of one corpus argument, in the order of the file system's names."""
    if is_remote(corpus):
        yield from _expand_remote(corpus)
        return
    if not corpus:  # a variable of the shell that is not set: not the working directory
        raise LongRecipeError("a corpus is named by an empty text; name a file, folder or glob")
    path = Path(os.path.abspath(os.path.expanduser(corpus)))
    if path.is_dir():
        yield from _inside(path, _walk(path), corpus)
    elif os.path.lexists(path):
        format, compression, stem = _kind(path.name)
        yield _source_file(path, path.name, stem or path.name, format, compression)
    elif glob.has_magic(corpus):
        pattern = os.path.normpath(os.path.expanduser(corpus))
        folder = _fixed_part(pattern)
        matches = map(os.path.abspath, glob.iglob(pattern, recursive=True))
        named = (match for match in matches if not os.path.isdir(match))
        yield from _inside(folder, sorted(named, key=partial(_order, root=folder)), corpus)
    else:
        raise LongRecipeError(f"{corpus} does not exist; name a file, folder or glob")


def _expand_remote(corpus: str) -> Iterator[SourceFile]:
    """By the rules for local files: what a folder gives, and how files are named."""
    found = find_remote(corpus)
    none = True
    for file in found.files:
        if found.folder and not found.chosen and not _is_corpus_file(file.path.split("/")):
            continue
        none = False
        format, compression, stem = _kind(file.path)
        name = f"{found.folder}/{file.path}" if found.folder else file.path
        _refuse_unfit(shown(file.address), name, compression)
        yield SourceFile(
            path=Path(name),
            name=name,
            source=found.folder or stem or name,
            size=file.size,
            format=format or "text",
            compression=compression,
            address=file.address,
            version=file.version,
            sha256=file.sha256,
        )
    if none:
        raise LongRecipeError(f"{shown(corpus)} holds no corpus file; known suffixes: {_SUFFIXES}")


def _is_corpus_file(steps: list[str]) -> bool:
    """Whether a folder gives the file at this path in it."""
    hidden = any(step.startswith(".") for step in steps)
    return not hidden and steps[-1] not in _BOOKKEEPING and _kind(steps[-1])[0] is not None


def _inside(folder: Path, paths: Iterable[str], corpus: str) -> Iterator[SourceFile]:
    source = folder.name or "corpus"  # only the root folder has no name
    path = None
    for path in paths:
        name = f"{source}/{Path(path).relative_to(folder).as_posix()}"
        format, compression, _ = _kind(path)
        yield _source_file(Path(path), name, source, format, compression)
    if path is None:
        raise LongRecipeError(f"{corpus} holds no corpus file; known suffixes: {_SUFFIXES}")


def _walk(root: Path) -> Iterator[str]:
    """Visible files with known suffixes, of each folder once, however many links lead to it.

    By a path without links where it has one, else through the link of the fewest folders, of
    several the first by name: names are the same wherever the corpus is copied to. A link to a
    folder above itself is passed over.
    """
    walked: set[str] = set()
    places = [(0, str(root))]
    while places:
        for folder, subfolders, names in os.walk(heapq.heappop(places)[1], onerror=_raise):
            real = os.path.realpath(folder)
            visible = sorted(name for name in subfolders if not name.startswith("."))
            subfolders[:] = [] if real in walked else visible  # links among them are not followed
            if real in walked:
                continue
            walked.add(real)
            for path in (os.path.join(folder, name) for name in visible):
                if os.path.islink(path) and not _encloses(path):
                    heapq.heappush(places, (path.count(os.sep), path))
            for name in sorted(names):
                if _is_corpus_file([name]):
                    yield os.path.join(folder, name)


def _raise(problem: OSError) -> NoReturn:
    raise problem


def _encloses(link: str) -> bool:
    """Whether it leads to the folder that it lies in, or to one above that."""
    above, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([above, here]) == above


def _order(path: str, root: Path) -> tuple[bool, int, str]:
    """Of several paths to a file the one that names it is the least: one without links if there is
    one, else one of the fewest folders."""
    folder = os.path.dirname(path)
    unlinked = os.path.join(os.path.realpath(root), os.path.relpath(folder, root))
    linked = os.path.realpath(folder) != os.path.normpath(unlinked)
    return linked, path.count(os.sep), path


def _fixed_part(pattern: str) -> Path:
    """The folder above the first part of a glob that holds a wildcard.

    Of what was written: a wildcard in the working directory's name is none.
    """
    parents = Path(pattern).parents
    return Path(os.path.abspath(next(one for one in parents if not glob.has_magic(str(one)))))


def _kind(name: str) -> tuple[str | None, str | None, str]:
    """(format, compression, stem) by the suffixes of a file name; format None where unknown."""
    stem, suffix = os.path.splitext(name)
    compression = _COMPRESSIONS.get(suffix.lower())
    if compression:
        stem, suffix = os.path.splitext(stem)
    format = _FORMATS.get(suffix.lower())
    if suffix.lower() in _UNREADABLE or (compression and format in ("parquet", "arrow")):
        return None, "unreadable", stem
    return format, compression, stem


def _source_file(
    path: Path, name: str, source: str, format: str | None, compression: str | None
) -> SourceFile:
    _refuse_unfit(str(path), name, compression)
    if path.exists() and not path.is_file():
        raise LongRecipeError(f"{path} is not a regular file; write its content to one first")
    return SourceFile(path, name, source, path.stat().st_size, format or "text", compression)


def _refuse_unfit(place: str, name: str, compression: str | None) -> None:
    if compression == "unreadable":
        raise LongRecipeError(f"{place} is packed in a way that is not read here; unpack it first")
    if not name.isprintable():  # such as the surrogates that stand for bytes that are not UTF-8
        raise LongRecipeError(f"{place!r} cannot be published under that name; rename it")


def unit_size(files: Sequence[SourceFile]) -> int:
    """A unit's size that fits a corpus, in bytes of text (estimated for compressed files).

    Small enough to keep the cores busy, large enough that little is left over at the end of units
    and that a large corpus does not become very many shards. A small one is cut into two, four,
    eight or sixteen, so that as many workers, or half of them, end together.
    """
    text = sum(map(_file_text_bytes, files))
    count = min(max(text // _LEAST_UNIT_BYTES, 1), _UNITS)
    count = 1 << (count.bit_length() - 1)
    return min(max(-(-text // count), _LEAST_UNIT_BYTES), _MOST_UNIT_BYTES)


def _file_text_bytes(file: SourceFile) -> int:
    packed = file.compression is not None or file.format == "parquet"
    return file.size * (COMPRESSION_RATIO if packed else 1)


def plan_units(files: Sequence[SourceFile], unit_bytes: int = UNIT_BYTES) -> list[Unit]:
    """Cut files into pieces and group these, in order, to units of about `unit_bytes`.

    Depends on the bytes of the files and on `unit_bytes` alone. A unit holds one source. Plain
    JSONL is cut into equal byte ranges, Parquet between row groups (by their uncompressed size);
    other files are never cut, so one of them may exceed `unit_bytes`.
    """
    units: list[list[Piece]] = []
    filled = 0
    for piece in _pieces(files, unit_bytes):
        last = units[-1][-1] if units else None
        file, size = piece.file, piece.text_bytes
        if last is None or last.file.source != file.source or filled + size > unit_bytes:
            units.append([piece])
            filled = size
            continue
        filled += size
        if last.file is file:
            units[-1][-1] = Piece(file, last.start, piece.stop, last.text_bytes + size)
        else:
            units[-1].append(piece)
    return [Unit(index, tuple(pieces)) for index, pieces in enumerate(units)]


def _pieces(files: Sequence[SourceFile], unit_bytes: int) -> Iterator[Piece]:
    """The smallest pieces of files, in order."""
    with closing(_row_groups([file for file in files if file.format == "parquet"])) as groups:
        for file in files:
            if file.format == "parquet":
                yield from next(groups)
            elif file.format == "jsonl" and file.compression is None:
                count = max(1, round(file.size / unit_bytes))
                edges = [file.size * index // count for index in range(count + 1)]
                for start, stop in itertools.pairwise(edges):
                    yield Piece(file, start, stop, stop - start)
            else:
                yield Piece(file, 0, file.size, _file_text_bytes(file))


def _row_groups(files: Sequence[SourceFile]) -> Generator[list[Piece]]:
    """The row groups of each Parquet file, in order. Footers are read ahead, several at once."""
    remote = any(file.address for file in files)
    pool = ThreadPoolExecutor(_FOOTERS_AT_ONCE)
    try:
        with progress("reading footers", len(files), silent=not remote) as task:
            for groups in pool.map(_read_footer, files):
                task.advance()
                yield groups
    finally:
        pool.shutdown(cancel_futures=True)


def _read_footer(file: SourceFile) -> list[Piece]:
    try:
        metadata = pq.read_metadata(open_source(file))
        sizes = [metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups)]
    except DAMAGE as problem:
        raise_unless_damage(problem)
        return [Piece(file, 0, 0, file.size)]  # reading it says that it is damaged
    return [Piece(file, at, at + 1, max(size, 0)) for at, size in enumerate(sizes)]
