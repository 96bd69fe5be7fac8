"""The cells that are measured so far, so that an evaluation that was stopped goes on.

OUT/cells.jsonl has a line of what was asked for, a line for each model that was loaded, and one for
each cell, which is on the disk before the next is begun. What is asked again, of more models
perhaps, is taken from there: a model is the same one while its weights, tokenizer and RoPE are.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lrdata.atomic import locked, write_text
from lrdata.errors import LongRecipeError
from lrdata.recipe import differences
from lrtrain.evaluation.models import OpenModel
from lrtrain.evaluation.report import JSON_NAME, ModelEntry
from lrtrain.evaluation.suite import Cell, Suite

CELLS_NAME = "cells.jsonl"


class Finished:
    """What OUT/cells.jsonl holds, and what is added to it. Use through `finished_cells`."""

    def __init__(
        self, path: Path, base: OpenModel, suites: Sequence[Suite], lines: list[dict[str, Any]]
    ) -> None:
        self._path, self._base, self._base_name = path, base.key, base.name
        self._kinds: dict[str, Any] = {suite.name: suite.kind for suite in suites}
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
            found.append(self._kinds[suite.name](**_tuples(line["cell"]) | names))
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
        self._write({"key": opened.key, "model": asdict(entry)})

    def entry(self, opened: OpenModel) -> ModelEntry:
        """The same, with the name and path that it has now, and the seconds of all its cells."""
        own = [line["seconds"] for line in self._lines.values() if line["key"] == opened.key]
        said, spec = ModelEntry(**self._entries[opened.key]), opened.spec
        return replace(said, name=spec.name, path=spec.path, seconds=round(sum(own), 3))

    def _keep(self, line: dict[str, Any]) -> None:
        self._lines[line["key"], line["base"], line["suite"], line["index"]] = line

    def _write(self, line: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return {name: _tuples(one) for name, one in value.items()} if isinstance(value, dict) else value


@contextmanager
def finished_cells(
    out: Path, asked: dict[str, Any], base: OpenModel, suites: Sequence[Suite], *, overwrite: bool
) -> Iterator[Finished]:
    """What was measured of what is `asked`, for this process alone; `overwrite`: nothing.

    Raises LongRecipeError while another evaluation is, or is made, in `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / CELLS_NAME
    with locked(out, out):
        lines = [] if overwrite else _read(path)
        if not any("cell" in line for line in lines):
            lines = [{"asked": json.loads(json.dumps(asked))}]
            if (out / JSON_NAME).exists() and not overwrite:
                raise _another(out, f"without {CELLS_NAME}")
        if found := differences(lines[0]["asked"], json.loads(json.dumps(asked))):
            raise _another(out, found[0])
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        yield Finished(path, base, suites, lines)


def _another(out: Path, what: str) -> LongRecipeError:
    return LongRecipeError(
        f"{out} holds another evaluation ({what}); choose another --out, or --overwrite"
    )


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run, but for what a kill cut."""
    lines = list[dict[str, Any]]()
    with suppress(FileNotFoundError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                lines.append(json.loads(line))
    return lines
