"""Weighted cross-entropy over a large vocabulary, one chunk of logits at a time.

Shape legend: N targets, D hidden width, V vocabulary.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from lrtrain.finite import need_finite

CHUNK_TOKENS = 1024
_VOCABULARY_SLICE = 16_384


class _ChunkedCrossEntropy(torch.autograd.Function):
    """sum(w * CE), with the gradients computed along with the loss.

    The logits of a chunk are needed for the loss and for the gradients; doing both at once means
    that no logits outlive their chunk and none are computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        chunk_tokens: int,
        differentiate: bool,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_hidden = differentiate and hidden.requires_grad
        needs_weight = differentiate and weight.requires_grad
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        # In fp32: the sum over chunks would lose small contributions in bf16.
        grad_weight = (
            torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            if needs_weight
            else None
        )
        for start in range(0, len(targets), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            loss, grad = _chunk(hidden[part], weight, targets[part], weights[part].float())
            total += loss
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight += (grad.T @ hidden[part]).float()
            del grad  # before the next chunk's logits are made
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        outer = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * outer.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * outer).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )


def _chunk(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted loss and its gradient [n, V] for the logits, made in the buffer of the logits.

    torch's logsumexp and softmax would each make another [n, V] on their way.
    """
    logits = (hidden @ weight.T).float()
    logits.sub_(logits.amax(-1, keepdim=True))
    own = logits.gather(1, targets[:, None])[:, 0]
    sums = logits.exp_().sum(-1)
    loss = ((sums.log() - own) * weights).sum()
    grad = logits.mul_((weights / sums)[:, None])
    grad[torch.arange(len(targets), device=grad.device), targets] -= weights
    return loss, grad.to(hidden.dtype)


def chunked_weighted_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    chunk_tokens: int = CHUNK_TOKENS,
) -> torch.Tensor:
    """sum_i weights[i] * CE(hidden[i] @ weight.T, targets[i]), a float32 scalar.

    Args:
        hidden: [N, D]. weight: [V, D], the output embedding, in the same dtype.
        targets: int64 [N]. weights: float32 [N]; targets of weight 0 cost as much as the others.
        chunk_tokens: at most so many rows of logits, [chunk_tokens, V] in float32, are alive.
    The gradient flows to `hidden` and `weight`, never to `weights`.
    """
    loss = _ChunkedCrossEntropy.apply(
        hidden, weight, targets, weights, chunk_tokens, torch.is_grad_enabled()
    )
    assert isinstance(loss, torch.Tensor)
    return loss


@cache
def _sums_stay_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch multiplies such matrices here to sums in fp32, which tensor cores do at
    the speed of bf16; fp32 matrices take them fifteen times as long."""
    try:
        one = torch.ones((16, 16), dtype=dtype, device=device)
        return torch.mm(one, one, out_dtype=torch.float32).dtype == torch.float32
    except (TypeError, RuntimeError):  # an older one, or another device
        return False


def _exact_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[n, V] in float32: bf16 would round logits near 20 to steps of an eighth."""
    if hidden.dtype == torch.float32:
        return hidden @ weight.T
    if hidden.is_cuda and _sums_stay_wide(hidden.device, hidden.dtype):
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    wide = hidden.float()
    logits = torch.empty((len(hidden), len(weight)), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(weight), _VOCABULARY_SLICE):  # no copy of all weights in float32
        part = slice(start, start + _VOCABULARY_SLICE)
        torch.mm(wide, weight[part].float().T, out=logits[:, part])
    return logits


@torch.inference_mode()
def chunked_log_probs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    chunk_tokens: int = CHUNK_TOKENS,
) -> torch.Tensor:
    """log P(target) in nats and the target's own logit: float32 [2, N].

    Args:
        hidden: [N, D]. weight: [V, D], the output embedding. targets: int64 [N].
        chunk_tokens: at most so many rows of logits, [chunk_tokens, V] in float32, are alive.
    Raises FloatingPointError where one is not finite, see `lrtrain.finite`.
    """
    found = torch.empty((2, len(targets)), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        logits = _exact_logits(hidden[part], weight)
        own = logits.gather(1, targets[part, None])[:, 0]
        found[0, part] = own - logits.logsumexp(-1)
        found[1, part] = own
    need_finite(found)
    return found


def training_loss(
    model: nn.Module,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    seq_lengths: Sequence[int],
    weights: torch.Tensor,
    attention_scale: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """sum(w * CE) of a flat row: `weights[i]` belongs to token i as the target.

    Args:
        input_ids, position_ids: int64 [1, S]. weights: float32 [S], 0 at each document's first
            token. seq_lengths: the documents' lengths, summing to S.
        counted: int64 [N], where weights[1:] are not 0: the others cost nothing then.
    """
    return piece_loss(
        model,
        input_ids,
        position_ids,
        seq_lengths,
        input_ids[0, 1:],
        weights[1:],
        attention_scale,
        chunk_tokens,
        counted,
    )


def piece_loss(
    model: nn.Module,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    seq_lengths: Sequence[int],
    targets: torch.Tensor,
    weights: torch.Tensor,
    attention_scale: float = 1.0,
    chunk_tokens: int = CHUNK_TOKENS,
    counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """sum(w * CE) of s tokens: token i predicts `targets[i]`, which weighs `weights[i]`.

    Args:
        input_ids, position_ids: int64 [1, s]. seq_lengths: of the documents of the whole row, of
            which these may be a rank's tokens.
        targets: int64 [n], weights: float32 [n]; tokens from n on predict nothing.
        counted: int64 [N], where weights are not 0: the others cost nothing then.
    """
    causal: Any = model
    hidden = causal.model(
        input_ids=input_ids,
        position_ids=position_ids,
        seq_lengths=seq_lengths,
        attention_scale=attention_scale,
        use_cache=False,
    ).last_hidden_state[0, : len(targets)]
    if counted is not None:
        hidden, targets, weights = hidden[counted], targets[counted], weights[counted]
    return chunked_weighted_cross_entropy(
        hidden, causal.lm_head.weight, targets, weights, chunk_tokens
    )
