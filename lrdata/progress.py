"""One way to show long work: a live bar in a terminal, plain lines elsewhere.

with progress("building units", total=12) as task:
    task.advance(note="3.1 Mtok/s")
"""

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

    def __init__(self, what: str, total: int | None, done: int = 0) -> None:
        self.what, self.total, self.done, self.text = what, total, done, ""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        self.done += steps
        if note is not None:
            self.text = note
        self._show()

    def _show(self) -> None:
        raise NotImplementedError


class _Bar(Task):
    def __init__(self, what: str, total: int | None, done: int, progress: Progress) -> None:
        super().__init__(what, total, done)
        self._progress = progress
        self._task = progress.add_task(what, total=total, completed=done, note="")

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done, note=self.text)


class _Lines(Task):
    def __init__(self, what: str, total: int | None, done: int) -> None:
        super().__init__(what, total, done)
        self._first = done
        self._last = self._began = time.monotonic()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self.done == self.total:
            self._last = now
            of = f"/{self.total}" if self.total is not None else ""
            line = f"{self.what}: {self.done}{of} {self.text}{self._left(now)}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def _left(self, now: float) -> str:
        if not self.total or not self._first < self.done < self.total:
            return ""
        rate = (self.done - self._first) / (now - self._began)
        seconds = (self.total - self.done) / rate
        return f", {duration(seconds)} left"


class Meter:
    """Tokens a second since it was made. Work that was not `fresh` was done before."""

    def __init__(self) -> None:
        self.tokens, self._began = 0, time.monotonic()

    def add(self, tokens: int, fresh: bool = True) -> None:
        self.tokens += tokens * fresh

    def __str__(self) -> str:
        rate = self.tokens / max(time.monotonic() - self._began, 1e-9)
        if rate < 1e3:
            return f"{rate:.0f} tok/s"
        return f"{rate / 1e6:.1f} Mtok/s" if rate >= 1e5 else f"{rate / 1e3:.1f} ktok/s"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class _Silent(Task):
    def _show(self) -> None: ...


@contextmanager
def progress(
    what: str, total: int | None = None, done: int = 0, silent: bool = False
) -> Iterator[Task]:
    """`with progress("building", total=12) as task: task.advance(1, note="3.1 Mtok/s")`.

    done: steps of an earlier run, which say nothing about how fast this one is.
    silent: another process shows it.
    """
    if silent:
        yield _Silent(what, total, done)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, total, done)
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
        yield _Bar(what, total, done, bars)
