"""The cells that are measured so far, so that an evaluation that was stopped goes on.

OUT/cells.jsonl has a line of what was asked for, a line for each model that was loaded, and one for
each cell, which is on the disk before the next is begun. What is asked again, of more models
perhaps, is taken from there: a model is the same one while its weights, tokenizer and RoPE are, and
the code that measures it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lrdata.atomic import locked, write_text
from lrdata.errors import LongRecipeError, one_line
from lrdata.recipe import differences
from lrtrain.evaluation.models import OpenModel
from lrtrain.evaluation.report import JSON_NAME, ModelEntry
from lrtrain.evaluation.suite import Cell, Suite

CELLS_NAME = "cells.jsonl"
_OF_MODELS = ("base", "dtype", "device")
"""Settings by which evaluations do not differ: each model's own key tells what it is and reads
with, and what was compared with another one is told from it by itself."""


class Finished:
    """What OUT/cells.jsonl holds, and what is added to it. Use through `finished_cells`."""

    def __init__(
        self, path: Path, asked: dict[str, Any], base: OpenModel, lines: list[dict[str, Any]]
    ) -> None:
        """lines: what the file holds of what is `asked`; none: it is begun with the first cell."""
        self._path, self._begun = path, bool(lines)
        self._first: list[dict[str, Any]] = [{"asked": asked}]
        self._base, self._base_name = base.key, base.name
        self._entries = {line["key"]: line["model"] for line in lines if "model" in line}
        self._lines = dict[tuple[str, str | None, str, int], dict[str, Any]]()
        for line in lines:
            if "cell" in line:
                self._keep(line)

    def cells(self, opened: OpenModel, suite: Suite) -> list[Cell]:
        """Those of a model, up to the first that is not there."""
        found, base = list[Cell](), self._base if suite.compares else None
        names = {"model": opened.name} | ({"base": self._base_name} if suite.compares else {})
        while line := self._lines.get((opened.key, base, suite.name, len(found))):
            kind: Any = suite.kind
            found.append(kind(**_tuples(line["cell"]) | names))
        return found

    def add(self, opened: OpenModel, suite: Suite, index: int, cell: Any, seconds: float) -> None:
        """A cell, and how long it took."""
        line = {
            "key": opened.key,
            "base": self._base if suite.compares else None,
            "suite": suite.name,
            "index": index,
            "seconds": round(seconds, 3),
            "cell": asdict(cell),
        }
        self._keep(line)
        self._write(line)

    def add_entry(self, opened: OpenModel, entry: ModelEntry) -> None:
        """What is to be said of a model that was loaded."""
        self._entries[opened.key] = asdict(entry)
        line = {"key": opened.key, "model": asdict(entry)}
        if self._begun:
            self._write(line)
        else:
            self._first.append(line)

    def entry(self, opened: OpenModel) -> ModelEntry:
        """The same, with the name and path that it has now, and the seconds of all its cells."""
        own = [
            line["seconds"]
            for line in self._lines.values()
            if line["key"] == opened.key and line["base"] in (None, self._base)
        ]
        said, spec = ModelEntry(**self._entries[opened.key]), opened.spec
        return replace(said, name=spec.name, path=spec.path, seconds=round(sum(own), 3))

    def _keep(self, line: dict[str, Any]) -> None:
        self._lines[line["key"], line["base"], line["suite"], line["index"]] = line

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, allow_nan=False)
        if not self._begun:  # another evaluation is there until now
            write_text(self._path, "".join(json.dumps(one) + "\n" for one in self._first))
            self._begun = True
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {name: _tuples(one) for name, one in value.items()} if isinstance(value, dict) else value


@contextmanager
def finished_cells(
    out: Path, asked: dict[str, Any], base: OpenModel, *, overwrite: bool
) -> Iterator[Finished]:
    """What was measured of what is `asked`, for this process alone; `overwrite`: nothing.

    Raises LongRecipeError while another evaluation is, or is made, in `out`; and for a file that is
    damaged. What is there to be overwritten stays until there is something new.
    """
    out.mkdir(parents=True, exist_ok=True)
    asked = {name: said for name, said in asked.items() if name not in _OF_MODELS}
    path, asked = out / CELLS_NAME, json.loads(json.dumps(asked))
    with locked(out, out):
        path.touch()  # where nothing can be written: say so at once
        lines = [] if overwrite else _read(path)
        before = lines[0].get("asked", {}) if lines else {}
        before = {name: said for name, said in before.items() if name not in _OF_MODELS}
        found = differences(before, asked) if lines else []
        if found and not any("cell" in line for line in lines):
            lines, found = [], []
        if not lines and (out / JSON_NAME).exists() and not overwrite:
            found = [f"whose cells are not in {CELLS_NAME}"]
        if found:
            raise LongRecipeError(
                f"{out} holds another evaluation ({found[0]}); choose another --out, or --overwrite"
            )
        yield Finished(path, asked, base, lines)


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run; the last one, if a kill cut it, is taken away."""
    *whole, cut = path.read_bytes().split(b"\n")
    if cut:
        os.truncate(path, path.stat().st_size - len(cut))
    try:
        return [json.loads(line, parse_constant=_no_number) for line in whole]
    except ValueError as problem:
        raise LongRecipeError(
            f"{path} is damaged ({one_line(problem)}); choose another --out, or --overwrite"
        ) from None


def _no_number(name: str) -> None:
    """NaN and infinity are no outcome: an earlier version kept them."""
    raise ValueError(f"it holds {name}")
