"""A tiny base model that really retrieves inside its short window, trained in about a minute.

A two-layer transformer learns to look back (induction) from periodic sequences of random symbols:
only those who copy predict them. Planted codes and text alone teach it nothing in any time a demo
has. Sequences grow from 32 to the whole window, and one head begins where it is needed; both make
it start sooner.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrdata.errors import LongRecipeError
from lrdata.progress import Task, progress
from lrdata.tokenizer import Tokenizer
from lrtrain.attention import IMPLEMENTATION, register
from lrtrain.demo.corpus import ANSWER, CODE_PREFIX, CUE, SYMBOLS
from lrtrain.loss import training_loss
from lrtrain.model import save_model
from lrtrain.optim import AdamW
from lrtrain.schedules import warmup_then

WINDOW = 256
_STEP_TOKENS = 4096


@dataclass(frozen=True)
class Phase:
    """At most `steps` on sequences of one length: `drills` of them periodic, `planted` with codes.

    The rest is text. A phase with an aim ends as soon as that share of symbols is copied in drills
    or retrieved from planted codes; a model that misses it starts again from other weights.
    """

    length: int
    steps: int
    drills: float = 1.0
    planted: float = 0.0
    copied: float | None = None
    retrieved: float | None = None


PHASES = (
    Phase(32, 60),
    Phase(64, 60),
    Phase(128, 600, drills=0.6, planted=0.2, copied=0.9),
    # Those that learn are above 0.7 when it ends; the one that never did was still at 0.4.
    Phase(WINDOW, 100, drills=0.4, planted=0.4, retrieved=0.6),
    Phase(WINDOW, 400, drills=0.4, planted=0.4, retrieved=0.9),
    Phase(WINDOW, 80, drills=0.2, planted=0.3),
)
_ATTEMPTS = 4
_PROBE_EVERY, _PROBES = 20, 32


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


def sequence(
    draw: np.random.Generator, pieces: Pieces, phase: Phase
) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [length], weights float32 [length]): a drill, or text with or without codes."""
    kind, length = draw.random(), phase.length
    if kind < phase.drills:
        make = _motifs if length >= 64 and draw.random() < 0.5 else _periodic
        return make(draw, pieces.symbols, length)
    start = int(draw.integers(len(pieces.text) - length))
    ids = pieces.text[start : start + length].copy()
    if kind < phase.drills + phase.planted:
        return ids, _plant(draw, pieces, ids)
    weights = np.ones(length, np.float32)
    weights[0] = 0.0
    return ids, weights


def _periodic(
    draw: np.random.Generator, symbols: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """A random period again and again; what repeats is learned."""
    period = int(draw.integers(8, min(length // 2, len(symbols)) + 1))
    ids = np.resize(draw.choice(symbols, period, replace=False), length)
    return ids, (np.arange(length) >= period).astype(np.float32)


def _motifs(
    draw: np.random.Generator, symbols: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """A few short runs of symbols in random order: after a symbol or two the rest of one is known.

    Without them some models only learn to look back a whole period, and find no code in a text.
    """
    motifs = [
        draw.choice(symbols, int(draw.integers(4, 13)), replace=False)
        for _ in range(int(draw.integers(2, 3 + length // 32)))
    ]
    ids = np.empty(length, symbols.dtype)
    weights = np.zeros(length, np.float32)
    seen = [False] * len(motifs)
    at = 0
    while at < length:
        which = int(draw.integers(len(motifs)))
        size = min(len(motifs[which]), length - at)
        ids[at : at + size] = motifs[which][:size]
        weights[at + 1 : at + size] = seen[which]
        seen[which] = True
        at += size
    return ids, weights


def _plant(draw: np.random.Generator, pieces: Pieces, ids: np.ndarray) -> np.ndarray:
    """Write codes over the text, each twice; weights: the symbols of the second time are learned.

    The text is not: its loss would drown theirs.
    """
    weights = np.zeros(len(ids), np.float32)
    head = len(pieces.prefix)
    size = head + CUE + ANSWER + len(pieces.suffix)
    pairs = max(1, len(ids) // size // 3)
    # Anywhere: on a grid, the distance would tell what only the symbols should.
    free = len(ids) - 2 * pairs * size
    starts = np.sort(draw.integers(free + 1, size=2 * pairs)) + np.arange(2 * pairs) * size
    for places in draw.permutation(starts).reshape(pairs, 2):
        values = draw.choice(pieces.symbols, CUE + ANSWER)
        line = np.concatenate([pieces.prefix, values, pieces.suffix])
        for start in places.tolist():
            ids[start : start + size] = line
        again = int(places.max()) + head
        weights[again + 1 : again + CUE + ANSWER] = 1.0
    return weights


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
        # 10,000 is for windows of thousands; here it makes neighbours look alike.
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        initializer_range=0.05,  # at 0.02 or 0.09 induction comes several times later
        bos_token_id=None,
        eos_token_id=end_of_text,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=IMPLEMENTATION)
    _look_at_the_token_before(model)
    return model


@torch.no_grad()
def _look_at_the_token_before(model: Any) -> None:
    """Start the first head of the first layer as one that attends to the token before.

    Copying needs such a head; left to chance, it comes after some 200 steps or not within 600.
    Every embedding has the same first component, of which alone the head makes keys and queries:
    queries turned by one position, so that RoPE gives the highest score to the distance of one.
    """
    model.model.embed_tokens.weight[:, 0] = 0.3
    attention = model.model.layers[0].self_attn
    angles = model.model.rotary_emb.inv_freq
    size = 2 * len(angles)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[:size] = 0.0
    attention.q_proj.weight[:size, 0] = torch.cat([angles.cos(), -angles.sin()])
    attention.k_proj.weight[:size, 0] = torch.cat([torch.ones_like(angles), 0 * angles])


def train_base(
    tokenizer_folder: Path, texts: list[str], out: Path, seed: int, phases: Sequence[Phase] = PHASES
) -> int:
    """Train the base model and save it to `out`; returns how many tokens it read."""
    tokenizer = Tokenizer.load(str(tokenizer_folder))
    pieces = Pieces.encode(tokenizer, texts)
    with progress("base", None) as task:
        for attempt in range(_ATTEMPTS):
            if attempt:
                print("that model did not learn to look back; another begins", file=sys.stderr)
            draw = np.random.default_rng([seed, attempt])
            torch.manual_seed(int(draw.integers(2**31)))
            model = make_model(tokenizer.vocab_size, tokenizer.eot_id)
            steps = _train(model, draw, pieces, phases, task)
            if steps is not None:
                break
        else:
            raise LongRecipeError("no base model learned to look back; try another --seed")
    card = "# The demo's base model\n\nTiny, trained in a minute to retrieve inside 256 tokens.\n"
    save_model(model, str(tokenizer_folder), out, target_len=None, card=card)
    return steps * _STEP_TOKENS


def _train(
    model: Any,
    draw: np.random.Generator,
    pieces: Pieces,
    phases: Sequence[Phase],
    task: Task,
) -> int | None:
    """Train through all phases; returns the steps, or None where an aim was missed."""
    optimizer = AdamW(model, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    steps = 0
    for phase in phases:
        factor = warmup_then("cosine" if phase is phases[-1] else "constant", phase.steps, 0.0)
        for step in range(phase.steps):
            loss = _accumulate(model, draw, pieces, phase)
            optimizer.step(factor(step), optimizer.gradient_norm(), clip=1.0)
            steps += 1
            task.advance(note=f"{phase.length} tokens, loss {loss:.3f}")
            if _has_reached(phase, step + 1, model, pieces):
                break
        else:
            if phase.copied or phase.retrieved:
                return None
    return steps


def _has_reached(phase: Phase, steps: int, model: Any, pieces: Pieces) -> bool:
    if steps % _PROBE_EVERY:
        return False
    if phase.copied is not None:
        return share_right(model, *copying(pieces, phase.length)) >= phase.copied
    if phase.retrieved is not None:
        return share_right(model, *retrieving(pieces, phase.length)) >= phase.retrieved
    return False


def copying(pieces: Pieces, length: int) -> tuple[np.ndarray, int]:
    """Sequences int64 [_PROBES, length] of two periods; how many of their last symbols to tell."""
    draw = np.random.default_rng(0)
    period = min(length // 2, len(pieces.symbols))
    rows = [
        np.resize(draw.choice(pieces.symbols, period, replace=False), length)
        for _ in range(_PROBES)
    ]
    return np.stack(rows).astype(np.int64), length - period - 1


def retrieving(pieces: Pieces, length: int) -> tuple[np.ndarray, int]:
    """Texts int64 [_PROBES, length] that hold a code and end with it; its symbols to tell."""
    draw = np.random.default_rng(0)
    rows = np.empty((_PROBES, length), np.int64)
    for ids in rows:
        start = int(draw.integers(len(pieces.text) - length))
        ids[:] = pieces.text[start : start + length]
        values = draw.choice(pieces.symbols, CUE + ANSWER)
        line = np.concatenate([pieces.prefix, values, pieces.suffix])
        place = int(draw.integers(length - 2 * len(line)))
        ids[place : place + len(line)] = line
        again = line[: -len(pieces.suffix)]
        ids[-len(again) :] = again
    return rows, ANSWER


@torch.no_grad()
def share_right(model: Any, sequences: np.ndarray, answers: int) -> float:
    """Share of the last `answers` tokens of each sequence [n, length] that are the first choice."""
    count, length = sequences.shape
    ids = torch.from_numpy(sequences)
    logits = model(
        ids.reshape(1, -1),
        position_ids=torch.arange(length).repeat(count)[None],
        seq_lengths=[length] * count,
        use_cache=False,
    ).logits.view(count, length, -1)
    right = logits[:, -answers - 1 : -1].argmax(-1) == ids[:, -answers:]
    return float(right.float().mean())


def _accumulate(model: Any, draw: np.random.Generator, pieces: Pieces, phase: Phase) -> float:
    """Gradients of one step of sequences of a phase; returns the loss."""
    length, count = phase.length, _STEP_TOKENS // phase.length
    ids = np.empty((count, length), np.int64)
    weights = np.empty((count, length), np.float32)
    for row in range(count):
        ids[row], weights[row] = sequence(draw, pieces, phase)
    loss = training_loss(
        model,
        torch.from_numpy(ids.reshape(1, -1)),
        torch.arange(length).repeat(count)[None],
        [length] * count,
        torch.from_numpy(weights.reshape(-1)),
        counted=torch.from_numpy(np.flatnonzero(weights.reshape(-1)[1:])),
    ) / float(weights.sum())
    loss.backward()
    return float(loss.detach())
