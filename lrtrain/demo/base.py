"""A tiny base model that really retrieves inside its short window, trained in about a minute.

A two-layer transformer learns to look back (induction) from periodic sequences of random symbols:
only those who copy predict them. Planted codes and text alone teach it nothing in any time a demo
has. Sequences grow from 32 to the whole window, which makes it start sooner.
"""

import itertools
from collections.abc import Sequence
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
_STEP_TOKENS = 4096


@dataclass(frozen=True)
class Phase:
    """Steps on sequences of one length; `drills` of them periodic, `planted` text with codes."""

    length: int
    steps: int
    drills: float
    planted: float


PHASES = (
    Phase(32, 90, 1.0, 0.0),
    Phase(64, 90, 1.0, 0.0),
    Phase(128, 120, 1.0, 0.0),
    Phase(WINDOW, 300, 0.4, 0.3),
)


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
        parts = [ids[a:b] for a, b in itertools.pairwise(starts)]
        return cls(
            text=np.asarray(tokenizer.encode(texts)[0]),
            symbols=np.concatenate(parts[2:]),
            prefix=parts[0],
            suffix=parts[1],
        )


def sequence(draw: np.random.Generator, pieces: Pieces, phase: Phase) -> tuple[np.ndarray, int]:
    """(ids [length], how many of the first tokens are not learned)."""
    kind, length = draw.random(), phase.length
    if kind < phase.drills:
        period = int(draw.integers(8, length // 2 + 1))
        return np.resize(draw.choice(pieces.symbols, period), length), period
    start = int(draw.integers(len(pieces.text) - length))
    ids = pieces.text[start : start + length].copy()
    if kind < phase.drills + phase.planted:
        _plant(draw, pieces, ids)
    return ids, 1


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
        initializer_range=0.05,  # at 0.02 or 0.09 induction comes several times later
        bos_token_id=None,
        eos_token_id=end_of_text,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=IMPLEMENTATION)


def train_base(
    tokenizer_folder: Path, texts: list[str], out: Path, seed: int, phases: Sequence[Phase] = PHASES
) -> int:
    """Train the base model and save it to `out`; returns how many tokens it read."""
    tokenizer = Tokenizer.load(str(tokenizer_folder))
    pieces = Pieces.encode(tokenizer, texts)
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = make_model(tokenizer.vocab_size, tokenizer.eot_id)
    optimizer = MasterAdamW(model, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)
    with progress("base", sum(phase.steps for phase in phases)) as task:
        for phase in phases:
            last = phase is phases[-1]
            factor = warmup_then("cosine" if last else "constant", phase.steps, 0.0)
            for step in range(phase.steps):
                loss = _accumulate(model, draw, pieces, phase)
                optimizer.step(factor(step), optimizer.gradient_norm(), clip=1.0)
                task.advance(note=f"{phase.length} tokens, loss {loss:.3f}")
    card = "# The demo's base model\n\nTiny, trained in a minute to retrieve inside 256 tokens.\n"
    save_model(model, str(tokenizer_folder), out, target_len=None, card=card)
    return sum(phase.steps for phase in phases) * _STEP_TOKENS


def _accumulate(model: Any, draw: np.random.Generator, pieces: Pieces, phase: Phase) -> float:
    """Gradients of one step of sequences of a phase; returns the loss."""
    length, count = phase.length, _STEP_TOKENS // phase.length
    ids = np.empty((count, length), np.int64)
    weights = np.ones((count, length), np.float32)
    for row in range(count):
        ids[row], unlearned = sequence(draw, pieces, phase)
        weights[row, :unlearned] = 0.0
    loss = training_loss(
        model,
        torch.from_numpy(ids.reshape(1, -1)),
        torch.arange(length).repeat(count)[None],
        [length] * count,
        torch.from_numpy(weights.reshape(-1)),
    ) / float(weights.sum())
    loss.backward()
    return float(loss.detach())
