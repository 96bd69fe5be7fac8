"""Engines schedule units; they never look inside them, and change no byte.

An engine is a function `run(function, jobs, workers)` that yields function(job) for each job, in
their order, with up to `workers` at work at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any

from lrdata.errors import LongRecipeError

ENGINES = ("local", "ray")
Engine = Callable[[Callable[[Any], Any], Any, int], Iterator[Any]]


def open_engine(name: str) -> Engine:
    """The engine that `--engine` names."""
    if name == "local":
        from lrdata.engines import local

        return local.run
    if name == "ray":
        from lrdata.engines import ray

        return ray.run
    raise LongRecipeError(f"--engine {name} is unknown; choose one of {', '.join(ENGINES)}")
