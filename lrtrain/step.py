"""One optimizer step's loss and gradients, whatever way its rows are split into micro-batches.

Nothing here waits for the device: the caller does when it reads the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lrtrain.checkpoint import random_state, set_random_state
from lrtrain.distributed import ALONE, Ranks
from lrtrain.loader import Batch
from lrtrain.loss import CHUNK_TOKENS, piece_loss
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
    ranks: Ranks = ALONE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum(w * CE) / sum(w) over all batches of all ranks, and its gradient's norm: fp32 scalars.

    The gradient is left in the optimizer's buffers. Raises Stopped between two micro-batches when
    `stop` says so on any rank; the optimizer's state is then as it was, and what is drawn at random
    next, as where gradients are added up in bf16.
    """
    before = list(random_state())
    batches, total_weight = ranks.in_step(batches)
    total = torch.zeros((), device=options.device)
    for batch in batches:
        if ranks.any(stop()):
            for name, state in before:
                set_random_state(name, state)
            raise Stopped
        loss = batch_loss(model, batch, options, ranks) / total_weight
        loss.backward()
        total += loss.detach()
    return ranks.sum(total), ranks.norm(optimizer.gradient_norm())


def batch_loss(
    model: Any, batch: Batch, options: LossOptions, ranks: Ranks = ALONE
) -> torch.Tensor:
    """sum(w * CE) of a flat batch in host memory, or of this rank's piece of it."""
    device, piece = options.device, ranks.piece(batch)
    # Looked for here: the device would make the host wait. None: all of them count.
    counted = torch.nonzero(piece.weights)[:, 0] if piece.weights.eq(0).any() else None
    if counted is not None and device.type == "cuda":
        counted = counted.pin_memory().to(device, non_blocking=True)
    loss: torch.Tensor = ranks.call(
        model,
        piece_loss,
        piece.input_ids.to(device, non_blocking=True).long(),
        piece.position_ids.to(device, non_blocking=True).long(),
        piece.seq_lengths,
        piece.targets.to(device, non_blocking=True).long(),
        piece.weights.to(device, non_blocking=True),
        options.attention_scale,
        options.chunk_tokens,
        counted,
    )
    return loss
