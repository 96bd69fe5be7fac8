"""Many ranks: parameters sharded over all, rows dealt out among some, long rows split by others.

    torchrun --nproc-per-node 8 -m lrtrain run SHARDS --model M --out RUN --context-parallel 4

Of W = D x C ranks, rank d * C + c has a W-th of every parameter, gradient and running average
(FSDP2, `torch.distributed.fsdp.fully_shard`), takes every D-th row of a step from its d-th on, and
of each of these two of 2C equal chunks, the c-th and the c-th from the end: so causal attention
takes all ranks equally long. Their keys and values are gathered in every layer, whereupon a rank's
attention is that of any backend for the last tokens of a row, with documents where they are. A
ring would send the same bytes in C - 1 turns and hold C times less of one layer's keys, but needs
a kernel that gives its logsumexp, and to know the documents of every two ranks' tokens.

What ranks tell each other in between, in a few numbers a step, goes over gloo with a time limit: so
a rank that died or hangs ends the others, which say so.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from lrdata.errors import LongRecipeError, one_line
from lrtrain.attention import splitting
from lrtrain.attention_backends import Backend
from lrtrain.loader import Batch, Piece, whole

Rows = tuple[int, int, int]
"""Of a tensor: the first that is here, the one after the last, how many there are."""

# torch 2.13 renamed them; machines in the field carry older ones.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_CPU = torch.device("cpu")
_GONE = re.compile(
    r"connection (closed|reset|refused)|timed? ?out|broken pipe|nccl|watchdog|socket|peer|aborted",
    re.IGNORECASE,
)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a sharded tensor; another is its own."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def rows_of(tensor: torch.Tensor) -> Rows:
    """Which rows of a tensor are here: FSDP2 shards as torch.chunk does."""
    count = tensor.shape[0]
    if not isinstance(tensor, DTensor):
        return 0, count, count
    mesh = tensor.device_mesh
    each = -(-count // mesh.size())
    start = min(mesh.get_local_rank() * each, count)
    return start, min(start + each, count), count


class Elsewhere(SystemExit):
    """The same end as another rank's, which says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; alone it is the first of one.

    context: how many ranks share a row. mesh: all of them. group: those that share this one's row.
    control: all of them, for words between hosts.
    """

    rank: int = 0
    size: int = 1
    context: int = 1
    device: torch.device = _CPU
    mesh: Any = None
    group: Any = None
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    @property
    def data(self) -> int:
        """Among how many the rows of a step are dealt out."""
        return self.size // self.context

    @property
    def data_rank(self) -> int:
        """Which of them this is."""
        return self.rank // self.context

    @property
    def context_rank(self) -> int:
        """Which of those that share a row this is."""
        return self.rank % self.context

    def exchange(self, value: Any) -> list[Any]:
        """What each rank says, by rank; all wait for all. Raises LongRecipeError when one does not
        answer in time."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        with self.reached():
            dist.all_gather_object(said, value, group=self.control)
        return said

    def any(self, said: bool) -> bool:
        """Whether any rank says so."""
        return any(self.exchange(said))

    def agree(self, work: Callable[[], Any]) -> Any:
        """What `work` gives, on every rank. Where it fails on one it fails on all: that one says
        why, or the first where there are several, and Elsewhere is raised on the others. There is
        no agreeing inside of `work`."""
        result = problem = None
        try:
            result = work()
        except Exception as failure:
            problem = failure
        failed = [rank for rank, bad in enumerate(self.exchange(problem is not None)) if bad]
        if problem is not None and failed[0] == self.rank:
            raise problem
        if failed:
            raise Elsewhere(1)
        return result

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on the first rank, on every rank."""
        return self.exchange(self.agree(lambda: work() if self.first else None))[0]

    def where(self, device: torch.device) -> str:
        """On what all of them are."""
        if self.size == 1:
            return str(device)
        split = f", a row over {self.context} of them" if self.context > 1 else ""
        return f"{self.size} ranks, {device.type}{split}"

    def fail(self, message: str) -> NoReturn:
        """Of what all ranks know: the first one says it."""
        raise LongRecipeError(message) if self.first else Elsewhere(1)

    def stop(self) -> NoReturn:
        """All ranks have been asked to: the first one says it."""
        raise KeyboardInterrupt if self.first else Elsewhere(130)

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Collectives inside, which fail when a rank is gone: LongRecipeError says so."""
        try:
            yield
        except RuntimeError as problem:
            own = self.size == 1 or isinstance(problem, torch.OutOfMemoryError)
            if own or not _GONE.search(str(problem)):
                raise
            raise LongRecipeError(
                f"rank {self.rank} of {self.size}: another rank died or does not answer "
                f"({one_line(problem)}); run the same command to go on from the last checkpoint"
            ) from None

    def in_step(self, batches: Sequence[Batch]) -> tuple[list[Batch], float]:
        """Batches of a step, as many on every rank, and the weight of those of all. A rank with
        fewer adds some of which nothing counts: others wait for it in every layer."""
        weight = sum(float(batch.weights.sum()) for batch in batches)
        said = self.exchange((len(batches), weight))
        most = max(count for count, _ in said)
        total = sum(weight for _, weight in said[:: self.context])
        return [*batches, *[_nothing()] * (most - len(batches))], total

    def piece(self, batch: Batch) -> Piece:
        """What this rank computes of a batch."""
        return whole(batch) if self.context == 1 else piece(batch, self.context_rank, self.context)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Over all ranks, of a tensor on the device."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def norm(self, own: torch.Tensor) -> torch.Tensor:
        """Of a vector of which each rank has a part of this norm."""
        return own if self.size == 1 else self.sum(own.square()).sqrt()

    def call(self, model: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(model, ...) with the parameters that are not in layers whole meanwhile."""
        if self.size == 1:
            return function(model, *arguments)
        result = model(function, *arguments)
        if not torch.is_grad_enabled():
            model.reshard()  # else a backward pass does
        return result

    @contextmanager
    def splitting(self) -> Iterator[None]:
        """Rows are split over the ranks that share them; in backward passes too."""
        with splitting(SplitRows(self) if self.context > 1 else None):
            yield


ALONE = Ranks()


# Rows that are split


def _nothing() -> Batch:
    """Tokens of which none counts."""
    ids = torch.zeros((1, 2), dtype=torch.int32)
    return Batch(ids, ids, [2], torch.zeros(2), [])


def piece(batch: Batch, rank: int, ranks: int) -> Piece:
    """The chunks `rank` and `2 * ranks - 1 - rank` of a batch, after as many more tokens, of a
    document of their own, as make all chunks equally long."""
    tokens = batch.tokens
    more = -tokens % (2 * ranks)
    chunk = (tokens + more) // (2 * ranks)

    def cut(x: torch.Tensor, shift: int) -> torch.Tensor:
        """Both chunks of x, as it is `shift` places on."""
        into = x.new_zeros(2 * chunk, pin_memory=x.is_pinned())
        for place, start in ((0, rank * chunk), (chunk, (2 * ranks - 1 - rank) * chunk)):
            found = x[start + shift : start + shift + chunk]
            into[place : place + len(found)] = found
        return into

    return Piece(
        input_ids=cut(batch.input_ids[0], 0)[None],
        position_ids=cut(batch.position_ids[0], 0)[None],
        seq_lengths=[*batch.seq_lengths, more] if more else batch.seq_lengths,
        targets=cut(batch.input_ids[0], 1),
        weights=cut(batch.weights, 1),
    )


def keys_of(seq_lengths: Sequence[int], start: int, stop: int) -> tuple[int, list[int]]:
    """Which keys tokens [start, stop) of a row attend to: the first of them, the last being
    stop - 1, and the lengths of their documents as far as they go."""
    first, lengths = 0, list[int]()
    for end, length in zip(accumulate(seq_lengths), seq_lengths, strict=True):
        if end > start and end - length < stop:
            if not lengths:
                first = end - length
            lengths.append(min(end, stop) - (end - length))
    return first, lengths


class SplitRows:
    """Attention of a rank's two chunks, to the gathered keys and values of all ranks of the row."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self._rank, self._group = ranks.context, ranks.context_rank, ranks.group

    def __call__(
        self,
        backend: Backend,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        seq_lengths: Sequence[int],
        scale: float,
    ) -> torch.Tensor:
        keys, values = _Gathered.apply(torch.cat([key, value]), self._group).split(1)
        chunk = query.shape[2] // 2
        out = []
        numbers = (self._rank, 2 * self.ranks - 1 - self._rank)
        for number, own in zip(numbers, query.split(chunk, 2), strict=True):
            stop = (number + 1) * chunk
            first, lengths = keys_of(seq_lengths, stop - chunk, stop)
            seen = slice(first, stop)
            out.append(backend(own, keys[:, :, seen], values[:, :, seen], lengths, scale))
        return torch.cat(out, 1)


class _Gathered(torch.autograd.Function):
    """Both chunks of every rank of a group in the row's order: [B, H, S / C, D] -> [B, H, S, D]."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        ranks = dist.get_world_size(group)
        batch, heads, tokens, width = own.shape
        by_rank = own.new_empty(ranks * batch, heads, tokens, width)
        _all_gather(by_rank, own.contiguous(), group=group)
        chunks = by_rank.view(ranks, batch, heads, 2, tokens // 2, width)
        ascending, descending = chunks.unbind(3)
        ordered = torch.cat([ascending, descending.flip(0)])  # [2C, B, H, S / 2C, D]
        return ordered.permute(1, 2, 0, 3, 4).reshape(batch, heads, ranks * tokens, width)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None]:
        ranks = dist.get_world_size(ctx.group)
        batch, heads, tokens, width = outer[0].shape
        chunks = outer[0].view(batch, heads, 2 * ranks, tokens // (2 * ranks), width)
        ascending, descending = chunks.permute(2, 0, 1, 3, 4).split(ranks)
        by_rank = torch.stack([ascending, descending.flip(0)], 3)  # [C, B, H, 2, S / 2C, D]
        own = outer[0].new_empty(batch, heads, tokens // ranks, width)
        shape = (ranks * batch, *own.shape[1:])
        _reduce_scatter(own, by_rank.reshape(shape), group=ctx.group)
        return own, None


# Parameters that are sharded


def shard(model: Any, ranks: Ranks, fill: Callable[[nn.Module], None]) -> Any:
    """Shard a causal model over all ranks, a layer at a time, each after `fill` made its
    parameters: no more than one is ever whole. Its forward becomes forward(function, ...), which
    is function(model, ...).

    Gradients are added up over the ranks in fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    model.forward = lambda function, *arguments: function(model, *arguments)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    alone = () if tied else (model.model.embed_tokens,)  # it is long gone when the loss is made
    for module in (*alone, *model.model.layers, model):
        fill(module)
        fully_shard(module, mesh=ranks.mesh, mp_policy=policy)
        # The loss of a step is divided by the weight on all ranks: gradients are summed.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return model


def whole_parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter of a sharded model by name, gathered when it is asked for: on the CPU on the
    first rank, empty on the others, who all must ask too."""
    for name, parameter in model.named_parameters():
        full = parameter.full_tensor().detach()
        yield name, full.cpu() if dist.get_rank() == 0 else full.new_empty(0)


# Beginning and end


@contextmanager
def many(context: int, data: int | None, device: str, seconds: int) -> Iterator[Ranks]:
    """The ranks that torchrun started, or this process alone.

    context, data: ranks that share a row, and among which rows are dealt out. seconds: after which
    one that does not answer is given up. Raises LongRecipeError for numbers that do not fit.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if context * (data or 1) > size or size % context or data not in (None, size // context):
        if os.environ.get("RANK", "0") != "0":  # they know no group yet
            raise Elsewhere(1)
        raise LongRecipeError(
            f"--context-parallel {context}"
            + (f" times --data-parallel {data}" if data else "")
            + f" does not make the number of ranks, {size}; start so many with: torchrun "
            f"--nproc-per-node {context * (data or 1)} -m lrtrain run ..."
        )
    if size == 1:
        yield ALONE
        return
    where = _device(device)
    limit = timedelta(seconds=seconds)
    gpu = where if where.type == "cuda" else None
    try:
        dist.init_process_group("gloo" if gpu is None else "nccl", timeout=2 * limit, device_id=gpu)
    except (RuntimeError, ValueError) as problem:
        _never_met(size, problem)
    try:
        control = dist.new_group(backend="gloo", timeout=limit)
        yield _ranks(size, context, where, control, 2 * limit)
    finally:
        dist.destroy_process_group()


@contextmanager
def pretended(size: int, context: int) -> Iterator[Ranks]:
    """The first of ranks that are not there: collectives give what they find (`lrtrain.memory`)."""
    if size == 1:
        yield ALONE
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield _ranks(size, context, _CPU, None, None)
    finally:
        dist.destroy_process_group()


def _ranks(
    size: int, context: int, device: torch.device, control: Any, limit: timedelta | None
) -> Ranks:
    """This one, in the groups of torch's process group."""
    rank, whole = dist.get_rank(), DeviceMesh(device.type, list(range(size)))
    rows = [list(range(start, start + context)) for start in range(0, size, context)]
    groups = [dist.new_group(row, timeout=limit) for row in rows]  # all ranks make all of them
    return Ranks(rank, size, context, device, whole, groups[rank // context], control)


def _device(name: str) -> torch.device:
    """Each rank's own."""
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise LongRecipeError(
            f"--device {name}: of many ranks each has its own; choose auto or cpu"
        )
    if number >= torch.cuda.device_count():
        raise LongRecipeError(
            f"there are {torch.cuda.device_count()} GPUs here and more ranks; start one rank a GPU"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _never_met(size: int, problem: Exception) -> NoReturn:
    raise LongRecipeError(
        f"the {size} ranks did not find each other ({one_line(problem)}); start them with torchrun"
    ) from None
