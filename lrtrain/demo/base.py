"""A tiny base model that really retrieves inside its short window, trained in about a minute.

A two-layer transformer learns to look back (induction) from periodic sequences of random symbols:
only those who copy predict them. Planted codes and text alone teach it nothing in any time a demo
has. Sequences grow from 32 to the whole window, which makes it start sooner.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrdata.progress import progress
from lrdata.tokenizer import Tokenizer
from lrtrain.attention import IMPLEMENTATION, register
from lrtrain.demo.corpus import ANSWER, CODE_PREFIX, CUE, SYMBOLS
from lrtrain.loss import training_loss
from lrtrain.model import save_model
from lrtrain.optim import MasterAdamW, warmup_then

WINDOW = 256
_LENGTHS = (32, 64, 128, 256)
_STEP_TOKENS = 4096
_SHORTEST = 8
_PERIODIC, _PLANTED = 0.6, 0.2  # the rest is text


@dataclass(frozen=True)
class Pieces:
    """Token ids that sequences are made of."""

    text: np.ndarray  # int32 [n]: training text
    symbols: np.ndarray  # int32 [62]
    prefix: np.ndarray  # int32: "\nCode:"
    suffix: np.ndarray  # int32: ".\n"

    @classmethod
    def encode(cls, tokenizer: Tokenizer, texts: list[str]) -> "Pieces":
        ids, starts = tokenizer.encode(["\n" + CODE_PREFIX, ".\n", *SYMBOLS])
        parts = [ids[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
        return cls(
            text=np.asarray(tokenizer.encode(texts)[0]),
            symbols=np.concatenate(parts[2:]),
            prefix=parts[0],
            suffix=parts[1],
        )


def sequence(draw: np.random.Generator, pieces: Pieces, length: int) -> tuple[np.ndarray, int]:
    """(ids [length], how many of the first tokens are not learned)."""
    kind = draw.random()
    if kind < _PERIODIC:
        period = int(draw.integers(_SHORTEST, length // 2 + 1))
        return np.resize(draw.choice(pieces.symbols, period), length), period
    start = int(draw.integers(len(pieces.text) - length))
    ids = pieces.text[start : start + length].copy()
    if kind < _PERIODIC + _PLANTED:
        _plant(draw, pieces, ids)
    return ids, 0


def _plant(draw: np.random.Generator, pieces: Pieces, ids: np.ndarray) -> None:
    """Write codes over the text, each of them twice."""
    size = len(pieces.prefix) + CUE + ANSWER + len(pieces.suffix)
    slots = len(ids) // size
    order = draw.permutation(slots)[: 2 * max(1, slots // 4)]
    for first, second in zip(order[::2].tolist(), order[1::2].tolist(), strict=False):
        values = draw.choice(pieces.symbols, CUE + ANSWER)
        line = np.concatenate([pieces.prefix, values, pieces.suffix])
        for slot in (first, second):
            ids[slot * size : (slot + 1) * size] = line


def make_model(vocabulary: int, end_of_text: int) -> Any:
    """2 layers, 128 wide, 4 heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    register()
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_of_text,
        attn_implementation=IMPLEMENTATION,
    )
    return LlamaForCausalLM(config)


def train_base(
    tokenizer_folder: Path, texts: list[str], out: Path, seed: int, steps: int = 480
) -> dict[str, Any]:
    """Train the base model and save it to `out`; returns its tokens and last loss."""
    tokenizer = Tokenizer.load(str(tokenizer_folder))
    pieces = Pieces.encode(tokenizer, texts)
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = make_model(tokenizer.vocab_size, tokenizer.eot_id)
    optimizer = MasterAdamW(model, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    factor = warmup_then("cosine", steps, 0.05)
    losses = []
    with progress("base", steps) as task:
        for step in range(steps):
            length = _LENGTHS[min(len(_LENGTHS) - 1, step * 2 * len(_LENGTHS) // steps)]
            value = _step(model, draw, pieces, length)
            optimizer.step(factor(step), optimizer.gradient_norm(), 1.0)
            losses.append(value)
            task.advance(note=f"{length} tokens, loss {np.mean(losses[-10:]):.3f}")
    card = "# The demo's base model\n\nTiny, trained in a minute to retrieve inside 256 tokens.\n"
    save_model(model, str(tokenizer_folder), out, target_len=None, card=card)
    return {"tokens": steps * _STEP_TOKENS, "loss": float(np.mean(losses[-10:]))}


def _step(model: Any, draw: np.random.Generator, pieces: Pieces, length: int) -> float:
    count = _STEP_TOKENS // length
    ids = np.empty((count, length), np.int64)
    weights = np.ones((count, length), np.float32)
    for row in range(count):
        ids[row], unlearned = sequence(draw, pieces, length)
        weights[row, : max(1, unlearned)] = 0.0
    loss = training_loss(
        model,
        torch.from_numpy(ids.reshape(1, -1)),
        torch.arange(length).repeat(count)[None],
        [length] * count,
        torch.from_numpy(weights.reshape(-1)),
    ) / float(weights.sum())
    loss.backward()
    return float(loss)
