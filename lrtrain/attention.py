"""Attention over explicit documents: `seq_lengths` says where they end, position ids never do.

transformers reads every jump in `position_ids` as the start of a new packed document and silently
cuts attention there: a row with gaps would teach nothing across them. So the trainer registers its
own attention function, for which transformers makes no mask, and passes the lengths of the row's
documents with every call:

    model(input_ids, position_ids=..., seq_lengths=[9824], attention_scale=1.0, use_cache=False)

Shape legend: B = 1 (rows are flat), Hq / Hkv query and key-value heads, S tokens, D head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from lrdata.errors import LongRecipeError
from lrtrain.attention_backends import (
    BACKENDS,
    NOT_SPLIT,
    ON_CPU,
    Backend,
    load_backend,
    parts,
    sdpa,
)
from lrtrain.attention_trials import Heads, fastest
from lrtrain.rope import head_dim_of

IMPLEMENTATION = "longrecipe"
_CPU = torch.device("cpu")

_chosen: Backend = sdpa


def choose_backend(
    name: str,
    heads: Heads | None = None,
    device: torch.device = _CPU,
    dtype: torch.dtype = torch.float32,
    split: bool = False,
) -> str:
    """Choose the backend of all later calls; returns its name, with what there is to say of others.

    `auto` is the fastest that is right on this device for such `heads`, or two, the second for rows
    of several documents: on a GPU they are tried, with `split` also on pieces of rows.
    Raises LongRecipeError for one that is unknown or not installed.
    """
    global _chosen
    problems = list[str]()
    if name == "auto":
        name, problems = ("sdpa", []) if heads is None else fastest(heads, device, dtype, split)
    elif device.type == "cpu" and set(parts(name)) & (set(BACKENDS) - set(ON_CPU)):
        raise LongRecipeError(f"--attention {name} needs a GPU; choose {', '.join(ON_CPU)}")
    if split and set(parts(name)) & set(NOT_SPLIT):
        raise LongRecipeError(f"--attention {name} cannot take a row in pieces; choose auto")
    _chosen = load_backend(name)
    return f"{name} ({'; '.join(problems)})" if problems else name


class Split(Protocol):
    """Attention of rows that are split over `ranks` of them: with a rank's own queries, keys and
    values, the documents of the whole row, and a backend for whatever it needs of it."""

    ranks: int

    def __call__(
        self,
        backend: Backend,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        seq_lengths: Sequence[int],
        scale: float,
    ) -> torch.Tensor: ...


_split: Split | None = None


@contextmanager
def splitting(split: Split | None) -> Iterator[None]:
    """Rows are split inside; None: they are whole."""
    global _split
    before, _split = _split, split
    try:
        yield
    finally:
        _split = before


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """Compute attention with a backend of one's own inside."""
    global _chosen
    before, _chosen = _chosen, backend
    try:
        yield
    finally:
        _chosen = before


def heads_of(config: Any) -> Heads:
    """The heads of a model by its config."""
    return Heads(config.num_attention_heads, config.num_key_value_heads, head_dim_of(config))


def packed_causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seq_lengths: Sequence[int],
    scale: float,
    backend: Backend,
    split: Split | None = None,
) -> torch.Tensor:
    """Causal attention inside each document of a flat row.

    Args:
        query: [1, Hq, S, D]. key, value: [1, Hkv, S, D], Hq a multiple of Hkv.
        seq_lengths: lengths of the documents, summing to S.
        scale: factor on the logits.
        split: the row is split over ranks, S are this one's tokens of it, and seq_lengths sum to
            those of all.
    Returns:
        [1, S, Hq, D].
    """
    if query.shape[0] != 1:
        raise LongRecipeError(f"rows are flat: a batch of 1 is expected, not {query.shape[0]}")
    tokens = query.shape[2] * (1 if split is None else split.ranks)
    if sum(seq_lengths) != tokens or key.shape[2] != query.shape[2]:
        raise LongRecipeError(
            f"seq_lengths sum to {sum(seq_lengths)}, the row has {tokens} tokens and "
            f"{key.shape[2]} keys: documents must cover the row, without a cache"
        )
    if split is not None:
        return split(backend, query, key, value, seq_lengths, scale)
    return backend(query, key, value, seq_lengths, scale)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    seq_lengths: Sequence[int] | None = None,
    attention_scale: float = 1.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer."""
    if seq_lengths is None:
        raise LongRecipeError("the model was called without seq_lengths: documents are explicit")
    if dropout:
        raise LongRecipeError("attention_dropout must be 0")
    scale = (query.shape[-1] ** -0.5 if scaling is None else scaling) * attention_scale
    return packed_causal_attention(query, key, value, seq_lengths, scale, _chosen, _split), None


def register() -> None:
    """Make `attn_implementation="longrecipe"` known to transformers. Idempotent.

    No mask function is registered: transformers makes no mask then, and does not look through the
    position ids for where one would begin, for which it would wait for the device.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attention)
