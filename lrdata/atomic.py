"""Files that exist under their final name only when they are complete and on the disk."""

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lrdata.errors import LongRecipeError

LOCK = ".lock"
"""The file by which a folder is `locked`."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`.

    On any exception the temporary file is removed and `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share the folder may have processes of one number.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        fsync(partial)
        os.replace(partial, path)
        fsync(path.parent)
    except OSError as problem:
        if problem.errno is not None and problem.filename is None:  # as libraries raise it
            problem.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, allow_nan: bool = True) -> None:
    """Write indented JSON atomically, keys in the order given, one newline at the end.

    allow_nan: whether NaN and infinity, which are Python's own JSON, may be in it; else ValueError.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=allow_nan)
    write_text(path, text + "\n")


def fsync(path: Path) -> None:
    """Have the disk hold what a file, or the names in a folder, are now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_file(path: Path) -> None:
    """Remove a file if it is there, for good, and its folder if nothing is left in that."""
    with suppress(FileNotFoundError):
        path.unlink()
        fsync(path.parent)
        with suppress(OSError):
            path.parent.rmdir()


def remove_partials(folder: Path) -> None:
    """Remove what was being written in a folder when its process died. For who has it `locked`."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """`folder`, made where it is not there, for this process alone: two runs that make `out` would
    take each other's files. At the end it goes if it is empty, and so does `out` if it was made
    for this: now, or by a run that was killed, whose `folder` is still in it.

    What is locked is a file in it, open for writing: a lock on the folder itself is not told to
    the other machines of a file system that several share. Raises LongRecipeError while another
    process has it, or has just removed it.
    """
    busy = f"another run is at work in {out}; wait for it, or choose another --out"
    # A folder that is left over is a killed run's, which most often made `out` too; of one that a
    # person had made no more than an empty folder is lost.
    out_goes = folder.exists() or not out.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path, held = folder / LOCK, False
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        raise LongRecipeError(busy) from None
    try:
        with suppress(BlockingIOError, FileNotFoundError):
            _lock(handle, folder)
            held = os.path.samestat(os.fstat(handle), os.stat(path))
        if not held:
            raise LongRecipeError(busy)
        yield
    finally:
        if held:
            with suppress(OSError):  # it would be in nobody's way
                path.unlink()
        os.close(handle)  # until then NFS keeps a removed file under another name
        if held:
            for empty in (folder, out) if out_goes else (folder,):
                with suppress(OSError):  # it is not, or another run has it by now
                    empty.rmdir()


def _lock(handle: int, folder: Path) -> None:
    """Lock an open file, or raise BlockingIOError where another process has it locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        raise LongRecipeError(
            f"the file system of {folder} locks no files ({os.strerror(problem.errno)}); choose "
            "an --out on another, or have it mounted with flock"
        ) from None


def clear(folder: Path, keep: Collection[str] = ()) -> None:
    """Empty a folder that is `locked`, but for what is named and the lock. What another machine is
    still writing there, which it should not, may stay."""
    for path in folder.iterdir():
        if path.name in (LOCK, *keep):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
