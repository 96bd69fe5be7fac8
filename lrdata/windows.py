"""Documents -> windows: what one row simulates, `target_len` tokens each.

A document of n tokens (its end-of-text token included) fills floor(n / content) windows of its own,
where `content` is target_len less the start-of-text token that opens a window, if the tokenizer
adds one. Its remainder and the shorter documents are joined in corpus order; what is left at the
end of a unit is the tail.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Document:
    """An encoded document. `tokens` int32 [n], the end-of-text token last.

    `copy` counts the uses of a document that the recipe's source weight repeats.
    """

    doc_id: str
    source: str
    file: str
    record: int
    tokens: np.ndarray
    copy: int = 0


@dataclass(frozen=True)
class Span:
    """Tokens [start, start + length) of a document, as part of a window."""

    document: Document
    start: int
    length: int


@dataclass(frozen=True)
class Window:
    """`ids` int32 [target_len] and the spans they come from, in order.

    `lead` is 1 where a start-of-text token opens the window, else 0: ids[lead:] are the spans.
    """

    ids: np.ndarray
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

    Holds the documents of fewer than target_len tokens that wait for their window.
    """

    def __init__(self, target_len: int, bos_id: int | None) -> None:
        self._lead = np.array([] if bos_id is None else [bos_id], np.int32)
        self._content = target_len - len(self._lead)
        self._waiting: list[Span] = []
        self._waiting_tokens = 0

    def add(self, document: Document) -> Iterator[Window]:
        """The windows that this document fills or completes."""
        whole = len(document.tokens) // self._content
        for index in range(whole):
            yield self._window([Span(document, index * self._content, self._content)])
        yield from self._join(document, whole * self._content)

    def _join(self, document: Document, start: int) -> Iterator[Window]:
        while start < len(document.tokens):
            room = self._content - self._waiting_tokens
            length = min(room, len(document.tokens) - start)
            self._waiting.append(Span(document, start, length))
            self._waiting_tokens += length
            start += length
            if self._waiting_tokens == self._content:
                yield self._window(self._waiting)
                self._waiting, self._waiting_tokens = [], 0

    def tail_tokens(self) -> int:
        """Tokens that wait for a window that never came."""
        return self._waiting_tokens

    def _window(self, spans: list[Span]) -> Window:
        parts = [span.document.tokens[span.start : span.start + span.length] for span in spans]
        return Window(np.concatenate([self._lead, *parts]), tuple(spans), len(self._lead))
