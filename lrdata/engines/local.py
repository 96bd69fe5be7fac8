"""Units on this machine, in processes that begin with the tokenizer loaded.

Threads would share it too, but a unit is many short NumPy calls, and two threads that hand Python's
lock to each other at each of them take a fifth more processor time for the same work. Processes
that are spawned load a tokenizer of their own, a second and 200 MB each. So they are forked, not
from this process, whose threads a fork would leave in an undefined state, but from a server
(`multiprocessing`'s forkserver) that has loaded the tokenizer with one thread and runs no other.
"""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import TypeVar

from lrdata.engines.warm import WARM
from lrdata.errors import LongRecipeError
from lrdata.recipe import BuildRecipe
from lrdata.runtime import prepare_for_bulk_work

Job = TypeVar("Job")
Result = TypeVar("Result")

_ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FASTOKENS_BPE_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""For the server and its processes: each has a core, and a server with threads must not fork."""


def begin(recipe: BuildRecipe, workers: int) -> None:
    """Start the server, which loads the tokenizer: no other process needs to."""
    if workers > 1:
        tokenizer = {"name": recipe.tokenizer, "eot": recipe.eot, "encoder": recipe.encoder}
        with _environment({**_ONE_THREAD, WARM: json.dumps(tokenizer)}):
            multiprocessing.set_forkserver_preload(["lrdata.engines.warm"])
            forkserver.ensure_running()


def call(function: Callable[[Job], Result], job: Job, workers: int) -> Result:
    """function(job), in a process of its own if there are several workers."""
    if workers <= 1:
        return function(job)
    (result,) = _in_processes(function, [job], 1)
    return result


def run(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """function(job) for each job, in their order. Closing the iterator cancels what is waiting."""
    workers = min(workers, len(jobs))
    return map(function, jobs) if workers <= 1 else _in_processes(function, jobs, workers)


def _in_processes(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[Result]:
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_process)
    ended = True
    try:
        with _environment(_ONE_THREAD):
            results = pool.map(function, jobs)
        yield from results
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


def _begin_process() -> None:
    """A process that ends with its parent: when that was killed, another build may go on."""
    prepare_for_bulk_work()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for processes that are started inside; those that are set stay."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
