"""Documents -> windows: what one row simulates, `target_len` tokens each.

A document of n tokens (its end-of-text token included) fills floor(n / content) windows of its own,
where `content` is target_len less the start-of-text token that opens a window, if the tokenizer
adds one. Its remainder and the shorter documents are joined in corpus order; what is left at the
end of a unit is the tail.
"""

from collections.abc import Iterable, Iterator
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
    """A run of a document's tokens: ids int32 [n], and whether a sentence ends after each of them,
    bool [n]. The last token of a document is the end-of-text token."""

    ids: np.ndarray
    sentence_ends: np.ndarray

    def part(self, start: int, stop: int) -> "Tokens":
        """Tokens [start, stop), without a copy."""
        return Tokens(self.ids[start:stop], self.sentence_ends[start:stop])

    def copied(self) -> "Tokens":
        """The same in memory of its own, so that what it was a part of can go."""
        return Tokens(self.ids.copy(), self.sentence_ends.copy())


class Span(NamedTuple):
    """Tokens [start, start + length) of a document, as part of a window."""

    document: Document
    start: int
    length: int


@dataclass(frozen=True)
class Window:
    """`ids` int32 [target_len] and the spans they come from, in order.

    `lead` is 1 where a start-of-text token opens the window, else 0: ids[lead:] are the spans, and
    `sentence_ends` bool [target_len - lead] says where their sentences end.
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
        self._waiting: list[tuple[Span, Tokens]] = []
        self._waiting_tokens = 0
        self._owned = 0  # of those that wait

    def add(self, document: Document, parts: Iterable[Tokens]) -> Iterator[Window]:
        """The windows that this document fills or completes.

        `parts` are all its tokens, in order; however they are cut, the windows are the same.
        """
        content, start, held = self._content, 0, None
        for part in parts:
            tokens = part if held is None else _joined([held, part])
            whole = len(tokens.ids) // content * content
            for first in range(0, whole, content):
                span = Span(document, start + first, content)
                yield self._window([(span, tokens.part(first, first + content))])
            start += whole
            held = tokens.part(whole, len(tokens.ids)) if whole else tokens
        if held is None or not len(held.ids):
            return
        room = self._content - self._waiting_tokens
        if len(held.ids) >= room:
            self._wait(document, start, held.part(0, room))
            yield self._window(self._waiting)
            self._waiting, self._waiting_tokens, self._owned = [], 0, 0
            start, held = start + room, held.part(room, len(held.ids))
        if len(held.ids):
            self._wait(document, start, held)

    def own(self) -> None:
        """Copy what waits, so that nothing keeps the memory of the arrays it came in."""
        for index in range(self._owned, len(self._waiting)):
            span, tokens = self._waiting[index]
            self._waiting[index] = span, tokens.copied()
        self._owned = len(self._waiting)

    def tail_tokens(self) -> int:
        """Tokens that wait for a window that never came."""
        return self._waiting_tokens

    def _wait(self, document: Document, start: int, tokens: Tokens) -> None:
        length = len(tokens.ids)
        self._waiting.append((Span(document, start, length), tokens))
        self._waiting_tokens += length

    def _window(self, members: list[tuple[Span, Tokens]]) -> Window:
        spans = tuple(span for span, _ in members)
        ids = np.concatenate([self._lead, *(tokens.ids for _, tokens in members)])
        ends = np.concatenate([tokens.sentence_ends for _, tokens in members])
        return Window(ids, ends, spans, len(self._lead))


def _joined(runs: list[Tokens]) -> Tokens:
    return Tokens(*(np.concatenate(arrays) for arrays in zip(*runs, strict=True)))
