"""Units on a Ray cluster, for a corpus that one machine would take too long over.

    lrdata build ... --engine ray --workers 64    # RAY_ADDRESS names the cluster

With RAY_ADDRESS, or where `ray start` made this machine part of a cluster, that cluster is used;
else Ray is started here with `workers` CPUs. On a cluster the corpus, the tokenizer and the output
folder, whose hidden staging folder every unit writes to, must have the same path on every machine
(a shared file system), and longrecipe must be installed there.
"""

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from lrdata.errors import LongRecipeError, one_line
from lrdata.recipe import BuildRecipe

Job = TypeVar("Job")
Result = TypeVar("Result")

_OBJECT_STORE_BYTES = 100 * 1024**2
"""Enough: only jobs and receipts travel, the data goes through files. Ray's default is a third of
the memory."""

_SECONDS_TO_STOP = 20
"""How long units that run are given to stop at the end before their processes are killed."""


def begin(recipe: BuildRecipe, workers: int) -> None:
    """Nothing: Ray starts when there are jobs."""


@contextmanager
def crew(workers: int) -> Iterator["_Crew"]:
    """Ray's workers. They are there while units run; anything else is done in this process."""
    yield _Crew(workers)


@dataclass(frozen=True)
class _Crew:
    workers: int

    def call(self, function: Callable[[Job], Result], job: Job) -> Result:
        return function(job)

    def run(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        return run(function, jobs, self.workers)


def run(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """function(job) for each job, in their order. Closing the iterator cancels what is waiting.

    About 2 * `workers` jobs are with Ray at a time. A job whose machine or process died is done
    again, three times at most. Raises what a job raised, and LongRecipeError for trouble with Ray.
    """
    ray = _import()
    with _connected(ray, workers), _plain_errors(ray):
        task = ray.remote(max_retries=3)(_run_in)
        coming = iter(jobs)
        ordered, running = deque[Any](), list[Any]()  # references to results
        try:
            while True:
                for job in islice(coming, 2 * workers - len(running)):
                    ordered.append(task.remote(os.getcwd(), function, job))
                    running.append(ordered[-1])
                if not ordered:
                    break
                if ordered[0] in running:
                    _, running = ray.wait(running)
                else:
                    yield ray.get(ordered.popleft())
        finally:
            _stop(ray, running)


def _stop(ray: ModuleType, running: list[Any]) -> None:
    """Cancel, and wait until nothing runs: no unit may write after the build has moved on."""
    for second in range(2 * _SECONDS_TO_STOP):
        for reference in running:  # again each second: a unit that just began may miss it
            ray.cancel(reference, force=second >= _SECONDS_TO_STOP)
        if running:
            _, running = ray.wait(running, num_returns=len(running), timeout=1.0)


def _run_in(folder: str, function: Callable[[Job], Result], job: Job) -> Result:
    """A job's relative paths are meant from where the build was started."""
    if Path(folder).is_dir():
        os.chdir(folder)
    return function(job)


def _import() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray starts
    try:
        import ray
    except ImportError:
        raise LongRecipeError(
            "--engine ray needs ray; install it with: pip install 'longrecipe[ray]'"
        ) from None
    return ray


@contextmanager
def _connected(ray: ModuleType, workers: int) -> Iterator[None]:
    """A connection to Ray, closed at the end unless the caller had opened it."""
    if ray.is_initialized():
        yield
        return
    with _signals_kept():
        try:
            _connect(ray, workers)
        except (ConnectionError, RuntimeError, ValueError) as problem:
            where = os.environ.get("RAY_ADDRESS") or "this machine"
            reason = one_line(problem)
            raise LongRecipeError(
                f"cannot use Ray at {where} ({reason}); check RAY_ADDRESS, or use --engine local"
            ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, workers: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(
            num_cpus=workers,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            **quiet,
        )
    except ValueError as problem:
        if "existing cluster" not in str(problem):
            raise
        ray.init(**quiet)  # there is a cluster, which has its own CPUs


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM over when it starts; what the build does on SIGTERM stays as it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _plain_errors(ray: ModuleType) -> Iterator[None]:
    """Errors of jobs as they were raised, without Ray's wrapper; Ray's own in one line."""
    try:
        yield
    except ray.exceptions.RayTaskError as problem:
        raise problem.cause from None
    except ray.exceptions.RayError as problem:
        reason = one_line(problem)
        raise LongRecipeError(
            f"Ray lost a unit ({type(problem).__name__}: {reason}); the same command goes on from "
            "what is finished"
        ) from None
