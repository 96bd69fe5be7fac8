"""A command without options does what its function does without arguments, and its recipe."""

import inspect
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lrdata.cli import main as lrdata
from lrdata.errors import LongRecipeError
from lrtrain.cli import main as lrtrain
from lrtrain.evaluation import NeedleTemplate

NEEDED = ["--tokenizer", "t", "--target-len", "1k"]
NOT_COMPARED = {
    "build": {"timing"},  # what takes the result, for --profile
    "run": {"say"},
    "score": {"say"},
}
STANDS_FOR = {"needle": NeedleTemplate()}
"""Of arguments whose default is None."""


@pytest.mark.parametrize(
    ("main", "words", "function"),
    [
        (lrdata, ["build", "corpus", *NEEDED, "--out", "out"], "lrdata.building.build"),
        (lrdata, ["plan", "corpus", *NEEDED], "lrdata.plan.make_plan"),
        (lrdata, ["rebuild", "shards", "--out", "out"], "lrdata.rebuilding.rebuild"),
        (lrtrain, ["run", "shards", "--model", "m", "--out", "out"], "lrtrain.stages.run"),
        (lrtrain, ["plan", "shards", "--model", "m"], "lrtrain.plan.make_plan"),
        (lrtrain, ["doctor", "shards", "--model", "m"], "lrtrain.doctor.examine"),
        (lrtrain, ["eval", "m"], "lrtrain.evaluation.evaluate"),
        (lrtrain, ["score", "corpus", "--model", "m", "--out", "out"], "lrtrain.scoring.score"),
        (lrtrain, ["merge", "base", "tuned", "--out", "out"], "lrtrain.merge.merge_models"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_defaults_of_commands_are_those_of_the_library(
    main: click.Group, words: list[str], function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _, name = function.rpartition(".")
    signature = inspect.signature(getattr(import_module(home), name))
    given: dict[str, Any] = {}

    def take(*arguments: Any, **options: Any) -> None:
        given.update(signature.bind(*arguments, **options).arguments)
        raise LongRecipeError("enough")  # an interrupt would end a process with other threads

    monkeypatch.setattr(f"{home}.{name}", take)
    monkeypatch.setattr(
        "lrdata.engines.open_engine", lambda _: SimpleNamespace(begin=lambda *_: None)
    )
    CliRunner().invoke(main, words)
    command = main.commands[words[0]]
    shared = {str(parameter.name) for parameter in command.params} & set(signature.parameters)
    assert shared <= set(given)
    for name in set(given) - NOT_COMPARED.get(words[0], set()):
        default = signature.parameters[name].default
        if name == "recipe":
            assert given[name] == _with_defaults(given[name])
        elif default is not inspect.Parameter.empty:
            expected = STANDS_FOR.get(name, default)
            assert _plain(given[name]) == _plain(expected), name


def _with_defaults(recipe: Any) -> Any:
    """The same of which only what it needs was said."""
    assert is_dataclass(recipe)
    needed = [
        known.name
        for known in fields(recipe)
        if known.default is MISSING and known.default_factory is MISSING
    ]
    return type(recipe)(**{name: getattr(recipe, name) for name in needed})


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return tuple(value) if isinstance(value, list) else value
