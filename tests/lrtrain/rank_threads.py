"""Ranks that are threads of one process: for what they say to each other and read of each other."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lrdata.errors import LongRecipeError
from lrtrain.distributed import Ranks


@dataclass(frozen=True)
class InThreads(Ranks):
    """A rank of those that are threads of this process."""

    said: list[Any] = field(default_factory=list)
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def exchange(self, value: Any) -> list[Any]:
        self.said[self.rank] = value
        self.barrier.wait(60)
        found = list(self.said)
        self.barrier.wait(60)
        return found


def in_threads(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What `work` gives on each of so many ranks, or what it raises."""
    said, barrier = [None] * size, threading.Barrier(size)

    def one(rank: int) -> Any:
        try:
            return work(InThreads(rank, size, said=said, barrier=barrier))
        except (LongRecipeError, SystemExit) as problem:
            return problem

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
