"""Files that exist under their final name only when they are complete and on the disk."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrdata.errors import LongRecipeError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it to `path`.

    On any exception the temporary file is removed and `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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


@contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """`folder` for this process alone: two runs that make `out` would take each other's files.

    Raises LongRecipeError while another process has it, or has just removed it.
    """
    busy = f"another run is at work in {out}; wait for it, or choose another --out"
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        raise LongRecipeError(busy) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            still = os.path.samestat(os.fstat(handle), os.stat(folder))
        except (BlockingIOError, FileNotFoundError):
            still = False
        if not still:
            raise LongRecipeError(busy)
        yield
    finally:
        os.close(handle)
