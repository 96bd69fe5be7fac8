"""Which mix of ranks is fastest, on paper: rows dealt out, or split, over so many GPUs.

    for mix in mixes(config, recipe, 39312, 96, Cluster(gpus=16), seconds_of_a_row=8.3):
        print(mix.data, mix.context, mix.seconds)

From the time of a row on one GPU, measured or assumed, and from what links carry. Per micro-batch
a rank receives all parameters twice, for the forward and the backward pass, and sends gradients
in fp32 once (FSDP2), which goes on beside the computation; and in every layer the keys and values
of the row it shares, forward, with checkpointing again, and gives their gradients back, for which
it waits. So

    micro-batch = max(its rows / C + waited for, parameters and gradients)
    step = ceil(rows / D) / its rows micro-batches, the last one perhaps of fewer

with D x C ranks, C of which share a row. Where a group of them is on several hosts it takes their
network. Not counted: the optimizer, what is left over where D does not divide the rows but that
they are rounded up, and that a kernel does less well on shorter pieces.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrdata.errors import LongRecipeError
from lrtrain.flops import linear_weights
from lrtrain.memory import StepMemory
from lrtrain.model import TORCH_DTYPES
from lrtrain.recipe import TrainRecipe
from lrtrain.rope import head_dim_of

if TYPE_CHECKING:
    from rich.table import Table

LINK = 350e9
"""Bytes a second that a GPU receives from others of its host: NVLink of an H100 or H200, 450 by the
data sheet."""
NETWORK = 40e9
"""The same from other hosts: one 400 Gbit/s adapter a GPU, 50 by the data sheet."""
_BYTES_OF_A_GRADIENT = 4


@dataclass(frozen=True)
class Cluster:
    """GPUs and what connects them. link, network: bytes a second a GPU receives, of its host and
    of others."""

    gpus: int
    per_host: int = 8
    link: float = LINK
    network: float = NETWORK

    def speed(self, ranks: int) -> float:
        """Of the slowest of the groups of so many neighbours: what comes from other hosts comes
        once, through the adapters that the group has on a host, and is passed on inside."""
        groups = (range(start, start + ranks) for start in range(0, self.gpus, ranks))
        hosts = [Counter(gpu // self.per_host for gpu in group) for group in groups]
        adapters = [count for one in hosts if len(one) > 1 for count in one.values()]
        return min([self.link, *(self.network * count for count in adapters)])


ONE = Cluster(1)
Fits = Callable[[StepMemory], bool | None]
Measured = Sequence[tuple["Mix", StepMemory]]


@dataclass(frozen=True)
class Mix:
    """D x C ranks. Seconds of a micro-batch: compute; waits, for keys and values; sharding, that
    parameters and gradients are on their way. seconds: of a step."""

    data: int
    context: int
    compute: float
    waits: float
    sharding: float
    seconds: float

    @property
    def bound_by(self) -> str:
        """What takes the time."""
        if self.sharding > self.compute + self.waits:
            return "parameters"
        return "attention's keys" if self.waits > self.compute else "computing"


def splits(gpus: int) -> list[int]:
    """Over how many ranks a row may be split."""
    return [count for count in range(1, gpus + 1) if gpus % count == 0]


def mixes(
    config: Any,
    recipe: TrainRecipe,
    tokens: int,
    rows: int,
    cluster: Cluster,
    seconds_of_a_row: float,
    joined: int = 1,
) -> Iterator[Mix]:
    """Every mix, for steps of `rows` of so many tokens, at most so many `joined` to a micro-batch;
    `seconds_of_a_row` are one GPU's.
    """
    gpus = cluster.gpus
    for context in splits(gpus):
        own = -(-rows // (gpus // context))
        batch = min(joined, own)
        compute = batch * seconds_of_a_row / context
        waits = keys_and_values(config, batch * tokens, context, recipe) / cluster.speed(context)
        sharding = parameters_and_gradients(config, gpus, recipe) / cluster.speed(gpus)
        whole, rest = divmod(own, batch)
        seconds = whole * max(compute + waits, sharding)
        if rest:
            seconds += max((compute + waits) * rest / batch, sharding)
        yield Mix(gpus // context, context, compute, waits, sharding, seconds)


def keys_and_values(config: Any, tokens: int, context: int, recipe: TrainRecipe) -> float:
    """Bytes that a rank gets and gives of a row that `context` ranks share."""
    width = 2 * config.num_key_value_heads * head_dim_of(config)
    passes = 3 if recipe.checkpointing else 2  # forward, again, and the gradients
    share, size = (context - 1) / context, TORCH_DTYPES[recipe.dtype].itemsize
    return config.num_hidden_layers * passes * share * tokens * width * size


def parameters_and_gradients(config: Any, ranks: int, recipe: TrainRecipe) -> float:
    """Bytes that a rank gets and gives of the parameters of a model, for a micro-batch."""
    embedding = 0 if config.tie_word_embeddings else config.hidden_size * config.vocab_size
    count = linear_weights(config) + embedding
    each = 2 * TORCH_DTYPES[recipe.dtype].itemsize + _BYTES_OF_A_GRADIENT
    return (ranks - 1) / ranks * count * each


def fastest(found: Measured, fits: Fits) -> Mix | None:
    """The one with the shortest step of those that fit; None: none does."""
    fitting = [mix for mix, memory in found if fits(memory) is not False]
    return min(fitting, key=lambda mix: (mix.seconds, mix.context)) if fitting else None


def table_of(found: Measured, tokens: int, rows: int, fits: Fits) -> "Table":
    """A line a mix: memory of a rank, seconds, tokens a second of all, and what takes the time."""
    from rich import box
    from rich.table import Table

    best = fastest(found, fits)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("data x context", "device", "host", "fits", "step", "tok/s", "bound by"):
        table.add_column(name, justify="left" if name == "bound by" else "right", no_wrap=True)
    for mix, memory in found:
        fit = fits(memory)
        table.add_row(
            f"{mix.data} x {mix.context}",
            f"{memory.total / 1e9:,.1f} GB",
            f"{memory.host / 1e9:,.1f} GB" if memory.host else "",
            "" if fit is None else "yes" if fit else "no",
            f"{mix.seconds:,.1f} s",
            f"{rows * tokens / mix.seconds:,.0f}",
            mix.bound_by,
            style="bold" if mix is best else None,
        )
    return table


def check_cluster(cluster: Cluster, recipe: TrainRecipe) -> None:
    """Raise LongRecipeError for numbers that no run could have."""
    if cluster.gpus % recipe.context_parallel:
        raise LongRecipeError(
            f"--context-parallel {recipe.context_parallel} does not divide --gpus {cluster.gpus}"
        )
