"""Documents -> windows: what one row simulates, `target_len` tokens each.

A document of n tokens (its end-of-text token included) fills floor(n / content) windows of its own,
where `content` is target_len less the start-of-text token that opens a window, if the tokenizer
adds one. Its remainder and the shorter documents are joined in corpus order; what is left at the
end of a unit is the tail.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
    """Which document tokens come from. `copy` counts the uses of a document that the recipe's
    source weight repeats."""

    doc_id: str
    source: str
    file: str
    record: int
    copy: int = 0


class Tokens(NamedTuple):
    """A run of tokens: ids int32 [n], and the places of those after which a sentence ends, int64,
    increasing. The last token of a document is the end-of-text token."""

    ids: np.ndarray
    sentence_ends: np.ndarray

    def part(self, start: int, stop: int) -> "Tokens":
        """Tokens [start, stop); their ids are not copied."""
        first, last = self.sentence_ends.searchsorted((start, stop))
        return Tokens(self.ids[start:stop], self.sentence_ends[first:last] - start)

    def copied(self) -> "Tokens":
        """The same in memory of its own, so that what it was a part of can go."""
        return Tokens(self.ids.copy(), self.sentence_ends)

    @staticmethod
    def joined(runs: Sequence["Tokens"]) -> "Tokens":
        """One run after the other."""
        if len(runs) == 1:
            return runs[0]
        before = 0
        ends = []
        for run in runs:
            ends.append(run.sentence_ends + before)
            before += len(run.ids)
        return Tokens(np.concatenate([run.ids for run in runs]), np.concatenate(ends))


class Span(NamedTuple):
    """Tokens [start, start + length) of a document, as part of a window."""

    document: Document
    start: int
    length: int


@dataclass(frozen=True)
class Window:
    """`ids` int32 [target_len] and the spans they come from, in order.

    `lead` is 1 where a start-of-text token opens the window, else 0: ids[lead:] are the spans, in
    which sentences end after the tokens at `sentence_ends`, int64. `ids` may be a view of the array
    that they came in, so what is kept of a window must be a copy.
    """

    ids: np.ndarray
    sentence_ends: np.ndarray
    spans: tuple[Span, ...]
    lead: int

    @property
    def key(self) -> tuple[str, int, int, int]:
        """(file, record, first token, copy): what the window's draws are keyed by."""
        first = self.spans[0]
        return first.document.file, first.document.record, first.start, first.document.copy

    @property
    def name(self) -> str:
        """The key as text, unique in a dataset."""
        return ":".join(str(part) for part in self.key)

    @property
    def document_lengths(self) -> list[int]:
        """Lengths of the window's documents; the lead token belongs to the first."""
        lengths = [span.length for span in self.spans]
        lengths[0] += self.lead
        return lengths


class WindowJoiner:
    """Cuts a stream of documents into windows.

    Holds the documents of fewer than target_len tokens that wait for their window: as views of the
    arrays they came in, until `own` is called.
    """

    def __init__(self, target_len: int, bos_id: int | None) -> None:
        self._lead = np.array([] if bos_id is None else [bos_id], np.int32)
        self._content = target_len - len(self._lead)
        self._spans: list[Span] = []  # of what waits
        self._runs: list[_Run] = []  # their tokens
        self._waiting = 0  # how many those are
        self._owned = 0  # runs that are copies

    def add(self, document: Document, tokens: Tokens, start: int, stop: int) -> Sequence[Window]:
        """The windows that a document fills or completes, whose tokens are [start, stop)."""
        length = stop - start
        if self._waiting + length < self._content:  # as for most documents
            if length:
                self._wait(Span(document, 0, length), tokens, start)
            return ()
        windows = self._whole(document, 0, tokens, start, stop)
        given = len(windows) * self._content
        return [*windows, *self._join(document, given, tokens, start + given, stop)]

    def add_parts(self, document: Document, parts: Iterable[Tokens]) -> Iterator[Window]:
        """The same for a document whose tokens come in parts.

        However they are cut, the windows are the same.
        """
        given, held = 0, list[Tokens]()
        for part in parts:
            tokens = Tokens.joined([*held, part])
            windows = self._whole(document, given, tokens, 0, len(tokens.ids))
            yield from windows
            new = len(windows) * self._content
            given, held = given + new, [tokens.part(new, len(tokens.ids))]
        for rest in held:
            yield from self._join(document, given, rest, 0, len(rest.ids))

    def _whole(
        self, document: Document, given: int, tokens: Tokens, start: int, stop: int
    ) -> list[Window]:
        """The windows that tokens [start, stop) fill. `given`: tokens of the document before."""
        content = self._content
        windows = []
        for first in range(start, stop - content + 1, content):
            span = Span(document, given + first - start, content)
            windows.append(self._window([span], [tokens.part(first, first + content)]))
        return windows

    def _join(
        self, document: Document, given: int, tokens: Tokens, start: int, stop: int
    ) -> Iterator[Window]:
        """Tokens that wait, fewer than a window's, and the window that they complete."""
        room = self._content - self._waiting
        if stop - start >= room:
            self._wait(Span(document, given, room), tokens, start)
            yield self._window(self._spans, [run.tokens.part(*run.range) for run in self._runs])
            self._spans, self._runs, self._waiting, self._owned = [], [], 0, 0
            given, start = given + room, start + room
        if start < stop:
            self._wait(Span(document, given, stop - start), tokens, start)

    def _wait(self, span: Span, tokens: Tokens, start: int) -> None:
        stop = start + span.length
        self._spans.append(span)
        self._waiting += span.length
        last = self._runs[-1] if self._runs else None
        if last is not None and last.tokens is tokens and last.stop == start:
            last.stop = stop
        else:
            self._runs.append(_Run(tokens, start, stop))

    def own(self) -> None:
        """Copy what waits, so that nothing keeps the memory of the arrays it came in."""
        for index in range(self._owned, len(self._runs)):
            run = self._runs[index]
            tokens = run.tokens.part(*run.range).copied()
            self._runs[index] = _Run(tokens, 0, len(tokens.ids))
        self._owned = len(self._runs)

    def tail_tokens(self) -> int:
        """Tokens that wait for a window that never came."""
        return self._waiting

    def _window(self, spans: list[Span], runs: list[Tokens]) -> Window:
        tokens = Tokens.joined(runs)
        ids = np.concatenate([self._lead, tokens.ids]) if len(self._lead) else tokens.ids
        return Window(ids, tokens.sentence_ends, tuple(spans), len(self._lead))


@dataclass
class _Run:
    """Tokens [start, stop) of a run, of one document or several."""

    tokens: Tokens
    start: int
    stop: int

    @property
    def range(self) -> tuple[int, int]:
        return self.start, self.stop
