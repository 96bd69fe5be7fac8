"""Engines schedule units; they never look inside them, and change no byte.

An engine is a module with `begin(recipe, workers)`, called early, and `crew(workers)`, a context
with the workers that `run` the units.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Protocol, cast

from lrdata.errors import LongRecipeError
from lrdata.recipe import BuildRecipe

ENGINES = ("local", "ray")


class Crew(Protocol):
    """Workers, until their context ends."""

    def call(self, function: Callable[[Any], Any], job: Any) -> Any:
        """function(job), in a process that has the tokenizer loaded if there is one."""
        ...

    def run(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """function(job) for each job, in their order. Closing the iterator cancels what is waiting,
        and waits for what is at work."""
        ...


class Engine(Protocol):
    """What every engine is."""

    def begin(self, recipe: BuildRecipe, workers: int) -> None:
        """Start what takes long, before anything else is done. May be called again."""
        ...

    def crew(self, workers: int) -> AbstractContextManager[Crew]:
        """Up to so many workers at a time."""
        ...


def open_engine(name: str) -> Engine:
    """The engine that `--engine` names."""
    if name not in ENGINES:
        raise LongRecipeError(f"--engine {name} is unknown; choose one of {', '.join(ENGINES)}")
    return cast(Engine, import_module(f"lrdata.engines.{name}"))
