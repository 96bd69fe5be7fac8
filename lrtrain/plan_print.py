"""A plan as a person reads it: the memory table, the time, what to add, and which mix of ranks."""

from itertools import pairwise
from typing import TYPE_CHECKING

from lrdata.progress import duration
from lrtrain.plan import RESERVE, Plan, Way
from lrtrain.plan_ranks import fastest, table_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


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
        gpus = f" on {plan.cluster.gpus} GPUs" if plan.mixes else ""
        full = "" if plan.mixes else f"; full length: {duration(plan.seconds * plan.steps / ratio)}"
        console.print(
            f"about {duration(plan.seconds)} a step at {plan.mfu:.0%} of {plan.device}'s peak "
            f"({plan.peak / 1e12:,.0f} TFLOP/s){gpus}, {duration(plan.seconds * plan.steps)} for "  # type: ignore[operator]
            f"{plan.steps:,} steps{full}"
        )
    console.print(_advice(plan))
    if plan.mixes:
        _print_mixes(plan, console)


def _print_mixes(plan: Plan, console: "Console") -> None:
    """What each mix of ranks would take, and the fastest that fits."""
    cluster = plan.cluster
    console.print(
        f"\n{cluster.gpus} GPUs, {cluster.per_host} a host, {cluster.link / 1e9:,.0f} GB/s among "
        f"them and {cluster.network / 1e9:,.0f} to others, {_options(plan.ways[-1])}:"
    )
    console.print(table_of(plan.mixes, plan.train_len, plan.rows_per_step, plan.has_room))
    best = fastest(plan.mixes, plan.has_room)
    if best is not None:
        console.print(f"fastest: --data-parallel {best.data} --context-parallel {best.context}")


def _options(way: Way) -> str:
    return way.name if way.name == "as asked for" else f"with {way.name}"


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
    room = f"{plan.available / 2**30:,.0f} GiB, {RESERVE:.0%} of it left free"
    if plan.host_available is not None:
        room += f", and {plan.host_available / 2**30:,.0f} GiB of host memory"
    for way in plan.ways:
        if plan.fits(way):
            change = "" if way is plan.ways[0] else f" with {way.name}"
            return f"it fits{change} ({room})"
    return f"nothing here fits {room}: a smaller model, or shorter rows (lrdata build --train-len)"
