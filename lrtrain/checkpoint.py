"""Checkpoints of a stage: all that training needs to go on as if it had never stopped.

    RUN/checkpoints/extend-000040/
        tensors-00001.safetensors ...   master weights, both moments, random state
        state.json                      stage, step, file names: written last

A checkpoint is what was true after `step` optimizer steps. It appears under its name when it is
whole and on the disk; older ones than the last `keep` go after that. Which rows come next follows
from the step alone (`lrtrain.loader`), whatever the number of processes.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lrdata.atomic import fsync, write_json
from lrdata.errors import LongRecipeError, one_line

STATE = "state.json"
_FILE_BYTES = 2 * 1024**3
"""Tensors go through host memory a file at a time."""

_NAME = re.compile(r"([a-z]+)-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the state after `step` steps of a stage."""

    folder: Path
    step: int

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Its tensors by name, on the CPU, a file at a time."""
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            for name in state["files"]:
                yield from load_file(self.folder / name).items()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as problem:
            raise LongRecipeError(
                f"{self.folder} is damaged ({one_line(problem)}); remove it: the stage goes on "
                "from the checkpoint before it, or from its start where there is none"
            ) from None


class Checkpoints:
    """The checkpoints of one stage in a run folder."""

    def __init__(self, run: Path, stage: str, keep: int) -> None:
        self.folder, self.stage, self.keep = run / "checkpoints", stage, keep

    def all(self) -> list[Checkpoint]:
        """The whole ones, the last step last."""
        found = []
        for path in self.folder.glob(f"{self.stage}-*"):
            match = _NAME.fullmatch(path.name)
            if match and (path / STATE).exists():
                found.append(Checkpoint(path, int(match[2])))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def latest(self) -> Checkpoint | None:
        """The one to go on from, or None."""
        return next(iter(self.all()[-1:]), None)

    def save(self, step: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> Checkpoint:
        """Write the state after `step` steps, then remove what is too old."""
        final = self.folder / f"{self.stage}-{step:06d}"
        partial = final.with_name(f".{final.name}.partial")
        for died in self.folder.glob(f".{self.stage}-*.partial"):
            shutil.rmtree(died)
        partial.mkdir(parents=True)
        files = list[str]()
        for part in _parts(tensors):
            files.append(f"tensors-{len(files) + 1:05d}.safetensors")
            save_file(part, partial / files[-1])
            fsync(partial / files[-1])
        write_json(partial / STATE, {"stage": self.stage, "step": step, "files": files})
        shutil.rmtree(final, ignore_errors=True)  # of the same step, damaged
        partial.rename(final)
        fsync(self.folder)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old.folder)
        return Checkpoint(final, step)

    def remove(self) -> None:
        """Remove all of them: the stage is done."""
        for path in [*self.folder.glob(f"{self.stage}-*"), *self.folder.glob(f".{self.stage}-*")]:
            shutil.rmtree(path)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()


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


def random_state() -> Iterator[tuple[str, torch.Tensor]]:
    """The state of torch's generators, as tensors of bytes."""
    yield "random.cpu", torch.get_rng_state()
    if torch.cuda.is_available():
        yield "random.cuda", torch.cuda.get_rng_state()


def set_random_state(name: str, state: torch.Tensor) -> None:
    """Set what `random_state` gave; a generator that is not here is passed over."""
    if name == "random.cpu":
        torch.set_rng_state(state)
    elif torch.cuda.is_available():
        torch.cuda.set_rng_state(state)
