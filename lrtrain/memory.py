"""How much memory a training step takes, found by running it on tensors that have no data.

The real code (model, attention, loss, backward, gradient hooks) runs on fake tensors, which have
shapes and no bytes, while a ledger follows which of them are alive. So the prediction follows the
code, of transformers too, for any shape and in seconds: what needs 200 GB is planned on a laptop.
Not seen are the scratch memory of kernels and what an allocator loses between blocks.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrtrain.attention import IMPLEMENTATION, register
from lrtrain.loss import cross_entropy_of_all
from lrtrain.model import enable_checkpointing
from lrtrain.optim import MasterAdamW


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device in a step that is not the first."""

    parameters: int
    masters: int
    """fp32 copies of parameters below fp32."""
    moments: int
    working: int
    """Most that is alive at once of gradients, activations, logits and temporaries."""

    @property
    def total(self) -> int:
        return self.parameters + self.masters + self.moments + self.working


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors that are made inside it and are still alive.

    `but`: tensors that were there before, whose views are nothing new.
    """

    def __init__(self, but: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in but}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def step_memory(
    config: Any,
    seq_lengths: Sequence[int],
    *,
    dtype: torch.dtype,
    checkpointing: bool,
    chunk_tokens: int,
) -> StepMemory:
    """The memory of a step with two micro-batches or more, of documents of these lengths each.

    Args:
        config: of a model as `lrtrain.model.load_model` takes it.
    """
    from transformers import AutoModelForCausalLM

    register()
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=IMPLEMENTATION, dtype=dtype
        )
        model.train()
        if checkpointing:
            enable_checkpointing(model)
        optimizer = MasterAdamW(model, 1e-5, (0.9, 0.95), 0.0)
        count = sum(parameter.numel() for parameter in optimizer.parameters)
        with LiveBytes(but=[*model.parameters(), *model.buffers()]) as live:
            for _ in range(2):  # the second adds to the gradients of the first
                _micro_batch(model, seq_lengths, chunk_tokens)
        optimizer.close()
    own = sum(parameter.nbytes for parameter in optimizer.parameters)
    return StepMemory(
        parameters=own,
        masters=0 if dtype == torch.float32 else 4 * count,
        moments=8 * count,
        working=live.peak,
    )


def _micro_batch(model: Any, seq_lengths: Sequence[int], chunk_tokens: int) -> None:
    """Forward and backward, as `lrtrain.loop` does them."""
    (_loss(model, seq_lengths, chunk_tokens) / sum(seq_lengths)).backward()


def _loss(model: Any, seq_lengths: Sequence[int], chunk_tokens: int) -> torch.Tensor:
    """As `lrtrain.loss.training_loss`, which looks at the values of weights."""
    tokens = sum(seq_lengths)
    ids = torch.zeros((1, tokens), dtype=torch.int64)
    hidden = model.model(
        input_ids=ids,
        position_ids=torch.zeros_like(ids),
        seq_lengths=list(seq_lengths),
        attention_scale=1.0,
        use_cache=False,
    ).last_hidden_state[0]
    weights = torch.ones(tokens - 1)
    weight: torch.Tensor = model.lm_head.weight
    return cross_entropy_of_all(hidden[:-1], weight, ids[0, 1:], weights, chunk_tokens)
