"""One optimizer step's loss and gradients, whatever way its rows are split into micro-batches.

Nothing here waits for the device: the caller does when it reads the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lrtrain.loader import Batch
from lrtrain.loss import CHUNK_TOKENS, training_loss
from lrtrain.optim import AdamW


class Stopped(Exception):
    """Somebody asked to stop."""


@dataclass(frozen=True)
class LossOptions:
    """How the loss of a row is made."""

    device: torch.device
    attention_scale: float = 1.0
    chunk_tokens: int = CHUNK_TOKENS


def accumulate(
    model: Any,
    batches: Sequence[Batch],
    optimizer: AdamW,
    options: LossOptions,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum(w * CE) / sum(w) over all batches, and the norm of its gradient: fp32 scalars.

    The gradient is left in the optimizer's buffers. Raises Stopped between two micro-batches when
    `stop` says so; the optimizer's state is then as it was.
    """
    total_weight = sum(float(batch.weights.sum()) for batch in batches)
    total = torch.zeros((), device=options.device)
    for batch in batches:
        if stop():
            raise Stopped
        loss = batch_loss(model, batch, options) / total_weight
        loss.backward()
        total += loss.detach()
    return total, optimizer.gradient_norm()


def batch_loss(model: Any, batch: Batch, options: LossOptions) -> torch.Tensor:
    """sum(w * CE) of a flat batch in host memory."""
    device = options.device
    # Looked for here: the device would make the host wait. None: all of them count.
    counted = torch.nonzero(batch.weights[1:])[:, 0] if batch.weights[1:].eq(0).any() else None
    if counted is not None and device.type == "cuda":
        counted = counted.pin_memory().to(device, non_blocking=True)
    return training_loss(
        model,
        batch.input_ids.to(device, non_blocking=True).long(),
        batch.position_ids.to(device, non_blocking=True).long(),
        batch.seq_lengths,
        batch.weights.to(device, non_blocking=True),
        options.attention_scale,
        options.chunk_tokens,
        counted=counted,
    )
