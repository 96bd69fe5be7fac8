"""Units on this machine, in processes that begin with the tokenizer loaded.

Threads would share it too, but a unit is many short NumPy calls, and two threads that hand Python's
lock to each other at each of them take a fifth more processor time for the same work. Processes
that are spawned load a tokenizer of their own, a second and 200 MB each. So they are forked, not
from this process, whose threads a fork would leave in an undefined state, but from a server
(`multiprocessing`'s forkserver) that has loaded the tokenizer with one thread and runs no other.
"""

import concurrent.futures
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    "POLARS_MAX_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "HF_HUB_DISABLE_XET": "1",
}
"""For the server and its processes: each has a core, and a server with threads must not fork."""


def begin(recipe: BuildRecipe, workers: int) -> None:
    """Start the server, which loads the tokenizer: no other process needs to."""
    if workers > 1:
        tokenizer = {"name": recipe.tokenizer, "eot": recipe.eot, "encoder": recipe.encoder}
        with _environment({**_ONE_THREAD, WARM: json.dumps(tokenizer)}):
            multiprocessing.set_forkserver_preload(["lrdata.engines.warm"])
            forkserver.ensure_running()


@contextmanager
def crew(workers: int) -> Iterator["_Processes | _ThisProcess"]:
    """So many processes, or this one if that is enough."""
    if workers <= 1:
        yield _ThisProcess()
        return
    context = multiprocessing.get_context("forkserver")
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_process)
    processes = _Processes(pool, workers)
    try:
        yield processes
    except KeyboardInterrupt:  # whoever pressed the key does not want to wait for units
        with processes.starting:  # one that another thread starts now would be waited for
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            pool.shutdown(cancel_futures=True)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _ThisProcess:
    def call(self, function: Callable[[Job], Result], job: Job) -> Result:
        return function(job)

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        return map(function, jobs)


@dataclass(frozen=True)
class _Processes:
    pool: ProcessPoolExecutor
    workers: int
    starting: threading.Lock = field(default_factory=threading.Lock)
    """Held while work is handed over, for which the pool starts processes."""

    def call(self, function: Callable[[Job], Result], job: Job) -> Result:
        with _plain_errors():
            with self.starting, _environment(_ONE_THREAD):
                result = self.pool.submit(function, job)
                for _ in range(self.workers - 1):
                    self.pool.submit(os.getpid)  # have the others begin: units come next
            return result.result()

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        results: list[Future[Result]] = []
        try:
            with _plain_errors():
                with self.starting, _environment(_ONE_THREAD):
                    results += [self.pool.submit(function, job) for job in jobs]
                for result in results:
                    yield result.result()
        except KeyboardInterrupt:
            results = []
            raise
        finally:
            for result in results:
                result.cancel()
            concurrent.futures.wait(results)


def _begin_process() -> None:
    """A process that ends with its parent: when that was killed, another build may go on. The key
    that interrupts a terminal's processes is the parent's to answer, see `crew`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare_for_bulk_work()
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise LongRecipeError(
            "a worker process died: for lack of memory (fewer --workers need less; the same "
            "command goes on from what is finished), or because a script builds outside of "
            "if __name__ == '__main__':"
        ) from None


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
