"""`lrtrain plan`: what a run takes before it is paid for: memory on the device, time a step.

    make_plan(Path("shards"), "./llama3-8b", TrainRecipe(), memory=80 * 10**9).ways

Memory is found with `lrtrain.memory`, time from the operations of `lrtrain.flops` at a stated share
of the device's peak.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.shards import Shards
from lrdata.sizes import format_bytes
from lrtrain.flops import PEAK_TFLOPS, peak_flops, training_flops
from lrtrain.memory import StepMemory, step_memory
from lrtrain.model import TORCH_DTYPES, check_architecture, load_config
from lrtrain.plan_ranks import ONE, Cluster, Mix, check_cluster, mixes
from lrtrain.recipe import TrainRecipe

ASSUMED_MFU = 0.4
_PROCESS_BYTES = 3 * 10**9
"""Of host memory, for a process with torch and CUDA."""
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Which control groups this process is in, and where Linux shows all of them."""
RESERVE = 0.05
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
    and the same with all pairs of attention counted. peak: operations a second of the device, None
    where it is not known, as in fp32. available, host_available: bytes of the device and of the
    host, or None.
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
    cluster: Cluster
    mixes: list[tuple[Mix, StepMemory]]
    mfu: float = ASSUMED_MFU

    def fits(self, way: Way) -> bool | None:
        """Whether a way fits the machine; None where its memory is not known."""
        return self.has_room(way.memory)

    def has_room(self, memory: StepMemory) -> bool | None:
        """Whether the machine has so much; None where that is not known."""
        return _fits(memory, self.available, self.host_available)

    @property
    def seconds(self) -> float | None:
        """Of a step, with the mix that was asked for."""
        if self.peak is None:
            return None
        if self.mixes:
            context = self.ways[0].recipe.context_parallel
            return next(mix.seconds for mix, _ in self.mixes if mix.context == context)
        return self.flops / (self.peak * self.mfu)

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
    cluster: Cluster = ONE,
    mfu: float = ASSUMED_MFU,
) -> Plan:
    """Plan the extend stage of a run on GPUs, or on a CPU where the recipe says so.

    memory, device_name: of a device, host_memory: of a host; else those of the GPU that is here.
    Ways end with the first that fits. mfu: share of the peak that one GPU does, measured or not.
    Raises LongRecipeError.
    """
    check_cluster(cluster, recipe)
    if not 0 < mfu <= 1:
        raise LongRecipeError(f"--mfu {mfu} must be above 0 and at most 1")
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
    if host_memory is not None:
        host_memory //= min(cluster.gpus, cluster.per_host)
    per_step = min(recipe.rows_per_step, rows)
    row = _micro_batch(shards, recipe, cluster.gpus)
    with progress("planning", len(_OPTIONS) + 2) as task:

        def measure(name: str, one: TrainRecipe) -> Way:
            task.advance(note=name)
            return _way(name, config, one, row, cluster.gpus)

        ways = _until_it_fits(_ways(recipe, measure), memory, host_memory)
        if _only_the_host_is_full(ways, memory, host_memory):
            others = _until_it_fits(_ways(recipe, measure, offload=False), memory, host_memory)
            ways += [way for way in others if way not in ways]
        last = ways[-1]
        peak = peak_flops(device_name) if device_name and last.recipe.dtype == "bf16" else None
        whole = replace(last.recipe, checkpointing=True)
        name = last.name if last.recipe == whole else "--checkpointing"
        full_length = _way(name, config, whole, [shards.target_len], cluster.gpus)
        found = list[tuple[Mix, StepMemory]]()
        if cluster.gpus > 1 and peak is not None:
            seconds = training_flops(config, [shards.train_len]) / (peak * mfu)
            tokens, joined = shards.train_len, _joined(shards, recipe)
            for mix in mixes(config, last.recipe, tokens, per_step, cluster, seconds, joined):
                split = replace(last.recipe, context_parallel=mix.context)
                task.advance(note=f"{mix.data} x {mix.context}")
                lengths = _micro_batch(shards, split, cluster.gpus)
                found.append((mix, memory_of(config, split, lengths, cluster.gpus)))
    short, full = [shards.train_len] * per_step, [shards.target_len] * per_step
    return Plan(
        model=model,
        parameters=_count(config),
        rows_per_step=per_step,
        train_len=shards.train_len,
        target_len=shards.target_len,
        steps=recipe.steps or -(-rows // per_step),
        ways=ways,
        full_length=full_length,
        flops=training_flops(config, short),
        full_flops=training_flops(config, full),
        all_pairs=(
            training_flops(config, short, causal=False),
            training_flops(config, full, causal=False),
        ),
        device=device_name or "no GPU here",
        peak=peak,
        available=memory,
        host_available=host_memory,
        cluster=cluster,
        mixes=found,
        mfu=mfu,
    )


def _count(config: Any) -> int:
    """Parameters of a model."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


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
    return on_host and memory.total <= available * (1 - RESERVE)


def _way(name: str, config: Any, recipe: TrainRecipe, seq_lengths: list[int], ranks: int) -> Way:
    return Way(name, recipe, sum(seq_lengths), memory_of(config, recipe, seq_lengths, ranks))


def memory_of(
    config: Any, recipe: TrainRecipe, seq_lengths: list[int], ranks: int = 1
) -> StepMemory:
    """The memory of a step whose micro-batches have documents of these lengths, of one rank."""
    return step_memory(
        config,
        seq_lengths,
        dtype=TORCH_DTYPES[recipe.dtype],
        chunk_tokens=recipe.chunk_tokens,
        storage=recipe.storage,
        activations=recipe.activations,
        on_gpu=recipe.device != "cpu",
        ranks=ranks,
        context=recipe.context_parallel,
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


def _micro_batch(shards: Shards, recipe: TrainRecipe, gpus: int = 1) -> list[int]:
    """Document lengths of the largest micro-batch of extend rows on a rank."""
    rows = min(recipe.rows_per_step, shards.rows("extend"))
    own = -(-rows * recipe.context_parallel // gpus)
    return [shards.train_len] * max(1, min(_joined(shards, recipe), own))


def _joined(shards: Shards, recipe: TrainRecipe) -> int:
    """How many rows a micro-batch may have."""
    return max(1, recipe.micro_tokens // shards.train_len)


def _memory_here(device: torch.device) -> tuple[int, int | None]:
    """Bytes of a device that no other process has, and of the host beside it."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _group_limits():
        with suppress(OSError, ValueError):  # not there, or "max"
            host = min(host, int(limit.read_text()))
    if device.type == "cpu":
        return host, None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device), host


def _group_limits() -> Iterator[Path]:
    """Files with the memory that this process's control groups may take, and all that they are
    in: a batch system limits a job's group far below the root, a container the root that it sees.
    """
    lines = list[str]()
    with suppress(OSError):  # no Linux
        lines = _OWN_GROUPS.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = _GROUPS, "memory.max"
        elif "memory" in controllers.split(","):  # the first version, a tree for each controller
            root, name = _GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            yield root.joinpath(*parts[:depth], name)
