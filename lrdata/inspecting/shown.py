"""The text that a page shows of a row: kept tokens, and dropped ones where the window is at hand.

Few elements are made, so that 131,072 tokens open fast: a span for a segment or for what was
dropped between two, and inside it one for a run of tokens that are marked alike. Each span says
with which token it begins (`data-t`); the script finds the others by the lengths of their texts.
"""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from lrdata.inspecting.spelling import token_texts
from lrdata.inspecting.view import View, begins, document_at
from lrdata.report.page import text
from lrdata.tokenizer import Tokenizer

_DOT = "▪"
"""Stands for a token where there is no tokenizer."""

_BLOCK, _LONGEST_BLOCK = 3_000, 12_000
"""Characters after which a block of text ends at the next line end, or at any token."""

_UNCHECKED = "not checked: nothing kept says that this is its text"

_DROPPED, _PLAIN, _MARKED, _SPECIAL = range(4)
_TAGS = {_DROPPED: None, _PLAIN: None, _MARKED: "b", _SPECIAL: "i"}


@dataclass(frozen=True)
class Shown:
    """m tokens in the order of the window: all of it, or what the row kept."""

    view: View
    texts: list[str]  # [m]
    tokens: np.ndarray  # int64 [m]: which token of the row; -1: dropped
    document: np.ndarray  # int64 [m]
    styles: np.ndarray  # int64 [m]
    whole: bool

    @classmethod
    def of(cls, view: View, window: np.ndarray | None, tokenizer: Tokenizer | None) -> "Shown":
        """`window`: the ids of the window, int32 [window_tokens], where they are known."""
        count = len(view.offsets)
        if window is None:
            ids, tokens, document = view.row.input_ids, np.arange(count), view.document
        else:
            ids, tokens = window, np.full(len(window), -1)
            tokens[view.offsets] = np.arange(count)
            document = document_at(view.row, view.lead, np.arange(len(window)))
        styles = np.where(tokens < 0, _DROPPED, _PLAIN + view.marked[tokens])
        if tokenizer is None:
            texts = [_DOT] * len(ids)
        else:
            gaps = view.left_out if window is None else np.zeros(len(ids), int)
            edges = [0, *np.flatnonzero(gaps[1:]) + 1, len(ids)]
            texts = [
                spelt for a, b in pairwise(edges) for spelt in token_texts(ids[a:b], tokenizer)
            ]
            styles[(tokens >= 0) & tokenizer.special[ids]] = _SPECIAL
        return cls(view, texts, tokens, document, styles, window is not None)

    def blocks(self) -> Iterator[str]:
        """The text as blocks, with a heading where a document begins.

        Nothing stands between them: line ends are shown as they are.
        """
        blocks = self._block_begins()
        edges = sorted(blocks | set(self._span_begins().tolist()) | {len(self.texts)})
        for begin, end in pairwise(edges):
            if begin in blocks:
                yield "</div>" if begin else ""
                yield self._heading(begin)
                yield '<div class="block">'
            token = int(self.tokens[begin])
            if token >= 0 and self._gaps[token]:
                yield self._chip(token)
            yield self._span(begin, end)
        yield f"</div>{self._rest()}"

    def data(self) -> dict[str, Any]:
        """What the script needs to say which token is under the pointer, and where it stands."""
        view, row = self.view, self.view.row
        jumps = np.flatnonzero(np.diff(row.position_ids.astype(np.int64), prepend=-2) != 1)
        data = {
            "row": view.index,
            "whole": self.whole,
            "window": row.window_tokens,
            "target": row.target_len,
            "chars": list(map(_utf16_units, self.texts)),
            "starts": row.segment_starts.tolist(),
            "lengths": row.segment_lengths.tolist(),
            "jumps": jumps.tolist(),
            "positions": row.position_ids[jumps].tolist(),
            "marked": "counts in the loss" if row.kind == "replay" else "impactful",
        }
        if row.lsd is not None:
            known = np.round(row.lsd.astype(np.float64), 2)
            data["lsd"] = [value if np.isfinite(value) else None for value in known.tolist()]
        return data

    def _span_begins(self) -> np.ndarray:
        """Where a span begins: at a segment, what was dropped, a gap that is shown."""
        inside = self._gaps & (self.view.left_out == 0)
        segments = np.zeros(len(inside), bool)
        segments[begins(self.view.row.segment_lengths)] = True
        kept = self.tokens >= 0
        first = np.diff(kept, prepend=~kept[:1])
        first[kept] |= (segments | inside)[self.tokens[kept]]
        return np.flatnonzero(first)

    @cached_property
    def _gaps(self) -> np.ndarray:
        """Tokens of the row before which a gap is shown: bool [n].

        All of them, but for schemes that skip positions before one token in four or more: their
        sizes are told by the pointer.
        """
        gaps = (self.view.skips > 0) | (self.view.left_out > 0)
        return gaps if 4 * gaps.sum() <= len(gaps) or len(gaps) < 200 else self.view.left_out > 0

    def _block_begins(self) -> set[int]:
        """Where a block of text begins: with a document, and at line ends."""
        documents = set(np.flatnonzero(np.diff(self.document, prepend=-1)).tolist())
        edges, size = set(documents), 0
        for at, piece in enumerate(self.texts[:-1]):
            size += len(piece)
            if at + 1 in documents:
                size = 0
            elif size >= _LONGEST_BLOCK or (size >= _BLOCK and piece.endswith("\n")):
                edges.add(at + 1)
                size = 0
        return edges

    def _heading(self, at: int) -> str:
        document = int(self.document[at])
        before = int(self.document[at - 1]) if at else -1
        if document == before:
            return ""
        row, view = self.view.row, self.view
        start, length = int(row.doc_offsets[document]), int(row.doc_lengths[document])
        passed = document - before - 1
        unseen = f"; {passed:,} documents before it have nothing kept" if passed else ""
        token = int(np.searchsorted(view.document, document))
        alone = len(row.seq_lengths) > 1 and token in begins(row.seq_lengths)
        sees = "; it sees none before it" if alone and document else ""
        unsure = "" if self._checked[document] else f"; {_UNCHECKED}"
        return (
            f'<h2 id="r{view.index}-d{document}">{text(row.doc_ids[document])} '
            f"<small>document {document + 1:,} of {len(row.doc_ids):,}; its tokens "
            f"{start:,}–{start + length - 1:,}, {int(view.kept[document]):,} kept"
            f"{unseen}{sees}{unsure}</small></h2>"
        )

    @cached_property
    def _checked(self) -> np.ndarray:
        """Documents of which the row has a token that says that this is the text: bool."""
        own = self.view.document[self.view.offsets >= self.view.lead]
        return np.bincount(own, minlength=len(self.view.row.doc_ids)) > 0

    def _chip(self, token: int) -> str:
        dropped, skip = int(self.view.left_out[token]), int(self.view.skips[token])
        says = f"{dropped:,} tokens of text dropped, {skip:,} positions skipped"
        signs = (f"−{dropped:,}" if dropped else "", f"+{skip:,}" if skip else "")
        kind = "gap" if skip else "gap none"
        return f'<span class="{kind}" title="{says}">{" ".join(filter(None, signs))}</span>'

    def _span(self, begin: int, end: int) -> str:
        kept = self.tokens[begin] >= 0
        segment = self._segment_at.get(int(self.tokens[begin])) if kept else None
        name = "" if segment is None else f' id="r{self.view.index}-s{segment}"'
        styles = self.styles[begin:end]
        edges = [*np.flatnonzero(np.diff(styles, prepend=-1)).tolist(), end - begin]
        inner = ""
        for first, last in pairwise(edges):
            piece = html.escape("".join(self.texts[begin + first : begin + last]), quote=False)
            tag = _TAGS[int(styles[first])]
            inner += f"<{tag}>{piece}</{tag}>" if tag else piece
        return f'<span class="{"k" if kept else "d"}"{name} data-t="{begin}">{inner}</span>'

    @cached_property
    def _segment_at(self) -> dict[int, int]:
        lengths = self.view.row.segment_lengths
        return {token: at for at, token in enumerate(begins(lengths).tolist())}

    def _rest(self) -> str:
        """What comes after the last kept token."""
        view, row = self.view, self.view.row
        dropped = view.lead + int(row.doc_lengths.sum()) - 1 - int(view.offsets[-1])
        unused = row.target_len - 1 - int(row.position_ids[-1])
        if row.kind == "replay" or not (dropped > 0 or unused > 0):
            return ""
        return (
            f'<p class="rest">end of the row: {max(dropped, 0):,} more tokens of the window were '
            f"dropped, {max(unused, 0):,} positions after it are not used</p>"
        )


def _utf16_units(text: str) -> int:
    """The length of a text as JavaScript counts it."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
