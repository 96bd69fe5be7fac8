"""Checkpoints of a stage: all that training needs to go on as if it had never stopped.

    RUN/checkpoints/extend-000040/
        rank-000-00001.safetensors ...  master weights, both moments, random state
        state.json                      stage, step, file names: written last

A checkpoint is what was true after `step` optimizer steps. It appears under its name when it is
whole and on the disk; older ones than the last `keep` go after that. Which rows come next follows
from the step alone (`lrtrain.loader`), whatever the number of processes. Each writes what it has,
some rows of every tensor, and says which in the file's metadata; each reads what it needs, of
whatever files: so any number of them goes on from what any other number wrote.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lrdata.atomic import fsync, write_json
from lrdata.errors import LongRecipeError, one_line, told_by_the_system
from lrtrain.distributed import ALONE, Ranks
from lrtrain.sharded import Rows

STATE = "state.json"
_FILE_BYTES = 2 * 1024**3
"""Tensors go through host memory a file at a time."""
_ROWS = "rows"
"""In a file's metadata: of tensors that are not whole, which rows they are."""

_NAME = re.compile(r"([a-z]+)-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the state after `step` steps of a stage."""

    folder: Path
    step: int

    def tensors(
        self, rows: Callable[[str], Rows | None] = lambda name: None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Its tensors by name, on the CPU, one at a time: the `rows` that are asked for of each, or
        all of it."""
        try:
            for name, pieces in self._pieces().items():
                yield name, _joined(pieces, name, rows(name))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
            if isinstance(problem, OSError) and problem.errno not in (None, errno.ENOENT):
                raise LongRecipeError(
                    f"{self.folder} cannot be read ({one_line(problem)}); mend that, and the same "
                    "command goes on from it"
                ) from None
            raise LongRecipeError(
                f"{self.folder} is damaged ({one_line(problem)}); remove it: the stage goes on "
                "from the checkpoint before it, or from its start where there is none"
            ) from None

    def _pieces(self) -> dict[str, list[tuple[Rows | None, Any]]]:
        """Name -> which rows of it are in which opened file; None: all."""
        state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        pieces = dict[str, list[tuple[Rows | None, Any]]]()
        for file in state["files"]:
            with open(self.folder / file, "rb"):  # safetensors calls any error a missing file
                opened = safe_open(self.folder / file, framework="pt")
            rows = json.loads((opened.metadata() or {}).get(_ROWS, "{}"))
            for name in opened.keys():  # noqa: SIM118
                known = tuple(rows[name]) if name in rows else None
                pieces.setdefault(name, []).append((known, opened))
        return pieces


def _joined(
    pieces: Sequence[tuple[Rows | None, Any]], name: str, asked: Rows | None
) -> torch.Tensor:
    """Some rows of a tensor, or all there are. Raises ValueError where not all are in the pieces,
    LongRecipeError where some of another number of rows are asked for."""
    known = [(rows, opened) for rows, opened in pieces if rows is not None]
    if asked is not None and asked[:2] == (0, asked[2]):
        asked = None
    if not known:
        opened = pieces[0][1]
        if asked is None:
            whole: torch.Tensor = opened.get_tensor(name)
            return whole
        there_are = opened.get_slice(name).get_shape()[0]
        known = [((0, there_are, there_are), opened)]
    count = known[0][0][2]
    if asked is not None and asked[2] != count:
        raise LongRecipeError(
            f"the checkpoint is of another model: it has {count} rows of {name}, not {asked[2]}; "
            "remove the run's folder checkpoints"
        )
    start, stop, _ = asked or (0, count, count)
    found, reached = list[torch.Tensor](), start
    for (first, last, _), opened in sorted(known, key=lambda piece: piece[0]):
        if first <= reached < min(last, stop):
            found.append(opened.get_slice(name)[reached - first : min(last, stop) - first])
            reached = min(last, stop)
    if reached < stop or any(rows[2] != count for rows, _ in known):
        raise ValueError(f"rows {reached} to {stop} of {name} are missing")
    return torch.cat(found) if found else known[0][1].get_slice(name)[:0]


class Checkpoints:
    """The checkpoints of one stage in a run folder, which all `ranks` reach under one path."""

    def __init__(self, run: Path, stage: str, keep: int, ranks: Ranks = ALONE) -> None:
        self.folder, self.stage, self.keep = run / "checkpoints", stage, keep
        self.ranks = ranks

    def all(self) -> list[Checkpoint]:
        """The whole ones, the last step last."""
        found = []
        for path in self.folder.glob(f"{self.stage}-*"):
            match = _NAME.fullmatch(path.name)
            if match and (path / STATE).exists():
                found.append(Checkpoint(path, int(match[2])))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def latest(self) -> Checkpoint | None:
        """The one to go on from, or None: the last that any rank sees. Raises LongRecipeError where
        another does not see it in time."""
        last = next(iter(self.all()[-1:]), None)
        step = max(self.ranks.exchange(-1 if last is None else last.step))
        if step < 0:
            return None
        folder = self._folder(step)
        self.ranks.see(folder / STATE)
        return Checkpoint(folder, step)

    def _folder(self, step: int) -> Path:
        return self.folder / f"{self.stage}-{step:06d}"

    def save(
        self,
        step: int,
        tensors: Iterable[tuple[str, torch.Tensor]],
        rows: Callable[[str], Rows | None] = lambda name: None,
    ) -> Checkpoint:
        """Write the state after `step` steps, then remove what is too old. All ranks do it at once,
        each with the `rows` that it has of a tensor; None: with all that it is."""
        final = self._folder(step)
        partial = final.with_name(f".{final.name}.partial")
        self.ranks.agree(lambda: self._begin(partial))
        try:
            own = self.ranks.agree(lambda: self._write(partial, tensors, rows))
            written = [name for names in self.ranks.exchange(own) for name in names]
            state = {"stage": self.stage, "step": step, "files": written}
            self.ranks.agree(lambda: self._complete(partial, final, state))
        except BaseException:
            if self.ranks.first:  # a disk that is full would stay so
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return Checkpoint(final, step)

    def _begin(self, partial: Path) -> None:
        if self.ranks.first:
            for died in self.folder.glob(f".{self.stage}-*.partial"):
                shutil.rmtree(died)
            partial.mkdir(parents=True)

    def _write(
        self,
        partial: Path,
        tensors: Iterable[tuple[str, torch.Tensor]],
        rows: Callable[[str], Rows | None],
    ) -> list[str]:
        """What this rank has; returns the names of the files."""
        partial.mkdir(parents=True, exist_ok=True)  # another host may not see it yet
        files = list[str]()
        for part in _parts(tensors):
            files.append(f"rank-{self.ranks.rank:03d}-{len(files) + 1:05d}.safetensors")
            known = {name: which for name in part if (which := rows(name)) is not None}
            _write_file(part, partial / files[-1], {_ROWS: json.dumps(known)} if known else None)
        return files

    def _complete(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        if not self.ranks.first:
            return
        missing = [name for name in state["files"] if not (partial / name).exists()]
        if missing:
            raise LongRecipeError(
                f"{missing[0]} of another rank is not in {partial}; --out must be a folder that "
                "all hosts share"
            )
        write_json(partial / STATE, state)
        shutil.rmtree(final, ignore_errors=True)  # of the same step, damaged
        partial.rename(final)
        fsync(self.folder)
        for old in self.all()[: -self.keep]:
            _remove(old.folder)

    def remove(self) -> None:
        """Remove all of them: the stage is done."""
        for path in [*self.folder.glob(f"{self.stage}-*"), *self.folder.glob(f".{self.stage}-*")]:
            _remove(path)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _write_file(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None
) -> None:
    """A safetensors file that is on the disk. Raises OSError where there is no room for it."""
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as problem:
        number = told_by_the_system(problem)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from None
    path.chmod(path.parent.stat().st_mode & 0o666)  # it has made the file for its owner alone
    fsync(path)


def _remove(folder: Path) -> None:
    """A checkpoint: first what says that it is whole, for who is killed meanwhile."""
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _parts(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """Tensors on the CPU, some gigabytes at a time."""
    part: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > _FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    if part:
        yield part


def random_state(rank: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """The state of torch's generators, as tensors of bytes."""
    yield f"random.cpu.{rank}", torch.get_rng_state()
    if torch.cuda.is_available():
        yield f"random.cuda.{rank}", torch.cuda.get_rng_state()


def set_random_state(name: str, state: torch.Tensor, rank: int = 0) -> None:
    """Set what `random_state` gave; that of another rank or device is passed over."""
    if name == f"random.cpu.{rank}":
        torch.set_rng_state(state)
    elif name == f"random.cuda.{rank}" and torch.cuda.is_available():
        torch.cuda.set_rng_state(state)
