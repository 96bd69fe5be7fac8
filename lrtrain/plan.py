"""`lrtrain plan`: what a run takes before it is paid for: memory on the device, time a step.

    print_plan(make_plan(Path("shards"), "./llama3-8b", TrainRecipe(), memory=80 * 10**9))

Memory is found with `lrtrain.memory`, time from the operations of `lrtrain.flops` at a stated share
of the device's peak.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrdata.errors import LongRecipeError
from lrdata.progress import duration, progress
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
_PROCESS_BYTES = 3 * 10**9
"""Of host memory, for a process with torch and CUDA."""
_RESERVE = 0.05
"""Share of a device's memory that kernels and the allocator are left."""
_MLP_TOKENS = 8192
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
    None. available, host_available: bytes of the device and of the host, or None.
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
    host_available: int | None

    def fits(self, way: Way) -> bool | None:
        """Whether a way fits the machine; None where its memory is not known."""
        return _fits(way.memory, self.available, self.host_available)

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
    host_memory: int | None = None,
    device_name: str | None = None,
) -> Plan:
    """Plan the extend stage of a run on a GPU, or on a CPU where the recipe says so.

    memory, device_name: of the device, host_memory: beside it; else those of the GPU that is here.
    Ways end with the first that fits. Raises LongRecipeError.
    """
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
        host_memory = host_memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    per_step = min(recipe.rows_per_step, rows)
    joined = max(1, recipe.micro_tokens // shards.train_len)
    ways = list[Way]()
    options = list(_ways(recipe))
    with progress("planning", len(options) + 1) as task:
        for name, one in options:
            ways.append(_way(name, config, one, [shards.train_len] * joined))
            task.advance(note=name)
            if _fits(ways[-1].memory, memory, host_memory):
                break
        last = ways[-1]
        whole = replace(last.recipe, checkpointing=True)
        name = last.name if last.recipe == whole else "--checkpointing"
        full_length = _way(f"full length, {name}", config, whole, [shards.target_len])
    lengths = ([shards.train_len] * per_step, [shards.target_len] * per_step)
    return Plan(
        model=model,
        parameters=ways[0].memory.parameters // TORCH_DTYPES[recipe.dtype].itemsize,
        rows_per_step=per_step,
        train_len=shards.train_len,
        target_len=shards.target_len,
        steps=recipe.steps or -(-rows // per_step),
        ways=ways,
        full_length=full_length,
        flops=training_flops(config, lengths[0]),
        full_flops=training_flops(config, lengths[1]),
        all_pairs=(
            training_flops(config, lengths[0], causal=False),
            training_flops(config, lengths[1], causal=False),
        ),
        device=device_name or "no GPU here",
        peak=peak_flops(device_name) if device_name else None,
        available=memory,
        host_available=host_memory,
    )


def _ways(recipe: TrainRecipe) -> Iterator[tuple[str, TrainRecipe]]:
    """The recipe as it is, and with one more option each that saves memory."""
    yield "as asked for", recipe
    options = list[str]()
    for option, changes in (
        ("--checkpointing", {"checkpointing": True}),
        ("--dtype bf16", {"dtype": "bf16"}),
        ("--moments 8bit", {"moments": "8bit"}),
        ("--offload optimizer", {"offload": ("optimizer",)}),
        ("--offload optimizer,activations", {"offload": ("optimizer", "activations")}),
        (f"--mlp-tokens {_MLP_TOKENS}", {"mlp_tokens": _MLP_TOKENS}),
        ("--gradients bf16", {"gradients": "bf16"}),
        ("--masters none", {"masters": "none"}),
        (f"--chunk-tokens {_SMALL_CHUNK}", {"chunk_tokens": _SMALL_CHUNK}),
    ):
        changed: TrainRecipe = replace(recipe, **changes)
        if changed == recipe or not _saves(changed, recipe):
            continue
        if option.startswith("--offload") and options and options[-1].startswith("--offload"):
            options.pop()  # one list of what is offloaded
        options.append(option)
        recipe = changed
        yield " ".join(options), recipe


def _saves(changed: TrainRecipe, recipe: TrainRecipe) -> bool:
    """Whether a changed recipe asks for less memory than the one that the user gave."""
    if recipe.device == "cpu" and changed.offload != recipe.offload:
        return False  # host memory is all there is
    whole = 10**9
    return (
        changed.chunk_tokens <= recipe.chunk_tokens
        and (changed.mlp_tokens or whole) <= (recipe.mlp_tokens or whole)
        and set(changed.offload) >= set(recipe.offload)
    )


def _fits(memory: StepMemory, available: int | None, host: int | None) -> bool | None:
    if available is None:
        return None
    on_host = host is None or memory.host + _PROCESS_BYTES <= host
    return on_host and memory.total <= available * (1 - _RESERVE)


def _way(name: str, config: Any, recipe: TrainRecipe, seq_lengths: list[int]) -> Way:
    memory = step_memory(
        config,
        seq_lengths,
        dtype=TORCH_DTYPES[recipe.dtype],
        chunk_tokens=recipe.chunk_tokens,
        storage=recipe.storage,
        activations=recipe.activations,
        on_gpu=recipe.device != "cpu",
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
    columns = (
        *("tokens", "parameters", "masters", "moments", "gradients", "working"),
        *("together", "host", "fits"),
    )
    for name in columns:
        table.add_column(name, justify="right")
    for way in (*plan.ways, plan.full_length):
        memory, fits = way.memory, plan.fits(way)
        sizes = (
            *(memory.parameters, memory.masters, memory.moments, memory.gradients),
            *(memory.working, memory.total, memory.host),
        )
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
    room = f"{plan.available / 1e9:,.0f} GB, {_RESERVE:.0%} of it left free"
    if plan.host_available is not None:
        room += f", and {plan.host_available / 1e9:,.0f} GB of host memory"
    for way in plan.ways:
        if plan.fits(way):
            change = "" if way is plan.ways[0] else f" with {way.name}"
            return f"it fits{change} ({room})"
    return f"nothing here fits {room}: a smaller model, or shorter rows (lrdata build --train-len)"
