"""Many ranks: parameters sharded over all, rows dealt out among some, long rows split by others.

    torchrun --nproc-per-node 8 -m lrtrain run SHARDS --model M --out RUN --context-parallel 4

Of W = D x C ranks, rank d * C + c has a W-th of every parameter, gradient and running average
(FSDP2, `torch.distributed.fsdp.fully_shard`), takes every D-th row of a step from its d-th on, and
of each of these the c-th piece (`lrtrain.context_parallel`).

What ranks tell each other in between, in a few numbers a step, goes over gloo with a time limit: so
a rank that died or hangs ends the others, which say so.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous

from lrdata.errors import LongRecipeError, one_line
from lrtrain.attention import splitting
from lrtrain.context_parallel import SplitRows, piece
from lrtrain.interrupt import end_after_the_first, speaks, stop_asked
from lrtrain.loader import Batch, Piece, whole

_CPU = torch.device("cpu")
_GONE = re.compile(
    r"connection (closed|reset|refused)|timed out|broken pipe|nccl|process group", re.IGNORECASE
)
_SEEN_WITHIN = 60.0
"""Seconds in which a host sees what another wrote: file systems remember what was not there."""
_WORD_EVERY = 1.0
"""Seconds, from a rank that works while others wait."""


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
    seconds: float = 600.0
    """After which one that does not answer is given up."""

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
        try:
            said = self.exchange(problem is not None)
        except LongRecipeError:
            raise problem or LongRecipeError(self._gone("no word from it")) from None
        failed = [rank for rank, bad in enumerate(said) if bad]
        if problem is not None and failed[0] == self.rank:
            raise problem
        if failed:
            raise Elsewhere(1)
        return result

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What `work` gives on the first rank, on every rank."""
        return self.exchange(self.agree(lambda: work() if self.first else None))[0]

    def first_works(self, work: Callable[[Callable[[], bool]], None]) -> None:
        """`work(stop)` on the first rank, however long it takes; the others stay till its end, as
        torchrun gives up a host 300 s after the ranks of another have ended.

        stop: whether a signal has asked any rank to; `work` raises KeyboardInterrupt then, and all
        end as by `stop` below. Where it fails it fails on all, as in `agree`.
        """
        if self.size == 1:
            work(lambda: False)
            return
        over, told = threading.Event(), threading.Event()

        def meet() -> None:
            """Until the first is done."""
            while True:
                if self.first:
                    over.wait(min(_WORD_EVERY, self.seconds / 2))
                said = self.exchange((over.is_set(), asked()))
                if any(stop for _, stop in said):
                    told.set()
                if said[0][0]:
                    return

        def come_to_an_end() -> bool:
            with ThreadPoolExecutor(1) as beside:
                beside.submit(meet)  # where another is gone the next exchange says so, too
                try:
                    work(lambda: asked() or told.is_set())
                except KeyboardInterrupt:
                    return False
                finally:
                    over.set()
            return True

        with stop_asked() as asked:
            if not self.exchange(self.agree(come_to_an_end if self.first else meet))[0]:
                self.stop()

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
            own = self.size == 1 or "out of memory" in str(problem)
            if own or not _GONE.search(str(problem)):
                raise
            raise LongRecipeError(self._gone(one_line(problem))) from problem

    def _gone(self, why: str) -> str:
        return (
            f"rank {self.rank} of {self.size}: another rank died or did not answer in time ({why}; "
            "--rank-timeout); run the same command to go on from the last checkpoint"
        )

    def arrived(self, value: torch.Tensor) -> torch.Tensor:
        """`value`, when the device has it. Raises LongRecipeError when it does not come in time, as
        where another rank is gone: reading it would wait for ever."""
        if self.size == 1 or not value.is_cuda:
            return value
        event, until = torch.cuda.Event(), time.monotonic() + self.seconds
        event.record()
        while not event.query():
            if time.monotonic() > until:
                raise LongRecipeError(self._gone("the device still waits for it"))
            time.sleep(1e-3)
        return value

    def see(self, path: Path) -> None:
        """Wait for a file of another rank until this one's host sees it. All call."""

        def look() -> None:
            until = time.monotonic() + min(_SEEN_WITHIN, self.seconds / 2)  # others wait for this
            while not path.exists():
                if self.size == 1 or time.monotonic() > until:
                    raise LongRecipeError(
                        f"{path} of another rank is not here; --out must be a folder that all "
                        "hosts share"
                    )
                time.sleep(0.05)

        self.agree(look)

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

    def _split(self) -> SplitRows | None:
        return SplitRows(self.context_rank, self.context, self.group) if self.context > 1 else None

    @contextmanager
    def splitting(self) -> Iterator[None]:
        """Rows are split over the ranks that share them; in backward passes too."""
        with splitting(self._split()):
            yield


ALONE = Ranks()


def _nothing() -> Batch:
    """Tokens of which none counts."""
    ids = torch.zeros((1, 2), dtype=torch.int32)
    return Batch(ids, ids, [2], torch.zeros(2), [])


# Parameters that are sharded


def shard(model: Any, ranks: Ranks, fill: Callable[[nn.Module], None]) -> Any:
    """Shard a causal model over all ranks, a layer at a time, each after `fill` made its
    parameters: no more than one is ever whole. Its forward becomes forward(function, ...), which
    is function(model, ...).

    Gradients are added up over the ranks in fp32.
    """
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
        if full.is_cuda:  # or others run ahead of the first, which writes it, and wait too long
            torch.cuda.synchronize()
        yield name, full.cpu() if dist.get_rank() == 0 else full.new_empty(0)


# Beginning and end


@contextmanager
def many(context: int, data: int | None, device: str, seconds: float) -> Iterator[Ranks]:
    """The ranks that torchrun started, or this process alone.

    context, data: ranks that share a row, and among which rows are dealt out. seconds: after which
    one that does not answer is given up. Raises LongRecipeError for numbers that do not fit.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if context * (data or 1) > size or size % context or data not in (None, size // context):
        _refuse(
            f"--context-parallel {context}"
            + (f" times --data-parallel {data}" if data else "")
            + f" does not make the number of ranks, {size}; start so many with: torchrun "
            f"--nproc-per-node {context * (data or 1)} -m lrtrain run ..."
        )
    if size == 1:
        yield ALONE
        return
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        _refuse(f"many ranks need torch 2.9 or newer, not {torch.__version__}; update it")
    where, limit = _device(device), timedelta(seconds=seconds)
    gpu = where if where.type == "cuda" else None
    try:
        store, rank, _ = next(rendezvous("env://", timeout=2 * limit))
        _check_devices(store, rank, size, where)
        dist.init_process_group(
            "gloo" if gpu is None else "nccl",
            store=store,
            rank=rank,
            world_size=size,
            timeout=2 * limit,
            device_id=gpu,
        )
        control = dist.new_group(backend="gloo", timeout=limit)
    except (RuntimeError, ValueError) as problem:
        raise LongRecipeError(
            f"the {size} ranks did not find each other ({one_line(problem)}); start them with "
            "torchrun, and name the network between hosts in GLOO_SOCKET_IFNAME"
        ) from None
    yield _ranks(size, context, where, control, limit)
    # Not after an error: others may be in the middle of something, for which it would wait.
    dist.destroy_process_group()


def _check_devices(store: Any, rank: int, size: int, device: torch.device) -> None:
    """Refuse GPUs on some ranks only: those of NCCL would wait for those of gloo, till the end."""
    store.set(f"device/{rank}", f"{device.type} {socket.gethostname()}")
    said = [one.decode().split() for one in store.multi_get([f"device/{x}" for x in range(size)])]
    without = sorted({host for kind, host in said if kind == "cpu"})
    if not without or all(kind == "cpu" for kind, _ in said):
        return
    store.set(f"heard/{rank}", "")
    if rank == 0:  # the store may be this one's, and go with it
        store.wait([f"heard/{other}" for other in range(size)])
    _refuse(
        f"torch sees no GPU on {', '.join(without)}, for other ranks it does; mend that (what does "
        "nvidia-smi say there?), leave the host out, or train on CPUs with --device cpu"
    )


def _refuse(message: str) -> NoReturn:
    """What is wrong for all ranks is said by the first."""
    if speaks():
        raise LongRecipeError(message)
    end_after_the_first()


@contextmanager
def pretended(size: int, context: int) -> Iterator[Ranks]:
    """The first of ranks that are not there: collectives give what they find (`lrtrain.memory`)."""
    if size == 1:
        yield ALONE
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield _ranks(size, context, _CPU, None, timedelta(1))
    finally:
        dist.destroy_process_group()


def _ranks(size: int, context: int, device: torch.device, control: Any, limit: timedelta) -> Ranks:
    """This one, in the groups of torch's process group."""
    rank, mesh = dist.get_rank(), DeviceMesh(device.type, list(range(size)))
    group = None
    for start in range(0, size, context) if context > 1 else ():
        made = dist.new_group(list(range(start, start + context)), timeout=2 * limit)
        group = made if start == rank - rank % context else group  # all ranks make all of them
    return Ranks(rank, size, context, device, mesh, group, control, limit.total_seconds())


def _device(name: str) -> torch.device:
    """Each rank's own."""
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        _refuse(f"--device {name}: of many ranks each has its own; choose auto or cpu")
    if number >= torch.cuda.device_count():
        raise LongRecipeError(
            f"there are {torch.cuda.device_count()} GPUs here and more ranks; start one rank a GPU"
        )
    torch.cuda.set_device(number)
    torch.set_float32_matmul_precision("highest")  # see `lrtrain.model.choose_device`
    return torch.device("cuda", number)
