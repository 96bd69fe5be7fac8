"""How much memory a training step takes, found by running it on tensors that have no data.

The real code (model, attention, loss, backward, gradient hooks) runs on fake tensors, which have
shapes and no bytes, while a ledger follows which of them are alive. So the prediction follows the
code, of transformers too, for any shape and in seconds: what needs 200 GB is planned on a laptop.
Of many ranks the first one's step runs, and what it would get from the others is made up. Not seen
are the scratch memory of kernels, what an allocator loses between blocks, and the buffers of NCCL
(1 or 2 GB, of many ranks).
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrtrain.activations import Activations, prepare
from lrtrain.attention import IMPLEMENTATION, register, using
from lrtrain.distributed import Ranks, pretended, shard
from lrtrain.host_memory import is_being_made
from lrtrain.loader import Batch
from lrtrain.loss import CHUNK_TOKENS, piece_loss
from lrtrain.optim import EXACT, AdamW, Storage, stored_bytes
from lrtrain.sharded import local


@dataclass(frozen=True)
class StepMemory:
    """Bytes in a step that is not the first.

    masters, moments: on the device, unless they are offloaded. working: the most that is alive at
    once on the device of activations, logits and temporaries. host: what is kept in host memory,
    beside a process that has loaded torch.
    """

    parameters: int
    masters: int
    moments: int
    gradients: int
    working: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the device."""
        return self.parameters + self.masters + self.moments + self.gradients + self.working


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors that are made inside it and are still alive.

    Those that were there before are seen first as an input, and not counted. now, peak: of the
    device; host_peak: of what `lrtrain.host_memory` makes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.host_now = self.host_peak = 0
        self._known = dict[int, tuple[int, int]]()  # bytes on the device, on the host

    def __enter__(self) -> "LiveBytes":
        entered: LiveBytes = super().__enter__()
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            """How FSDP2 gives back what it gathered, and gets it again."""
            done = self._resize(storage, size)
            if self._known.get(storage._cdata, (0, 0))[1] == 0:
                self._take(storage, size, 0)
            return done

        torch.UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]
        return entered

    def __exit__(self, *problem: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*problem)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for storage in self._unknown((args, kwargs)):
            self._take(storage, 0, 0)
        out = func(*args, **(kwargs or {}))
        for storage in self._unknown(out):
            size = storage.nbytes()
            self._take(storage, *((0, size) if is_being_made() else (size, 0)))
        return out

    def _unknown(self, tree: Any) -> Iterator[torch.UntypedStorage]:
        """Storages that were not seen before."""
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, DTensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    yield storage

    def _take(self, storage: torch.UntypedStorage, size: int, host_size: int) -> None:
        """A storage has these sizes now, whatever it had before."""
        key = storage._cdata
        if key not in self._known:
            weakref.finalize(storage, self._remove, key)
        before = self._known.get(key, (0, 0))
        self._known[key] = size, host_size
        self.now += size - before[0]
        self.host_now += host_size - before[1]
        self.peak = max(self.peak, self.now)
        self.host_peak = max(self.host_peak, self.host_now)

    def _remove(self, key: int) -> None:
        size, host_size = self._known.pop(key)
        self.now -= size
        self.host_now -= host_size


class _Flash(torch.autograd.Function):
    """What flash attention keeps and makes, without its arithmetic: FlashAttention-2 adds up the
    gradient of queries in fp32."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Any:
        out = torch.empty_like(query)
        logsumexp = torch.empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        query, key, value, _, _ = ctx.saved_tensors
        in_fp32 = torch.empty_like(query, dtype=torch.float32)
        grads = tuple(torch.empty_like(x) for x in (query, key, value))
        del in_fp32
        return grads


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
) -> torch.Tensor:
    out: torch.Tensor = _Flash.apply(query, key, value)
    return out.transpose(1, 2)


def step_memory(
    config: Any,
    seq_lengths: Sequence[int],
    *,
    dtype: torch.dtype,
    chunk_tokens: int = CHUNK_TOKENS,
    storage: Storage = EXACT,
    activations: Activations | None = None,
    on_gpu: bool = False,
    ranks: int = 1,
    context: int = 1,
) -> StepMemory:
    """The memory of a step with two micro-batches or more, of documents of these lengths each.

    Args:
        config: of a model as `lrtrain.model.load_model` takes it.
        on_gpu: attention as flash kernels do it, and host memory apart from the device's; else as
            on a CPU, where `working` holds what is offloaded too.
        ranks: over which the model is sharded; the figures are those of the one with most.
        context: how many of them share a row.
    """
    from transformers import AutoModelForCausalLM

    register()
    how = activations or Activations()
    planned = Activations(how.checkpointing, how.offload and on_gpu, how.mlp_tokens)
    # A step reads 8 bits into new fp32 as it does what is offloaded; so nobody needs bitsandbytes.
    copied = storage.offload or storage.moments == "8bit"
    alike = Storage(storage.masters, storage.gradients, offload=copied)
    with (
        pretended(ranks, context) as these,
        FakeTensorMode(),
        using(_flash) if on_gpu else nullcontext(),
        these.splitting(),
    ):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=IMPLEMENTATION, dtype=dtype
        )
        model.train()
        if ranks > 1:
            shard(model, these, lambda module: None)
        prepare(model, planned)
        optimizer = AdamW(model, 1e-5, (0.9, 0.95), 0.0, alike)
        with LiveBytes() as live:
            for _ in range(2):  # the second adds to the gradients of the first
                _micro_batch(model, seq_lengths, chunk_tokens, these)
            optimizer.step(1.0, optimizer.gradient_norm(), clip=1.0)
        optimizer.close()
    parameters = optimizer.parameters
    kept = stored_bytes(parameters, storage)
    apart = storage.offload and on_gpu
    return StepMemory(
        parameters=sum(local(parameter).nbytes for parameter in parameters),
        masters=0 if apart else kept.masters,
        moments=0 if apart else kept.moments,
        gradients=kept.gradients,
        working=live.peak - kept.gradients,
        host=live.host_peak + (kept.masters + kept.moments if apart else 0),
    )


def _micro_batch(model: Any, seq_lengths: Sequence[int], chunk_tokens: int, ranks: Ranks) -> None:
    """Forward and backward, as `lrtrain.step` does them."""
    tokens = sum(seq_lengths)
    ids = torch.zeros((1, tokens), dtype=torch.int32)
    piece = ranks.piece(Batch(ids, ids, list(seq_lengths), torch.ones(tokens), []))
    loss = ranks.call(
        model,
        piece_loss,
        piece.input_ids.long(),
        piece.position_ids.long(),
        piece.seq_lengths,
        piece.targets.long(),
        piece.weights,
        1.0,
        chunk_tokens,
    )
    (loss / tokens).backward()
