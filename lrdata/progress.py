"""One way to show long work: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


class Task:
    """Work with a known or unknown total. `advance` moves it on; `note` says how it goes."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done, self.text = what, total, 0, ""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self.done += steps
        if note is not None:
            self.text = note
        self._show()

    def _show(self) -> None:
        raise NotImplementedError


class _Bar(Task):
    def __init__(self, what: str, total: int | None, progress: Progress) -> None:
        super().__init__(what, total)
        self._progress = progress
        self._task = progress.add_task(what, total=total, note="")

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done, note=self.text)


class _Lines(Task):
    def __init__(self, what: str, total: int | None) -> None:
        super().__init__(what, total)
        self._last = time.monotonic()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self.done == self.total:
            self._last = now
            of = f"/{self.total}" if self.total is not None else ""
            print(f"{self.what}: {self.done}{of} {self.text}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Task]:
    """`with progress("building", total=12) as task: task.advance(1, note="3.1 Mtok/s")`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield _Bar(what, total, bars)
