"""Cells of work in processes of their own: what is there as JSON is not done again."""

import hashlib
import inspect
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from math import inf
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any

from lrdata.atomic import write_json
from lrdata.errors import LongRecipeError
from lrdata.manifest import safe_path
from lrdata.progress import progress


@lru_cache(1)
def made() -> dict[str, str]:
    """With what something was found: the commit of this repository, and versions."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = "unknown"
    with suppress(FileNotFoundError):  # a machine without git
        run = subprocess.run(describe, capture_output=True, text=True, check=False)
        commit = run.stdout.strip() or commit  # a copy without its history
    versions = {name: version(name) for name in ("torch", "transformers", "numpy", "tokenizers")}
    return {"commit": commit, "python": platform.python_version(), **versions}


def code_digest(*modules: ModuleType) -> str:
    """Of code that makes something: made by other code it is something else."""
    return hashlib.sha256("".join(map(inspect.getsource, modules)).encode()).hexdigest()[:16]


class OutOfTime(Exception):
    """There are cells that were not begun."""


@dataclass(frozen=True)
class Cell:
    """A function and its arguments, kept under a name; their repr says what was asked."""

    name: str
    work: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]

    def path(self, out: Path) -> Path:
        return out / "cells" / f"{self.name}.json"

    def kept(self, out: Path) -> dict[str, Any] | None:
        """What was found before, and with what, if the same was asked."""
        path = self.path(out)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"asked": None}
        return dict(kept) if kept["asked"] == repr(self.arguments) else None

    def keep(self, out: Path, found: dict[str, Any]) -> dict[str, Any]:
        """Keep what was found now; returns it as `kept` will."""
        kept = {"asked": repr(self.arguments), "found": found, "made": made()}
        self.path(out).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path(out), kept)
        return kept


@dataclass(frozen=True)
class Study:
    """Where cells are kept, and how many are worked on at a time, each in a process.

    One thread each, if not told otherwise, so that figures do not depend on how many there are.
    """

    out: Path
    workers: int
    threads: int | None = 1
    """Of a process; None leaves it to torch."""
    seconds: float = inf
    """No cell is begun after so many; the same command goes on."""
    begun: float = field(default_factory=time.monotonic)
    commits: set[str] = field(default_factory=set)
    """Of this repository, by which `results` were found."""

    def take(self, file: Path) -> None:
        """Put the cells that `gather` wrote on another machine among ours; those here stay.

        Raises LongRecipeError, and takes none, where one is here that was asked otherwise.
        """
        carried = dict[Path, Any]()
        for name, kept in json.loads(file.read_text(encoding="utf-8")).items():
            path = safe_path(self.out / "cells", f"{name}.json")
            if not path.exists():
                carried[path] = kept
            elif json.loads(path.read_text(encoding="utf-8"))["asked"] != kept["asked"]:
                raise LongRecipeError(
                    f"{path} was asked otherwise than the one in {file}; remove the older one"
                )
        for path, kept in carried.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, kept)

    def gather(self, folder: str) -> dict[str, Any]:
        """Name -> what is kept of it, of all cells whose names begin with a folder's.

        Raises LongRecipeError where there are none.
        """
        root, found = self.out / "cells", {}
        for path in sorted((root / folder).rglob("*.json")):
            name = path.relative_to(root).with_suffix("").as_posix()
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        if not found:
            raise LongRecipeError(f"{root / folder} holds no cells")
        return found

    def results(self, what: str, cells: Mapping[Any, Cell]) -> dict[Any, dict[str, Any]]:
        """What every cell found, by the same keys; those that are missing are done.

        Raises OutOfTime when some are not.
        """
        kept = {key: cell.kept(self.out) for key, cell in cells.items()}
        due = [key for key in cells if kept[key] is None]
        with progress(what, len(cells), len(cells) - len(due)) as task, self._pool() as pool:
            waiting = iter(due)
            running = {
                pool.submit(cells[key].work, *cells[key].arguments): key
                for key in islice(waiting, self.workers)
                if self._has_time()
            }
            failed = None
            while running:
                done = next(as_completed(running))
                key = running.pop(done)
                if problem := done.exception():  # what still runs is finished, and kept
                    failed = failed or (cells[key].name, problem)
                    continue
                kept[key] = cells[key].keep(self.out, done.result())
                task.advance(note=cells[key].name)
                if failed is None and self._has_time() and (key := next(waiting, None)) is not None:
                    running[pool.submit(cells[key].work, *cells[key].arguments)] = key
        if failed is not None:
            raise RuntimeError(f"{failed[0]} failed") from failed[1]
        missing = [cells[key].name for key in cells if kept[key] is None]
        if missing:
            raise OutOfTime(f"{len(missing)} cells of {what} are left, {missing[0]} is the next")
        whole = {key: value for key, value in kept.items() if value is not None}
        self.commits.update(value["made"]["commit"] for value in whole.values())
        return {key: dict(value["found"]) for key, value in whole.items()}

    def made(self) -> dict[str, Any]:
        """With what `results` were found: versions of this call, and the commits of all cells."""
        return {**made(), "commits": sorted(self.commits)}

    def _has_time(self) -> bool:
        return time.monotonic() - self.begun < self.seconds

    @contextmanager
    def _pool(self) -> Iterator[ProcessPoolExecutor]:
        log = self.out / "log"
        log.mkdir(parents=True, exist_ok=True)
        begun = (_begin, (log, self.threads))
        with ProcessPoolExecutor(self.workers, get_context("spawn"), *begun) as pool:
            try:
                yield pool
            except KeyboardInterrupt:  # by a signal to this process alone, perhaps
                for process in active_children():
                    process.terminate()  # else the pool waits for its cell, which may take hours
                raise


def _begin(log: Path, threads: int | None) -> None:
    """A process of the pool: what commands say goes to a file, and it ends with its parent."""
    import torch

    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    with open(log / f"{os.getpid()}.txt", "w") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
        os.dup2(stream.fileno(), sys.stdout.fileno())


def _end_with_the_parent() -> None:
    """A parent that is killed tells nobody, and the pool waits for its word for ever."""
    parent = parent_process()
    assert parent is not None, "it was spawned"
    parent.join()
    os._exit(1)
