"""Sliding-window perplexity: how much a longer context helps to predict the very same tokens.

A target span is `stride` tokens of a text. At a context length L it is read as the end of a window
of L tokens, so at a longer one the same targets have more text before them. Spans follow each other
through the text; when there are more than asked for, evenly spread ones are taken. With a
tokenizer that adds a start-of-text token, it is the window's first. Spans are counted in tokens:
another tokenizer has others, of other passages.

As in the suites short and longppl, special tokens, such as the end of text between documents, are
context but never targets, and have no bytes: they are not text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.tokenizer import Tokenizer
from lrtrain.evaluation.models import LoadedModel, OpenModel
from lrtrain.evaluation.spelling import Spelled, spelled_as_is
from lrtrain.evaluation.text import Holdout, Text

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 8192
MAX_STRIDE = 1024
_CHUNK = 256  # targets whose logits are made float32 at once
_BATCH_TARGETS = 2048  # targets whose logits exist at once
_NO_TARGET = -100


class Span(NamedTuple):
    """Targets [stop - stride, stop) of a token stream: those of them that are text."""

    stream: int
    stop: int


@dataclass(frozen=True)
class PerplexityCell:
    """One model at one context length. For each span: summed nats, targets, and their bytes."""

    model: str
    length: int
    nats: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]

    @property
    def tokens_read(self) -> int:
        return self.length * len(self.nats)

    @property
    def longest_read(self) -> int:
        return self.length


def stride_for(lengths: Sequence[int]) -> int:
    """Tokens of a span: half the shortest context, at most 1,024."""
    return min(MAX_STRIDE, min(lengths) // 2)


def target_spans(
    streams: list[np.ndarray], longest: int, stride: int, count: int, *, bos: bool, where: str
) -> list[Span]:
    """At most `count` spans of streams, with some text and with room for a window of `longest`.

    streams: which of their tokens are text, bool [n] each. Spans do not overlap. `bos`: the
    window's first token is the start of text and not the stream's. Raises LongRecipeError when no
    stream is long enough; `where` names the text then.
    """
    spans = [
        Span(index, stop)
        for index, text in enumerate(streams)
        for stop in range(longest - bos, len(text) + 1, stride)
        if text[stop - stride : stop].any()
    ]
    if not spans:
        size = max(map(len, streams), default=0)
        raise LongRecipeError(
            f"the text of {where} has {size} tokens in one piece, fewer than the "
            f"{longest} of the longest context; name a longer text or shorter lengths"
        )
    picked = np.unique(np.linspace(0, len(spans) - 1, min(count, len(spans))).round().astype(int))
    return [spans[index] for index in picked.tolist()]


def window(stream: np.ndarray, stop: int, length: int, bos_id: int | None) -> np.ndarray:
    """The `length` tokens up to `stop`, int64 [length]; the first is the start of text, if any."""
    if bos_id is None:
        return stream[stop - length : stop].astype(np.int64)
    return np.concatenate([[bos_id], stream[stop - length + 1 : stop]]).astype(np.int64)


def span_nats(model: Any, ids: "torch.Tensor", text: "torch.Tensor") -> np.ndarray:
    """Summed cross-entropy of the targets at the end of each window: ids int64 [B, S] -> [B].

    text: bool [B, stride], which of the last `stride` tokens are targets. Logits exist for these
    tokens alone, in float32 for a chunk of them at a time. Raises FloatingPointError where they are
    not finite.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from lrtrain.finite import need_finite

    stride = text.shape[1]
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=stride + 1).logits[:, :-1]
        targets = ids[:, -stride:].masked_fill(~text, _NO_TARGET)
        total = torch.zeros(len(ids), dtype=torch.float64, device=logits.device)
        for first in range(0, stride, _CHUNK):
            part = slice(first, first + _CHUNK)
            chunk = logits[:, part].float()
            losses = cross_entropy(
                chunk.flatten(0, 1),
                targets[:, part].flatten(),
                ignore_index=_NO_TARGET,
                reduction="none",
            )
            total += losses.view(len(ids), -1).double().sum(1)
        need_finite(total)
    return np.asarray(total.cpu().numpy())


def measure(
    model: Any,
    device: "torch.device | str",
    name: str,
    streams: list[Spelled],
    spans: list[Span],
    length: int,
    stride: int,
    bos_id: int | None,
) -> Iterator[tuple[int, PerplexityCell | None]]:
    """Read all spans at one context length, a batch at a time.

    Yields how many were read, with the cell beside the last of them.
    """
    import torch

    edges = np.stack([streams[at].edges[stop - stride : stop + 1] for at, stop in spans])
    text = np.diff(edges) > 0
    nats, size = list[float](), max(1, min(BATCH_TOKENS // length, _BATCH_TARGETS // stride))
    for first in range(0, len(spans), size):
        part = slice(first, first + size)
        rows = [window(streams[at].ids, stop, length, bos_id) for at, stop in spans[part]]
        ids, targets = torch.from_numpy(np.stack(rows)), torch.from_numpy(text[part])
        nats += span_nats(model, ids.to(device), targets.to(device)).tolist()
        cell = PerplexityCell(
            name,
            length,
            tuple(nats),
            tuple(text.sum(1).tolist()),
            tuple((edges[:, -1] - edges[:, 0]).tolist()),
        )
        yield len(rows), cell if len(nats) == len(spans) else None


@dataclass(frozen=True)
class PerplexitySuite:
    """The same targets after every length of context: `windows` spans of them."""

    text: Text | Holdout
    lengths: Sequence[int]
    windows: int
    name: ClassVar[str] = "ppl"
    kind: ClassVar[type[PerplexityCell]] = PerplexityCell
    compares: ClassVar[bool] = False
    joins: ClassVar[bool] = True

    def settings(self) -> dict[str, object]:
        stride = stride_for(self.lengths)
        return {"windows": self.windows, "stride": stride, **self.text.settings()}

    @property
    def size(self) -> int:
        return len(self.lengths)

    def check(self, opened: OpenModel) -> None:
        """Raises LongRecipeError where the text is too short."""
        self._spans(opened.tokenizer)

    def cells(self, loaded: LoadedModel, done: int = 0) -> Iterator[PerplexityCell]:
        """A cell for each length."""
        tokenizer, stride, name = loaded.tokenizer, stride_for(self.lengths), loaded.spec.name
        streams, spans = self._spans(tokenizer)
        due = self.lengths[done:]
        with progress(
            f"{name}: perplexity",
            len(self.lengths) * len(spans),
            done * len(spans),
            work=sum(len(spans) * loaded.operations(length) for length in due),
        ) as task:
            for length in due:
                for read, cell in measure(
                    loaded.model,
                    loaded.device,
                    name,
                    streams,
                    spans,
                    length,
                    stride,
                    tokenizer.bos_id,
                ):
                    work = read * loaded.operations(length)
                    task.advance(read, note=f"{length:,} tokens", work=work)
                    if cell:
                        yield cell

    def _spans(self, tokenizer: Tokenizer) -> tuple[list[Spelled], list[Span]]:
        """What a model reads, and what is asked of it."""
        streams = [spelled_as_is(ids, tokenizer) for ids in self.text.streams(tokenizer)]
        spans = target_spans(
            [np.diff(read.edges) > 0 for read in streams],
            max(self.lengths),
            stride_for(self.lengths),
            self.windows,
            bos=tokenizer.bos_id is not None,
            where=self.text.origin,
        )
        return streams, spans
