"""`lrtrain plan`: what a run takes before it is paid for: memory on the device, time a step.

    print_plan(make_plan(Path("shards"), "./llama3-8b", TrainRecipe(), memory=80 * 10**9))

Memory is found with `lrtrain.memory`, time from the operations of `lrtrain.flops` at a stated share
of the device's peak.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.progress import duration, progress
from lrdata.shards import Shards
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
_CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_RESERVE = 0.05
"""Share of a device's memory that kernels and the allocator are left."""
_MLP_TOKENS = 8192
_SMALL_CHUNK = 256
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--checkpointing", {"checkpointing": True}),
    ("--dtype bf16", {"dtype": "bf16"}),
    ("--moments 8bit", {"moments": "8bit"}),
    ("--offload optimizer", {"offload": ("optimizer",)}),
    ("--offload optimizer,activations", {"offload": ("optimizer", "activations")}),
    (f"--mlp-tokens {_MLP_TOKENS}", {"mlp_tokens": _MLP_TOKENS}),
    ("--gradients bf16", {"gradients": "bf16"}),
    ("--masters none", {"masters": "none"}),
    (f"--chunk-tokens {_SMALL_CHUNK}", {"chunk_tokens": _SMALL_CHUNK}),
)
"""What may be added, first what costs least."""


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

    def as_json(self) -> dict[str, Any]:
        """The figures of the table. Bytes; seconds of a step, where the device is known."""
        return {
            **asdict(self),
            "ways": [self._way(way) for way in self.ways],
            "full_length": self._way(self.full_length),
            "step_seconds": self.seconds,
        }

    def _way(self, way: Way) -> dict[str, Any]:
        memory = {**asdict(way.memory), "total": way.memory.total}
        return {
            "name": way.name,
            "tokens": way.tokens,
            "memory": memory,
            "fits": self.fits(way),
            "recipe": way.recipe.as_json(),
        }


def make_plan(
    folder: Path | str,
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
    shards = open_dataset(folder)
    rows = shards.rows("extend")
    if not rows:
        raise LongRecipeError(f"{folder} holds no extend rows; build it again")
    config = load_config(model)
    check_architecture(config, model)
    if device_name is not None and peak_flops(device_name) is None:
        raise LongRecipeError(
            f"--gpu {device_name} is not known; known are {', '.join(PEAK_TFLOPS)}"
        )
    if device_name is None and recipe.device != "cpu" and torch.cuda.is_available():
        device_name = torch.cuda.get_device_name()
        on_device, on_host = _memory_here(torch.device("cuda"))
        memory, host_memory = memory or on_device, host_memory or on_host
    per_step = min(recipe.rows_per_step, rows)
    with progress("planning", len(_OPTIONS) + 2) as task:

        def measure(name: str, one: TrainRecipe) -> Way:
            task.advance(note=name)
            return _way(name, config, one, _micro_batch(shards, recipe))

        ways = _until_it_fits(_ways(recipe, measure), memory, host_memory)
        if _only_the_host_is_full(ways, memory, host_memory):
            others = _until_it_fits(_ways(recipe, measure, offload=False), memory, host_memory)
            ways += [way for way in others if way not in ways]
        last = ways[-1]
        whole = replace(last.recipe, checkpointing=True)
        name = last.name if last.recipe == whole else "--checkpointing"
        full_length = _way(name, config, whole, [shards.target_len])
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


def _ways(
    recipe: TrainRecipe, measure: Callable[[str, TrainRecipe], Way], offload: bool = True
) -> Iterator[Way]:
    """The recipe as it is, and with one more option each that saves memory on the device; with no
    more of what is offloaded unless `offload`."""
    way = measure("as asked for", recipe)
    yield way
    options = list[str]()
    for option, changes in _OPTIONS:
        changed: TrainRecipe = replace(way.recipe, **changes)
        if changed == way.recipe or not _asks_less(changed, way.recipe):
            continue
        if not offload and changed.offload != way.recipe.offload:
            continue
        name = option.split()[0]  # --offload is one list
        longer = [*(one for one in options if one.split()[0] != name), option]
        tried = measure(" ".join(longer), changed)
        if tried.memory.total < way.memory.total:
            way, options = tried, longer
            yield way


def _until_it_fits(ways: Iterator[Way], memory: int | None, host: int | None) -> list[Way]:
    tried = list[Way]()
    for way in ways:
        tried.append(way)
        if _fits(way.memory, memory, host):
            break
    return tried


def _only_the_host_is_full(ways: list[Way], memory: int | None, host: int | None) -> bool:
    return not any(_fits(way.memory, memory, host) for way in ways) and any(
        _fits(way.memory, memory, None) for way in ways
    )


def _asks_less(changed: TrainRecipe, recipe: TrainRecipe) -> bool:
    """Whether a changed recipe may take less memory: what is asked for is never taken back."""
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
    return Way(name, recipe, sum(seq_lengths), memory_of(config, recipe, seq_lengths))


def memory_of(config: Any, recipe: TrainRecipe, seq_lengths: list[int]) -> StepMemory:
    """The memory of a step whose micro-batches have documents of these lengths."""
    return step_memory(
        config,
        seq_lengths,
        dtype=TORCH_DTYPES[recipe.dtype],
        chunk_tokens=recipe.chunk_tokens,
        storage=recipe.storage,
        activations=recipe.activations,
        on_gpu=recipe.device != "cpu",
    )


def check_memory(shards: Shards, config: Any, recipe: TrainRecipe, device: torch.device) -> str:
    """What a step of the extend stage takes, in words. Raises LongRecipeError when that is more
    than this device or host has."""
    on_device = replace(recipe, device=device.type)
    memory = memory_of(config, on_device, _micro_batch(shards, recipe))
    has, host = _memory_here(device)
    needs = f"a step takes about {format_bytes(memory.total)} on {device}"
    needs += f" and {format_bytes(memory.host)} of host memory" if memory.host else ""
    if not _fits(memory, has, host):
        raise LongRecipeError(
            f"{needs}; there are {format_bytes(has)}"
            + (f" and {format_bytes(host)}" if host is not None else "")
            + "; see which options help: lrtrain plan"
        )
    return f"{needs}, of {format_bytes(has)}"


def _micro_batch(shards: Shards, recipe: TrainRecipe) -> list[int]:
    """Document lengths of a micro-batch of extend rows."""
    return [shards.train_len] * max(1, recipe.micro_tokens // shards.train_len)


def _memory_here(device: torch.device) -> tuple[int, int | None]:
    """Bytes of a device, and of the host beside it."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            host = min(host, int(limit.read_text()))
    if device.type == "cpu":
        return host, None
    return torch.cuda.get_device_properties(device).total_memory, host


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
    from rich import box
    from rich.table import Table

    ways = (*plan.ways, plan.full_length)
    in_mb = max(way.memory.total for way in ways) < 10**9
    unit, size_of_unit = ("MB", 10**6) if in_mb else ("GB", 10**9)
    table = Table(
        title=f"{plan.model}: {plan.parameters / 1e6:,.0f} million parameters, {unit}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(f"rows of {plan.ways[0].tokens:,}", overflow="fold")
    columns = ("weights", "optim", "grads", "working", "device", "host", "fits")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    labels = [
        "as asked for",
        *(_added(*two) for two in pairwise(plan.ways)),
        f"full length, {plan.full_length.tokens:,}",
    ]
    for label, way in zip(labels, ways, strict=True):
        memory, fits = way.memory, plan.fits(way)
        sizes = (
            *(memory.parameters, memory.masters + memory.moments, memory.gradients),
            *(memory.working, memory.total, memory.host),
        )
        table.add_row(
            label,
            *(f"{size / size_of_unit:,.1f}" if size else "" for size in sizes),
            "" if fits is None else "yes" if fits else "no",
        )
    return table


def _added(before: Way, way: Way) -> str:
    """The option by which a way differs from the one before, or all of them."""
    known, options = (one.name.split(" --") for one in (before, way))
    kept = [option for option in known if not option.startswith("offload")]
    grows = before.name == "as asked for" or options[:-1] in (known, kept)
    return "--" + options[-1].removeprefix("--") if grows else way.name


def _advice(plan: Plan) -> str:
    if plan.available is None:
        return "whether it fits: name the device's memory with --gpu-memory 80GB"
    room = f"{plan.available / 2**30:,.0f} GiB, {_RESERVE:.0%} of it left free"
    if plan.host_available is not None:
        room += f", and {plan.host_available / 2**30:,.0f} GiB of host memory"
    for way in plan.ways:
        if plan.fits(way):
            change = "" if way is plan.ways[0] else f" with {way.name}"
            return f"it fits{change} ({room})"
    return f"nothing here fits {room}: a smaller model, or shorter rows (lrdata build --train-len)"
