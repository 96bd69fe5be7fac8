"""Engines schedule units; they never look inside them, and change no byte.

An engine is a module with `begin(recipe, workers)`, called early, with `call(function, job,
workers)`, for what needs the tokenizer but is no unit, and with `run(function, jobs, workers)`,
which yields function(job) for each job, in their order, with up to `workers` at work at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from lrdata.errors import LongRecipeError
from lrdata.recipe import BuildRecipe

ENGINES = ("local", "ray")


class Engine(Protocol):
    """What every engine is."""

    def begin(self, recipe: BuildRecipe, workers: int) -> None:
        """Start what takes long, while the corpus is looked at."""
        ...

    def call(self, function: Callable[[Any], Any], job: Any, workers: int) -> Any:
        """function(job), in a process that has the tokenizer loaded if the engine has one."""
        ...

    def run(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], workers: int
    ) -> Iterator[Any]:
        """function(job) for each job, in order; closing the iterator cancels what is waiting."""
        ...


def open_engine(name: str) -> Engine:
    """The engine that `--engine` names."""
    if name not in ENGINES:
        raise LongRecipeError(f"--engine {name} is unknown; choose one of {', '.join(ENGINES)}")
    return cast(Engine, import_module(f"lrdata.engines.{name}"))
