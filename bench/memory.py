"""Peak memory of a process and all it started, in PSS: `with PeakMemory(pid) as peak: ...`.

PSS counts a page that several processes share once in all, so the sum over a tree is what the tree
really holds. Linux only (`/proc/PID/smaps_rollup`).
"""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_SECONDS = 0.05
_SAMPLES_PER_SEARCH = 4
"""Looking for new processes reads all of /proc, so it is done less often."""


class PeakMemory:
    """Samples the tree of `root` every 50 ms in a thread; `bytes` is the largest sum so far."""

    def __init__(self, root: int) -> None:
        self.bytes = 0
        self._root = root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        samples, tree = 0, [self._root]
        while not self._stop.wait(_SECONDS):
            if samples % _SAMPLES_PER_SEARCH == 0:
                tree = process_tree(self._root)
            samples += 1
            self.bytes = max(self.bytes, sum(map(pss, tree)))


def pss(pid: int) -> int:
    """Bytes; 0 for a process that is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def process_tree(root: int) -> list[int]:
    """`root` and all its descendants that live."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])  # the name before it may hold spaces
            children.setdefault(parent, []).append(int(name))
    tree = [root]
    for pid in tree:  # grows while it is read
        tree += children.get(pid, [])
    return tree
