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
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Task as ShownTask
from rich.text import Text

from lrdata.visible import visible

_SECONDS_BETWEEN_LINES = 10.0


class Task:
    """Work with a known or unknown total. `advance` moves it on; `note` says how it goes.

    work: how much is to be done now, in any unit, where steps are unlike each other; `advance` says
    how much of it was done. Without it all steps take the same.
    """

    def __init__(self, what: str, total: int | None, done: int, work: float | None) -> None:
        self.what, self.total, self.done, self.text = visible(what), total, done, ""
        self.due = total - done if work is None and total is not None else work
        self.worked = 0.0
        self._began = self._advanced = time.monotonic()

    def advance(self, steps: int = 1, note: str | None = None, work: float | None = None) -> None:
        self.done += steps
        self.worked += steps if work is None else work
        self._advanced = time.monotonic()
        if note is not None:
            self.text = visible(note)  # names of files are a stranger's
        self._show()

    def left(self) -> str:
        """`12 min left`, by the pace since it began; nothing while there is none to go by.

        rich's own column knows the pace of the last half minute, so none of steps that take longer.
        """
        if not self.worked or self.due is None or self.done == self.total:
            return ""
        pace = (self._advanced - self._began) / self.worked
        seconds = pace * (self.due - self.worked) - (time.monotonic() - self._advanced)
        return f"{duration(max(seconds, 0.0))} left"

    def _show(self) -> None:
        raise NotImplementedError


class _Bar(Task):
    def __init__(
        self, what: str, total: int | None, done: int, work: float | None, progress: Progress
    ) -> None:
        super().__init__(what, total, done, work)
        self._progress = progress
        self._task = progress.add_task(self.what, total=total, completed=done, note="", task=self)

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done, note=self.text)


class _LeftColumn(ProgressColumn):
    def render(self, task: ShownTask) -> Text:
        return Text(task.fields["task"].left(), style="progress.remaining")


class _Lines(Task):
    def __init__(self, what: str, total: int | None, done: int, work: float | None) -> None:
        super().__init__(what, total, done, work)
        self._last = time.monotonic()

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES or self.done == self.total:
            self._last = now
            of = f"/{self.total}" if self.total is not None else ""
            said = ", ".join(filter(None, (self.text, self.left())))
            print(f"{self.what}: {self.done}{of} {said}".rstrip(), file=sys.stderr, flush=True)


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
    what: str,
    total: int | None = None,
    done: int = 0,
    silent: bool = False,
    work: float | None = None,
) -> Iterator[Task]:
    """`with progress("building", total=12) as task: task.advance(1, note="3.1 Mtok/s")`.

    done: steps of an earlier run, which say nothing about how fast this one is.
    silent: another process shows it.
    work: of the steps that are left, where they are unlike each other, see `Task`.
    """
    if silent:
        yield _Silent(what, total, done, work)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(what, total, done, work)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        _LeftColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        yield _Bar(what, total, done, work, bars)
