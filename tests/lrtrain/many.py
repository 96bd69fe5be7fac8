"""Several ranks on this machine, each a process forked from this one, as torchrun would start them.

Forked, because torch is loaded here already, with all that ranks need of it. They end as commands
do: with an exit code, and a line of what went wrong.
"""

import gc
import json
import multiprocessing
import os
import pickle
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed.device_mesh
import torch.distributed.fsdp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lrtrain.stages
from lrdata.building import build
from lrdata.dataset import open_dataset
from lrdata.errors import describe
from lrdata.recipe import BuildRecipe
from lrtrain.metrics import METRICS, read_metrics
from lrtrain.model import copy_tokenizer
from lrtrain.model_files import SINGLE
from lrtrain.opening import FOLDERS
from lrtrain.recipe import TrainRecipe
from lrtrain.stages import run
from tests.conftest import generated_text
from tests.lrtrain.tiny_models import save_tiny
from tests.lrtrain.tiny_runs import save_tiny_model

SECONDS_TO_FINISH = 240
"""Ranks that take longer hang."""


@dataclass(frozen=True)
class Ended:
    """A rank's end: what it returned, its exit code, what it said, and where it raised what."""

    result: Any
    code: int
    said: str
    trace: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


class Ranks:
    """Started ranks; `work` is called in each of them."""

    def __init__(self, size: int, work: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("fork")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        self.processes, self._pipes = [], []
        for rank in range(size):
            reading, writing = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank, args=(rank, size, port, writing, work, arguments), daemon=True
            )
            process.start()
            writing.close()
            self.processes.append(process)
            self._pipes.append(reading)

    def end(self, seconds: float = SECONDS_TO_FINISH, but: Collection[int] = ()) -> list[Ended]:
        """Wait for all of them `but` some, which are killed then, and left out of what is returned.

        Raises AssertionError when one hangs.
        """
        until = time.monotonic() + seconds
        found = list[Ended]()
        try:
            for rank, (process, pipe) in enumerate(zip(self.processes, self._pipes, strict=True)):
                if rank in but:
                    continue
                said: tuple[Any, str, str] = (None, "", "")
                assert pipe.poll(max(0.1, until - time.monotonic())), f"rank {rank} hangs"
                with suppress(EOFError):  # it was killed
                    said = pickle.loads(pipe.recv_bytes())
                process.join(max(0.1, until - time.monotonic()))
                assert process.exitcode is not None, f"rank {rank} does not end"
                result, text, trace = said
                found.append(Ended(result, process.exitcode, text, trace))
        finally:
            for process in self.processes:
                process.kill()
                process.join()
        return found


def on_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work` gives on each rank; all must come to a good end."""
    ended = Ranks(size, work, *arguments).end()
    assert [one.code for one in ended] == [0] * size, [one.trace or one.said for one in ended]
    return [one.result for one in ended]


def _rank(
    rank: int, size: int, port: int, pipe: Any, work: Callable[..., Any], arguments: Any
) -> None:
    gc.freeze()  # what was there before is not looked through: a stage collects garbage
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    said, code, result, trace = StringIO(), 1, None, ""
    with redirect_stderr(said), redirect_stdout(said):
        try:
            result, code = work(*arguments), 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except BaseException as problem:
            code = 130 if isinstance(problem, KeyboardInterrupt) else 1
            trace = traceback.format_exc()
            click.echo(f"error: {describe(problem)}")
    pipe.send_bytes(pickle.dumps((result, said.getvalue(), trace)))
    pipe.close()
    sys.stdout.flush()
    os._exit(code)


# Runs


@dataclass(frozen=True)
class Inputs:
    """What runs are made of."""

    shards: Path
    tokenizer: Path
    model: Path


def build_inputs(tokenizer: Path, root: Path) -> Inputs:
    """Rows with gaps, replay rows of up to 15 documents, and a tiny model. Rows are of 147 tokens
    at most: no number of ranks divides them, and where they are split they are filled up."""
    draw = random.Random(0)
    root.mkdir(parents=True, exist_ok=True)
    texts = [{"text": "".join(generated_text(30, seed))} for seed in range(12)]
    (root / "long.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))

    def words(seed: int, most: int) -> str:
        return " ".join("".join(generated_text(1, seed)).split()[: draw.randint(1, most)])

    pairs = [{"prompt": words(seed, 12), "text": words(seed + 1, 30)} for seed in range(200, 500)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    recipe = BuildRecipe(
        corpora=(str(root / "long.jsonl"),),
        tokenizer=str(tokenizer),
        target_len=500,
        train_len=147,
        segment_tokens=24,
        holdout=0.3,
        replay=(str(root / "pairs.jsonl"),),
        replay_ratio=0.9,
        prompt_field="prompt",
        response_field="text",
    )
    build(recipe, root / "shards", workers=1)
    open_dataset(root / "shards").read_row("extend", 0)  # loads what reading takes, for all ranks
    return Inputs(root / "shards", tokenizer, save_tiny_model(tokenizer, root / "tiny"))


def with_model(inputs: Inputs, family: str, folder: Path, **changes: Any) -> Inputs:
    """With another model, every parameter of which is random, biases and norms too."""
    model = AutoModelForCausalLM.from_pretrained(
        save_tiny(family, folder, vocab_size=1008, max_position_embeddings=128, **changes)
    )
    for name, parameter in model.named_parameters():  # less at random: fp32 is exact then
        mean = 1 if "norm" in name else 0
        parameter.data = mean + (parameter.data - mean) / 2
    model.save_pretrained(folder)
    copy_tokenizer(str(inputs.tokenizer), folder, 128)
    return replace(inputs, model=folder)


def train(inputs: Inputs, out: Path, recipe: TrainRecipe) -> None:
    """What a rank does; no figures are drawn, which takes a second, and a merge has the one thread
    that is left after a fork."""
    lrtrain.stages.plot_run = lambda *_: True
    lrtrain.stages.usable_cpus = lambda: 1
    run(inputs.shards, str(inputs.model), out, recipe, click.echo)


@dataclass(frozen=True)
class Differences:
    """The largest ones of two runs, as shares: of what the metrics say, and of how far from the
    base each model is."""

    loss: float
    grad_norm: float
    holdout_loss: float
    weights: float

    def within(self, losses: float, weights: float) -> bool:
        """A gradient is less exact than a loss."""
        loss = max(self.loss, self.holdout_loss, self.grad_norm / 5)
        return loss <= losses and self.weights <= weights


def differences(inputs: Inputs, out: Path, whole: Path, after: int = 0) -> Differences:
    """Of two runs of the same steps, which saw as many tokens at the same rates in each. after: so
    many lines of the metrics are left out."""
    lines, expected = (read_metrics(folder / METRICS)[after:] for folder in (out, whole))
    for name in ("stage", "step", "lr", "tokens"):
        assert [line[name] for line in lines] == [line[name] for line in expected], name
    assert [line.keys() for line in lines] == [line.keys() for line in expected]

    def largest(name: str) -> float:
        pairs = zip(lines, expected, strict=True)
        return max(
            (abs(a[name] - b[name]) / abs(b[name]) for a, b in pairs if name in b), default=0.0
        )

    before, weights = load_file(inputs.model / SINGLE), 0.0
    for name in FOLDERS.values():
        assert (out / name).exists() == (whole / name).exists()
        if (whole / name).exists():
            one, other = (load_file(folder / name / SINGLE) for folder in (out, whole))
            assert one.keys() == other.keys()
            weights = max(weights, _distance(one, other) / _distance(before, other))
    return Differences(largest("loss"), largest("grad_norm"), largest("holdout_loss"), weights)


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return (
        sum(float((one[key].double() - other[key].double()).square().sum()) for key in other) ** 0.5
    )
