"""Does this model, on this device, compute what training on rows with gaps needs?

Each check raises LongRecipeError when it does not, and else returns what it measured, in words.
They take a few short forward passes: a run makes them before its first step, `lrtrain doctor` on
its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from lrdata.errors import LongRecipeError
from lrtrain.loss import chunked_weighted_cross_entropy

_TOKENS, _CHANGED, _GAP = 64, 3, 777
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative, of sums in another order; bf16 has eight bits."""


def attention_crosses_gaps(model: Any) -> str:
    """A token after a gap in the position ids sees the tokens before it."""
    positions = torch.arange(_TOKENS)
    positions[_TOKENS // 2 :] += _GAP
    change = _change(model, positions, [_TOKENS])[_TOKENS // 2 :].max()
    if not change > 0:
        raise LongRecipeError(
            "attention stops at a gap in the position ids: rows would teach nothing across it; "
            "update longrecipe or choose another --attention"
        )
    return f"a changed token moves the states after a gap of {_GAP} by {change:.1e}"


def attention_stops_at_documents(model: Any) -> str:
    """A token of the next document in a row does not see those of the one before."""
    half = _TOKENS // 2
    positions = torch.arange(half).repeat(2)
    change = _change(model, positions, [half, half])
    if change[half:].any() or not change[_CHANGED + 1 : half].any():
        raise LongRecipeError(
            "attention does not stop where the documents of a row end; update longrecipe or choose "
            "another --attention"
        )
    return "a changed token moves nothing in the document after its own"


@torch.no_grad()
def chunked_loss_is_plain(model: Any, chunk_tokens: int = 16) -> str:
    """The loss in chunks of logits is torch's cross-entropy of all of them."""
    ids = _ids(model)
    hidden = _states(model, ids, torch.arange(_TOKENS), [_TOKENS])
    weight = model.lm_head.weight
    weights = torch.linspace(0, 2, _TOKENS - 1, device=ids.device)
    ours = chunked_weighted_cross_entropy(hidden[:-1], weight, ids[1:], weights, chunk_tokens)
    plain = F.cross_entropy((hidden[:-1] @ weight.T).float(), ids[1:], reduction="none") @ weights
    difference = float((ours - plain).abs() / plain.abs())
    if not difference < _TOLERANCE.get(weight.dtype, 1e-4):
        raise LongRecipeError(
            f"the loss in chunks differs from torch's cross-entropy by {difference:.1e} of it; "
            "report it with the versions of torch and transformers"
        )
    return f"it differs from torch's cross-entropy by {difference:.1e} of it"


@torch.no_grad()
def _change(model: Any, positions: torch.Tensor, seq_lengths: Sequence[int]) -> torch.Tensor:
    """How much one changed token moves the last hidden state of each token: float32 [S]."""
    ids = _ids(model)
    other = ids.clone()
    other[_CHANGED] = (other[_CHANGED] + 1) % model.config.vocab_size
    one, two = (_states(model, x, positions, seq_lengths) for x in (ids, other))
    if not (one.isfinite().all() and two.isfinite().all()):
        raise LongRecipeError(
            "the model's hidden states are not finite on plain tokens: its weights hold NaN or "
            "infinity, or overflow in this dtype; get the model anew or use --dtype fp32"
        )
    return (one.float() - two.float()).abs().amax(-1).cpu()


def _ids(model: Any) -> torch.Tensor:
    """Some tokens, the same each time: int64 [S]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (_TOKENS,), generator=generator)
    return ids.to(model.device)


def _states(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, seq_lengths: Sequence[int]
) -> torch.Tensor:
    """The last hidden states [S, D]."""
    out: torch.Tensor = model.model(
        input_ids=ids[None],
        position_ids=positions[None].to(ids.device),
        seq_lengths=list(seq_lengths),
        use_cache=False,
    ).last_hidden_state[0]
    return out
