"""Where the time of a build goes: processor seconds by stage.

    watch = Stopwatch()
    for batch in watch.each("read", batches):     # the time that the iterator takes
        with watch("join"):
            with watch("select"): ...             # is not counted to "join"

Times are a thread's own, so stages that run side by side in threads add up to what the processors
did. They are shown, never stored in a dataset.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")


class Stopwatch:
    """Adds up seconds by stage, for one thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._counted = 0.0  # seconds of all stages that have ended

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began, counted = time.thread_time(), self._counted
        try:
            yield
        finally:
            inner = self._counted - counted
            spent = time.thread_time() - began - inner
            self._counted += spent
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def each(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time they take to come is the stage's."""
        iterator = iter(items)
        while True:
            with self(stage):
                item = next(iterator, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]  # mypy cannot tell the end from an item


_END = object()


@dataclass
class Timing:
    """What a build took. start: seconds to load the tokenizer; build: all others, from finding the
    corpus to the manifest; stages: processor seconds."""

    start: float = 0.0
    build: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


def total(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sum of several stopwatches' seconds, by stage."""
    sums: dict[str, float] = {}
    for part in parts:
        for stage, seconds in part.items():
            sums[stage] = sums.get(stage, 0.0) + seconds
    return sums
