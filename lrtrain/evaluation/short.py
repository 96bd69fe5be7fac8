"""Short skills: what a model forgets of ordinary text while it learns to read long ones.

On short windows of a text, from one forward pass over each:

- perplexity, as nats per token and per byte;
- cloze accuracy, as in LAMBADA but on any text: the share of words that the model writes by itself,
  that is, whose every token is its first choice after the right text before it. Asked for are the
  words of four letters or more that begin after a space, in the second half of a window;
- drift: KL(base || model) of the next token, in nats, at positions spread over the windows. `base`
  is a model of the same command that is measured first. Only models with its tokenizer can be
  compared so. It sees forgetting long before a single first choice changes.

The windows are tokens of the base's tokenizer. Another tokenizer reads the same text and is asked
for the same words, which are spans of bytes; a window that it does not spell is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.cloze import words_asked, words_right
from lrtrain.evaluation.models import LoadedModel, OpenModel
from lrtrain.evaluation.spelling import Spelled, respell, spelled_as_is, token_spans
from lrtrain.evaluation.suite import OfWindows
from lrtrain.evaluation.text import Holdout, Text

if TYPE_CHECKING:
    import torch

DEFAULT_TOKENS, LEAST_TOKENS, MOST_TOKENS = 512, 8, 4096
BATCH_TOKENS = 1024
"""Windows are read together up to so many tokens, whose logits exist at once."""
MOST_POSITIONS = 512
"""Where the base's log-probabilities are kept, in all windows together."""

_CHUNK = 256  # logits that are made float32 at once


@dataclass(frozen=True)
class ShortCell(OfWindows):
    """What one model did on all windows that it can be asked about: an entry for each."""

    model: str
    base: str
    windows: tuple[int, ...]
    """Which of the windows they are."""
    context: tuple[int, ...]
    """Tokens read of each."""
    nats: tuple[float, ...]
    """Summed over all tokens of text that something is before; their number, and their bytes."""
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    words: tuple[int, ...]
    """Words asked for, and how many of them were right."""
    right: tuple[int, ...]
    drift: tuple[float, ...] | None
    """KL(base || model) in nats, summed over the positions; None with another tokenizer."""
    positions: tuple[int, ...]
    """Where it was measured: how many tokens of each window."""
    left_out: int
    """Windows whose text the model's tokenizer does not spell."""


# What is asked


def default_tokens(lengths: Sequence[int]) -> int:
    """The shortest context that is asked for, at most 512 tokens."""
    return min([DEFAULT_TOKENS, *lengths])


def pick_windows(sizes: Sequence[int], size: int, count: int, seed: int) -> list[tuple[int, int]]:
    """(stream, first token) of at most `count` windows of `size` tokens, which do not overlap.

    sizes: tokens of each stream. The windows that there are, end to end, are shared into `count`
    parts of equal size and one of each is drawn: spread over the text, and other ones for another
    seed where there are more than asked for.
    """
    slots = [
        (stream, first)
        for stream, tokens in enumerate(sizes)
        for first in range(0, tokens - size + 1, size)
    ]
    count = min(count, len(slots))
    if not count:
        return []
    parts = np.arange(count + 1) * len(slots) // count
    drawn = Draws(seed, "short").stream("windows").below(np.diff(parts))
    return [slots[index] for index in (parts[:-1] + drawn).tolist()]


def drift_positions(sizes: Sequence[int], most: int = MOST_POSITIONS) -> list[np.ndarray]:
    """Where drift is measured in windows with `sizes` predictions each: int64, in order.

    At most `most` in all, as many in each window as in the others, evenly spread inside it.
    """
    counts = np.diff(np.arange(len(sizes) + 1) * most // len(sizes))
    return [
        ((np.arange(count) + 0.5) * size / count).astype(np.int64) if count else np.zeros(0, int)
        for size, count in zip(sizes, np.minimum(counts, sizes).tolist(), strict=True)
    ]


class Windows:
    """The windows of an evaluation, in the tokens of the base's tokenizer."""

    def __init__(
        self, text: Text | Holdout, tokens: int, count: int, seed: int, tokenizer: Tokenizer
    ) -> None:
        streams = text.streams(tokenizer)
        size = tokens - (tokenizer.bos_id is not None)
        picked = pick_windows([len(stream) for stream in streams], size, count, seed)
        if not picked:
            longest = max(map(len, streams), default=0)
            raise LongRecipeError(
                f"the text of {text.origin} has {longest} tokens in one piece, fewer than the "
                f"{tokens} of a short window; name a longer text or fewer --short-tokens"
            )
        self.tokenizer = tokenizer
        self.read = [
            spelled_as_is(streams[stream][first : first + size], tokenizer)
            for stream, first in picked
        ]
        self.words = [words_asked(read, tokenizer) for read in self.read]
        ahead = size - (tokenizer.bos_id is None)
        self.positions = drift_positions([ahead] * len(picked))

    def same(self, tokenizer: Tokenizer) -> bool:
        """Whether a tokenizer gives the same ids, and so predictions of the same tokens: one that
        puts a start of text before them makes one more."""
        starts = tokenizer.bos_id == self.tokenizer.bos_id
        return starts and tokenizer.fingerprint == self.tokenizer.fingerprint

    def of(self, tokenizer: Tokenizer) -> dict[int, Spelled]:
        """What a model with this tokenizer reads, by window: those that it spells."""
        if tokenizer.fingerprint == self.tokenizer.fingerprint:
            return dict(enumerate(self.read))
        found = (respell(read, self.tokenizer, tokenizer) for read in self.read)
        return {index: read for index, read in enumerate(found) if read is not None}


# Measuring


class Reading(NamedTuple):
    """What a model says of one row of n + 1 tokens."""

    nats: np.ndarray  # float64 [n]: -log P of each token but the first
    right: np.ndarray  # bool [n]: whether it was the model's first choice
    log_probs: "torch.Tensor"  # float32 [positions, ids], on the host


def read_rows(
    model: Any,
    device: "torch.device | str",
    rows: Sequence[np.ndarray],
    positions: Sequence[np.ndarray],
    ids: int,
) -> list[Reading]:
    """One forward pass over several rows, int [n + 1] each, and what it says of them.

    positions: where all log-probabilities are wanted, int64 in [0, n) for each row: those of the
    token behind. They are of the first `ids` ids, to which they add up; a model may have more
    outputs than its tokenizer has ids. Logits of all rows exist at once in the model's dtype, and
    in float32 for a chunk of them at a time. Raises FloatingPointError where they are not finite.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from lrtrain.finite import need_finite

    longest = max(map(len, rows))
    whole = torch.zeros((len(rows), longest), dtype=torch.int64)
    for row, padded in zip(rows, whole, strict=True):
        padded[: len(row)] = torch.from_numpy(row.astype(np.int64))
    whole = whole.to(device)
    with torch.inference_mode():
        # Nothing is masked: tokens do not see the padding behind them.
        logits = model(input_ids=whole[:, :-1], use_cache=False).logits
        flat, targets = logits.flatten(0, 1), whole[:, 1:].flatten()
        nats = torch.empty(len(targets), dtype=torch.float64)
        right = torch.empty(len(targets), dtype=torch.bool)
        for first in range(0, len(targets), _CHUNK):
            part = slice(first, first + _CHUNK)
            chunk = flat[part].float()
            nats[part] = cross_entropy(chunk, targets[part], reduction="none").double().cpu()
            right[part] = (chunk.argmax(-1) == targets[part]).cpu()
        found = []
        for index, (row, wanted) in enumerate(zip(rows, positions, strict=True)):
            start = index * (longest - 1)
            part = slice(start, start + len(row) - 1)
            need_finite(nats[part])
            kept = logits[index, torch.from_numpy(wanted).to(device), :ids]
            log_probs = kept.float().log_softmax(-1).cpu()
            found.append(Reading(nats[part].numpy(), right[part].numpy(), log_probs))
    return found


def kl_divergence(base: "torch.Tensor", model: "torch.Tensor") -> float:
    """KL(base || model) in nats, summed over positions, from log-probabilities, [n, ids] each."""
    total = 0.0
    for one, other in zip(base.split(16), model.split(16), strict=True):
        total += float((one.double().exp() * (one.double() - other.double())).sum())
    return total


class Outcome(NamedTuple):
    """What a model did on one window: the entries of a `ShortCell`."""

    context: int
    nats: float
    tokens: int
    bytes: int
    words: int
    right: int
    drift: float
    positions: int


def outcome(
    read: Spelled, words: np.ndarray, reading: Reading, base: "torch.Tensor | None"
) -> Outcome:
    """What a reading of a window comes to. `base`: the base's log-probabilities there, if any."""
    unread = len(read.ids) - len(reading.nats)  # the first token, where nothing is before it
    sizes = np.diff(read.edges)[unread:]
    text = sizes > 0
    right = np.concatenate([np.zeros(unread, bool), reading.right])
    return Outcome(
        context=len(reading.nats) + 1,
        nats=float(reading.nats[text].sum()),
        tokens=int(text.sum()),
        bytes=int(sizes.sum()),
        words=len(words),
        right=words_right(right, token_spans(read.edges, words)),
        drift=0.0 if base is None else kl_divergence(base, reading.log_probs),
        positions=len(reading.log_probs),
    )


@dataclass
class ShortSuite:
    """The short skills of one model after another, the base first.

    tokens: of a window, in the base's tokenizer, with the start of text. windows: how many.
    """

    text: Text | Holdout
    tokens: int
    windows: int
    seed: int
    base: str
    name: ClassVar[str] = "short"
    kind: ClassVar[type[ShortCell]] = ShortCell
    size: ClassVar[int] = 1
    compares: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    _asked: Windows | None = field(default=None, init=False, repr=False)
    _log_probs: "dict[int, torch.Tensor]" = field(default_factory=dict, init=False, repr=False)

    def settings(self) -> dict[str, object]:
        said = {"windows": self.windows, "short_tokens": self.tokens, "base": self.base}
        return {**said, "seed": self.seed, **self.text.settings()}

    def check(self, opened: OpenModel) -> None:
        """Raises LongRecipeError where the text is too short or the tokenizer spells none of it."""
        self._ask(opened.name, opened.tokenizer)

    def cells(self, loaded: LoadedModel, done: int = 0) -> Iterator[ShortCell]:
        """One cell."""
        if done:
            return
        name, tokenizer = loaded.spec.name, loaded.tokenizer
        asked, read = self._ask(name, tokenizer)
        found = list[Outcome]()
        size = max(1, BATCH_TOKENS // max(len(window.ids) for window in read.values()))
        indices = list(read)
        with progress(f"{name}: short", len(read)) as task:
            for first in range(0, len(indices), size):
                batch = indices[first : first + size]
                found += self._measure(loaded, asked, {index: read[index] for index in batch})
                task.advance(len(batch))
        columns: dict[str, Any] = dict(zip(Outcome._fields, zip(*found, strict=True), strict=True))
        if not asked.same(tokenizer):
            columns["drift"] = None
        yield ShortCell(
            model=name,
            base=self.base,
            windows=tuple(indices),
            left_out=len(asked.read) - len(read),
            **columns,
        )

    def _ask(self, name: str, tokenizer: Tokenizer) -> tuple[Windows, dict[int, Spelled]]:
        """The windows, and what a model reads of them."""
        if self._asked is None:
            assert name == self.base, "the base comes first"
            self._asked = Windows(self.text, self.tokens, self.windows, self.seed, tokenizer)
        read = self._asked.of(tokenizer)
        if not read:
            raise LongRecipeError(
                f"{name}: its tokenizer does not spell the text of any window of "
                f"{self.text.origin} as it is (it normalises or drops characters); leave it out"
            )
        return self._asked, read

    def _measure(
        self, loaded: LoadedModel, asked: Windows, batch: dict[int, Spelled]
    ) -> Iterator[Outcome]:
        """Read windows together; the base's log-probabilities are kept for the other models."""
        tokenizer = loaded.tokenizer
        lead = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        rows = [np.concatenate([lead, read.ids]) for read in batch.values()]
        if asked.same(tokenizer):
            positions = [asked.positions[index] for index in batch]
        else:
            positions = [np.zeros(0, np.int64)] * len(batch)
        ids = tokenizer.vocab_size
        readings = read_rows(loaded.model, loaded.device, rows, positions, ids)
        for (index, read), reading in zip(batch.items(), readings, strict=True):
            if loaded.spec.name == self.base:
                self._log_probs[index] = reading.log_probs
            base = self._log_probs[index] if asked.same(tokenizer) else None
            yield outcome(read, asked.words[index], reading, base)
