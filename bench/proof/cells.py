"""Cells of work in processes of their own: what is there as JSON is not done again."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lrdata.atomic import write_json
from lrdata.progress import progress


@dataclass(frozen=True)
class Cell:
    """A function and its arguments, kept under a name; their repr says what was asked."""

    name: str
    work: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]

    def path(self, out: Path) -> Path:
        return out / "cells" / f"{self.name}.json"

    def kept(self, out: Path) -> dict[str, Any] | None:
        """What was found before, if the same was asked."""
        path = self.path(out)
        if not path.exists():
            return None
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["found"]) if kept["asked"] == repr(self.arguments) else None

    def keep(self, out: Path, found: dict[str, Any]) -> None:
        self.path(out).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path(out), {"asked": repr(self.arguments), "found": found})


def results(what: str, cells: Sequence[Cell], out: Path, workers: int) -> list[dict[str, Any]]:
    """What every cell found, in order; those that are missing are done, `workers` at a time.

    Each process has one thread, so figures do not depend on how many there are.
    """
    found = {cell.name: cell.kept(out) for cell in cells}
    due = [cell for cell in cells if found[cell.name] is None]
    with progress(what, len(cells), len(cells) - len(due)) as task:
        context = get_context("spawn")
        (out / "log").mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(workers, context, _begin, (out / "log",)) as pool:
            waiting = {pool.submit(cell.work, *cell.arguments): cell for cell in due}
            try:
                for done in as_completed(waiting):
                    cell = waiting[done]
                    found[cell.name] = done.result()
                    cell.keep(out, done.result())
                    task.advance(note=cell.name)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [found[cell.name] or {} for cell in cells]


def _begin(log: Path) -> None:
    """A process of the pool: one thread, and what commands say goes to a file."""
    import torch

    torch.set_num_threads(1)
    with open(log / f"{os.getpid()}.txt", "w") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
        os.dup2(stream.fileno(), sys.stdout.fileno())
