"""Units on this machine: in threads, and from five workers on in processes.

Nearly all of a unit's work is done by libraries that release Python's lock: two threads are as fast
as two processes, share one tokenizer (a second to load, 200 MB) and its cache, and start at once.
What is left to the lock would stop a crowd of them. `python bench/build.py` measures both.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from lrdata.errors import LongRecipeError
from lrdata.runtime import prepare_for_bulk_work

Job = TypeVar("Job")
Result = TypeVar("Result")

MOST_THREADS = 4


def run(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """function(job) for each job, in their order. Closing the iterator cancels what is waiting."""
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from map(function, jobs)
        return
    pool = ThreadPoolExecutor(workers) if workers <= MOST_THREADS else _processes(workers)
    ended = True
    try:
        yield from pool.map(function, jobs)
    except BrokenProcessPool:
        raise LongRecipeError(
            "a worker process died, perhaps for lack of memory; the same command goes on from what "
            "is finished (with fewer --workers it needs less)"
        ) from None
    except KeyboardInterrupt:
        ended = False  # whoever pressed the key does not want to wait for units
        raise
    finally:
        pool.shutdown(wait=ended, cancel_futures=True)


def _processes(workers: int) -> Executor:
    """Spawned, not forked: the tokenizers run threads of their own, which a fork would leave in an
    undefined state."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_process)


def _begin_process() -> None:
    """A process that ends with its parent: when that was killed, another build may go on."""
    prepare_for_bulk_work()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
