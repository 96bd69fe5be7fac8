"""How a model reads a window: after all that is before each token, or after the last K tokens.

Both give float32 [2, n], log P(token) in nats and the token's own logit, NaN where not measured;
they raise FloatingPointError where a logit is not finite. With a tokenizer that adds a
start-of-text token, every context begins with it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from lrtrain.loss import chunked_log_probs


class Block(NamedTuple):
    """Targets [first, stop) of a window, read after its tokens from `start` on."""

    start: int
    first: int
    stop: int


def short_blocks(tokens: int, short_context: int, stride: int) -> list[Block]:
    """LongPPL's windowing: `stride` targets share a context that starts K before the first.

    Targets whose short context would start where the window does are left out: it is their long
    context, and the long reading has them.
    """
    starts = range(stride, tokens - short_context, stride)
    return [
        Block(start, start + short_context, min(start + short_context + stride, tokens))
        for start in starts
    ]


def read_whole(model: Any, ids: np.ndarray, bos_id: int | None, chunk_tokens: int) -> np.ndarray:
    """Each token after all that is before it. ids: int32 [n]."""
    found = np.full((2, len(ids)), np.nan, np.float32)
    first = 1 if bos_id is None else 0
    found[:, first:] = _read(model, [(ids, first)], bos_id, chunk_tokens)
    return found


def read_short(
    model: Any,
    ids: np.ndarray,
    bos_id: int | None,
    blocks: Sequence[Block],
    batch_tokens: int,
    chunk_tokens: int,
) -> np.ndarray:
    """The targets of each block after its context alone; so many tokens at a time."""
    found = np.full((2, len(ids)), np.nan, np.float32)
    for batch in _batches(blocks, batch_tokens):
        contexts = [(ids[start:stop], first - start) for start, first, stop in batch]
        targets = slice(batch[0].first, batch[-1].stop)  # blocks follow each other
        found[:, targets] = _read(model, contexts, bos_id, chunk_tokens)
    return found


def _batches(blocks: Sequence[Block], batch_tokens: int) -> Iterator[list[Block]]:
    batch: list[Block] = []
    tokens = 0
    for block in blocks:
        length = block.stop - block.start
        if batch and tokens + length > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(block)
        tokens += length
    if batch:
        yield batch


@torch.inference_mode()
def _read(
    model: Any,
    contexts: Sequence[tuple[np.ndarray, int]],
    bos_id: int | None,
    chunk_tokens: int,
) -> np.ndarray:
    """What the model says of the tokens from `first` on of each (ids, first), one after another.

    The contexts are the documents of one flat row: attention and positions end with each.
    """
    lead = [] if bos_id is None else [bos_id]
    parts = [np.concatenate([lead, ids]).astype(np.int64) for ids, _ in contexts]
    lengths = [len(part) for part in parts]
    flat = torch.from_numpy(np.concatenate(parts)).to(model.device)
    positions = np.concatenate([np.arange(length) for length in lengths])
    hidden = model.model(
        input_ids=flat[None],
        position_ids=torch.from_numpy(positions)[None].to(model.device),
        seq_lengths=lengths,
        use_cache=False,
    ).last_hidden_state[0]
    starts = np.cumsum([0, *lengths])
    targets = torch.from_numpy(
        np.concatenate(
            [
                np.arange(start + first + len(lead), start + length)
                for start, length, (_, first) in zip(starts[:-1], lengths, contexts, strict=True)
            ]
        )
    ).to(model.device)
    found = chunked_log_probs(
        hidden[targets - 1], model.lm_head.weight, flat[targets], chunk_tokens
    )
    return np.asarray(found.cpu().numpy())
