"""`lrtrain plan`: what a run takes before it is paid for: memory on the device, time a step.

    print_plan(make_plan(Path("shards"), "./llama3-8b", TrainRecipe(), memory=80 * 10**9))

Memory is found with `lrtrain.memory`, time from the operations of `lrtrain.flops` at a stated share
of the device's peak.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrdata.errors import LongRecipeError
from lrdata.progress import duration
from lrdata.shards import open_shards
from lrdata.sizes import format_bytes
from lrtrain.flops import PEAK_TFLOPS, peak_flops, training_flops
from lrtrain.memory import StepMemory, step_memory
from lrtrain.model import TORCH_DTYPES, check_architecture, load_config
from lrtrain.recipe import TrainRecipe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ASSUMED_MFU = 0.4
_RESERVE = 0.05
"""Share of a device's memory that kernels and the allocator are left."""
_SMALL_CHUNK = 256


@dataclass(frozen=True)
class Way:
    """A recipe with the memory that its step takes. `tokens`: of a micro-batch."""

    name: str
    recipe: TrainRecipe
    tokens: int
    memory: StepMemory


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    flops: of a step, causal attention counted once; full_flops: of as many windows at full length;
    and the same with all pairs of attention counted. peak: operations a second of the device, or
    None. available: bytes of the device, or None.
    """

    model: str
    parameters: int
    rows_per_step: int
    train_len: int
    target_len: int
    steps: int
    ways: list[Way]
    full_length: Way
    flops: float
    full_flops: float
    all_pairs: tuple[float, float]
    device: str
    peak: float | None
    available: int | None

    def fits(self, way: Way) -> bool | None:
        """Whether a way fits the device; None where its memory is not known."""
        if self.available is None:
            return None
        return way.memory.total <= self.available * (1 - _RESERVE)

    @property
    def seconds(self) -> float | None:
        """Of a step, at ASSUMED_MFU."""
        return None if self.peak is None else self.flops / (self.peak * ASSUMED_MFU)


def make_plan(
    folder: Path,
    model: str,
    recipe: TrainRecipe,
    *,
    memory: int | None = None,
    device_name: str | None = None,
) -> Plan:
    """Plan the extend stage of a run. memory, device_name: of the device, else those of the one
    that is here. Raises LongRecipeError."""
    shards = open_shards(folder)
    rows = shards.rows("extend")
    if not rows:
        raise LongRecipeError(f"{folder} holds no extend rows; build it again")
    config = load_config(model)
    check_architecture(config, model)
    if device_name is not None and peak_flops(device_name) is None:
        raise LongRecipeError(
            f"--gpu {device_name} is not known; known are {', '.join(PEAK_TFLOPS)}"
        )
    if device_name is None and torch.cuda.is_available():
        device_name = torch.cuda.get_device_name()
        memory = memory or torch.cuda.get_device_properties(0).total_memory
    per_step = min(recipe.rows_per_step, rows)
    joined = max(1, recipe.micro_tokens // shards.train_len)
    ways = [_way(name, config, one, [shards.train_len] * joined) for name, one in _ways(recipe)]
    whole = replace(recipe, checkpointing=True)
    lengths = ([shards.train_len] * per_step, [shards.target_len] * per_step)
    return Plan(
        model=model,
        parameters=ways[0].memory.moments // 8,
        rows_per_step=per_step,
        train_len=shards.train_len,
        target_len=shards.target_len,
        steps=recipe.steps or -(-rows // per_step),
        ways=ways,
        full_length=_way("full length, --checkpointing", config, whole, [shards.target_len]),
        flops=training_flops(config, lengths[0]),
        full_flops=training_flops(config, lengths[1]),
        all_pairs=(
            training_flops(config, lengths[0], causal=False),
            training_flops(config, lengths[1], causal=False),
        ),
        device=device_name or "no GPU here",
        peak=peak_flops(device_name) if device_name else None,
        available=memory,
    )


def _ways(recipe: TrainRecipe) -> Iterator[tuple[str, TrainRecipe]]:
    """The recipe as it is, and with one more option each that saves memory."""
    yield "as asked for", recipe
    options = []
    for option, changes in (
        ("--checkpointing", {"checkpointing": True}),
        ("--dtype bf16", {"dtype": "bf16"}),
        (f"--chunk-tokens {_SMALL_CHUNK}", {"chunk_tokens": _SMALL_CHUNK}),
    ):
        changed: TrainRecipe = replace(recipe, **changes)
        if changed != recipe and changed.chunk_tokens <= recipe.chunk_tokens:
            options.append(option)
            recipe = changed
            yield " ".join(options), recipe


def _way(name: str, config: Any, recipe: TrainRecipe, seq_lengths: list[int]) -> Way:
    memory = step_memory(
        config,
        seq_lengths,
        dtype=TORCH_DTYPES[recipe.dtype],
        checkpointing=recipe.checkpointing,
        chunk_tokens=recipe.chunk_tokens,
    )
    return Way(name, recipe, sum(seq_lengths), memory)


def print_plan(plan: Plan, console: "Console | None" = None) -> None:
    """The memory table, the time, and what to add."""
    from rich.console import Console

    console = console or Console()
    console.print(_memory_table(plan))
    ratio = plan.flops / plan.full_flops
    pairs = plan.all_pairs[0] / plan.all_pairs[1]
    console.print(
        f"a step: {plan.rows_per_step} rows of {plan.train_len:,} tokens, "
        f"{plan.flops / 1e12:,.1f} TFLOP; {ratio:.3f} of full length with causal attention counted "
        f"once, {pairs:.3f} with all pairs"
    )
    if plan.seconds is not None:
        console.print(
            f"about {duration(plan.seconds)} a step at {ASSUMED_MFU:.0%} of {plan.device}'s peak "
            f"({plan.peak / 1e12:,.0f} TFLOP/s), {duration(plan.seconds * plan.steps)} for "  # type: ignore[operator]
            f"{plan.steps:,} steps; full length: {duration(plan.seconds * plan.steps / ratio)}"
        )
    console.print(_advice(plan))


def _memory_table(plan: Plan) -> "Table":
    from rich.table import Table

    table = Table(
        title=f"{plan.model}: {plan.parameters / 1e6:,.0f} million parameters, bytes on the device"
    )
    table.add_column("", overflow="fold")
    for name in ("tokens", "parameters", "masters", "moments", "working", "together", "fits"):
        table.add_column(name, justify="right")
    for way in (*plan.ways, plan.full_length):
        memory, fits = way.memory, plan.fits(way)
        sizes = (memory.parameters, memory.masters, memory.moments, memory.working, memory.total)
        table.add_row(
            way.name,
            f"{way.tokens:,}",
            *(format_bytes(size) if size else "" for size in sizes),
            "" if fits is None else "yes" if fits else "no",
        )
    return table


def _advice(plan: Plan) -> str:
    if plan.available is None:
        return "whether it fits: name the device's memory with --gpu-memory 80GB"
    room = f"{plan.available / 2**30:,.0f} GiB, {_RESERVE:.0%} of it left free"
    for way in plan.ways:
        if plan.fits(way):
            change = "" if way is plan.ways[0] else f" with {way.name}"
            return f"it fits{change} ({room})"
    return f"nothing here fits {room}: a smaller model, or shorter rows (lrdata build --train-len)"
