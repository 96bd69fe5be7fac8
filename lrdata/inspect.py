"""Look at one row in the terminal: `lrdata inspect`.

    show(Path("shards"), "extend", 0, tokenizer, Console())

A header, the part of 0..target_len that the positions cover, the documents, and the kept text:
impactful tokens in colour (in a replay row: those that count in the loss), each skip of positions
as ⟨+1234⟩, each change of document on a line of its own.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lrdata.errors import LongRecipeError
from lrdata.manifest import Manifest, read_manifest
from lrdata.shards import Row, open_dataset
from lrdata.tokenizer import Tokenizer

_HEAD_TOKENS, _TAIL_TOKENS = 500, 200
_DOCUMENTS = 8
"""Shown of a longer row without `full`."""

_HIGHLIGHT, _SKIP, _EDGE, _SPECIAL = "bold yellow", "cyan", "green", "magenta"
_RULER_CELLS = " ▁▂▃▄▅▆▇█"


def check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Raises LongRecipeError when the dataset was built with another tokenizer."""
    entry = manifest.tokenizer
    if tokenizer.fingerprint != entry.fingerprint:
        raise LongRecipeError(
            f"{tokenizer.name} is not the tokenizer of the dataset: its fingerprint is "
            f"{tokenizer.fingerprint[:12]}, that of {entry.name} was {entry.fingerprint[:12]}; "
            "give the one it was built with"
        )


def open_tokenizer(folder: Path, path_or_id: str | None) -> Tokenizer | None:
    """The tokenizer that is asked for, else the one that the manifest names, if it can be had.

    Raises LongRecipeError when the one asked for cannot be loaded or is another.
    """
    manifest = read_manifest(Path(folder))
    if path_or_id is not None:
        tokenizer = Tokenizer.load(path_or_id, encoder="tokenizers")
        check_tokenizer(manifest, tokenizer)
        return tokenizer
    try:
        tokenizer = Tokenizer.load(manifest.tokenizer.name, encoder="tokenizers")
        check_tokenizer(manifest, tokenizer)
    except LongRecipeError:
        return None
    return tokenizer


def show(
    folder: Path,
    kind: str,
    row: int,
    tokenizer: Tokenizer | None,
    console: Console,
    full: bool = False,
) -> None:
    """Print row `row` of a kind; `full` shows all of a long one.

    Without a tokenizer the text is replaced by the number of tokens in each stretch. Raises
    LongRecipeError when there is no such row or the tokenizer is another.
    """
    shards = open_dataset(folder)
    if tokenizer is not None:
        check_tokenizer(shards.manifest, tokenizer)
    chosen = shards.read_row(kind, row)
    lead = int(kind != "replay" and shards.bos_id is not None)
    view = _View.of(chosen, lead)
    console.print(_header(view, row, shards.rows(kind)))
    console.print(_ruler(chosen, console.width))
    console.print(_documents(view, full))
    if tokenizer is None:
        console.print(
            f"Pass --tokenizer (a folder or hub id of {_clean(shards.manifest.tokenizer.name)}) "
            "to see the text; here are numbers of tokens.",
            style="dim",
        )
    console.print()
    for piece in _body(view, tokenizer, full):
        console.print(piece, soft_wrap=not console.is_terminal)


@dataclass(frozen=True)
class _View:
    """A row with what the picture needs. Arrays have an entry for each of its n tokens."""

    row: Row
    offsets: np.ndarray  # int64: place in the window
    skips: np.ndarray  # int64: positions skipped just before the token
    dropped: np.ndarray  # bool: window tokens were left out just before it
    document: np.ndarray  # int64: which document of the window it belongs to
    marked: np.ndarray  # bool: shown in colour

    @classmethod
    def of(cls, row: Row, lead: int) -> "_View":
        lengths = row.segment_lengths.astype(np.int64)
        before = np.cumsum(lengths) - lengths
        offsets = np.arange(lengths.sum()) + np.repeat(row.segment_starts - before, lengths)
        ends = lead + np.cumsum(row.doc_lengths.astype(np.int64))
        document = np.searchsorted(ends, offsets, side="right")
        steps = np.diff(row.position_ids.astype(np.int64), prepend=-1)
        return cls(
            row=row,
            offsets=offsets,
            skips=np.maximum(steps - 1, 0),  # a restart (replay) skips nothing
            dropped=np.diff(offsets, prepend=-1) != 1,
            document=np.minimum(document, len(ends) - 1),
            marked=row.loss_mask if row.kind == "replay" else row.impact_mask,
        )

    @property
    def breaks(self) -> np.ndarray:
        """Tokens before which something is shown: int64."""
        changes = np.diff(self.document, prepend=-1) != 0
        return np.flatnonzero((self.skips > 0) | self.dropped | changes)


# The header


def _header(view: _View, index: int, rows: int) -> Table:
    row = view.row
    tokens, positions = len(row.input_ids), row.position_ids
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def add(name: str, value: str) -> None:
        table.add_row(Text(name), Text(_clean(value)))

    add("row", f"{index:,} of {rows:,} {row.kind} rows")
    add("sample", row.sample_id)
    add("source", row.source)
    share = tokens / row.window_tokens
    add("tokens", f"window of {row.window_tokens:,} -> row of {tokens:,} ({share:.1%})")
    add("positions", f"{positions.min():,}..{positions.max():,} of 0..{row.target_len - 1:,}")
    gaps = view.skips[view.skips > 0]
    between = (
        f"; {len(gaps):,} gaps of {gaps.mean():,.0f} positions on average" if len(gaps) else ""
    )
    add("segments", f"{len(row.segment_lengths):,}{between}")
    if len(row.seq_lengths) > 1:
        add("attention", f"{len(row.seq_lengths):,} documents that do not see each other")
    count = int(view.marked.sum())
    name = "in the loss" if row.kind == "replay" else "impactful"
    add(name, f"{count:,} tokens ({count / tokens:.1%}), in colour")
    return table


def _ruler(row: Row, width: int) -> Text:
    """Which part of 0..target_len the positions cover; a cell is as high as it is full."""
    cells = max(10, min(width - 2, 100))
    edges = np.arange(cells + 1) * row.target_len / cells
    covered, _ = np.histogram(row.position_ids, edges)
    full = np.diff(np.ceil(edges)).clip(1) * max(1, _documents_over(row))
    levels = np.ceil(covered / full * (len(_RULER_CELLS) - 1)).astype(int)
    bar = "".join(_RULER_CELLS[min(level, len(_RULER_CELLS) - 1)] for level in levels)
    scale = f"0{row.target_len:>{cells + 1},}"
    return Text.assemble("\n▕", (bar, _SKIP), "▏\n", (scale, "dim"), "\n")


def _documents_over(row: Row) -> int:
    """How often a position can occur in the row: in replay, once in each document."""
    return len(row.seq_lengths) if row.kind == "replay" else 1


def _documents(view: _View, full: bool) -> Table:
    row = view.row
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("document", overflow="fold")
    for name in ("used from", "to", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    kept = np.bincount(view.document, minlength=len(row.doc_ids))
    shown = len(row.doc_ids) if full else _DOCUMENTS
    for index, name in enumerate(row.doc_ids[:shown]):
        begin, length = int(row.doc_offsets[index]), int(row.doc_lengths[index])
        table.add_row(
            Text(_clean(name)), f"{begin:,}", f"{begin + length:,}", f"{int(kept[index]):,}"
        )
    if len(row.doc_ids) > shown:
        table.add_row(Text(f"... and {len(row.doc_ids) - shown:,} more (--full)", style="dim"))
    return table


# The text


def _body(view: _View, tokenizer: Tokenizer | None, full: bool) -> Iterator[Text]:
    tokens = len(view.row.input_ids)
    if full or tokens <= _HEAD_TOKENS + _TAIL_TOKENS:
        yield _stretch(view, 0, tokens, tokenizer)
        return
    head = _character_start(view, _HEAD_TOKENS, tokenizer)
    tail = _character_start(view, tokens - _TAIL_TOKENS, tokenizer)
    yield _stretch(view, 0, head, tokenizer)
    yield Text(f"\n... {tail - head:,} tokens not shown (--full) ...\n", style="dim")
    yield _stretch(view, tail, tokens, tokenizer)


def _character_start(view: _View, token: int, tokenizer: Tokenizer | None) -> int:
    """The first token from `token` on that does not begin inside a character."""
    if tokenizer is not None:
        while token < len(view.row.input_ids):
            data = _bytes_of(view.row.input_ids[token : token + 1], tokenizer)
            if not data or data[0] & 0xC0 != 0x80:
                break
            token += 1
    return token


def _stretch(view: _View, start: int, stop: int, tokenizer: Tokenizer | None) -> Text:
    """Tokens [start, stop) with everything that happens between them."""
    text = Text()
    inside = view.breaks[(view.breaks > start) & (view.breaks < stop)]
    edges = [start, *inside.tolist(), stop]
    for begin, end in pairwise(edges):
        _add_break(text, view, begin)
        if tokenizer is None:
            _add_counts(text, view, begin, end)
        else:
            _add_text(text, view, begin, end, tokenizer)
    return text


def _add_break(text: Text, view: _View, at: int) -> None:
    """A skip of positions (…: text was left out, positions go on), a change of document."""
    skip = int(view.skips[at])
    if skip or view.dropped[at]:
        text.append(f"⟨+{skip}⟩" if skip else "⟨…⟩", _SKIP)
    ends, begins = int(view.document[max(0, at - 1)]), int(view.document[at])
    if ends != begins:
        names = [_clean(view.row.doc_ids[index]) for index in (ends, begins)]
        passed = f" ({begins - ends - 1} with nothing kept)" if begins - ends > 1 else ""
        line = f"-- end of {names[0]}{passed}; {names[1]} --"
        newline = "" if text.plain.endswith("\n") else "\n"
        text.append(f"{newline}{line}\n", _EDGE)


def _add_counts(text: Text, view: _View, begin: int, end: int) -> None:
    marked = int(view.marked[begin:end].sum())
    text.append(f"[{end - begin}]", _HIGHLIGHT if marked else "")


def _add_text(text: Text, view: _View, begin: int, end: int, tokenizer: Tokenizer) -> None:
    """Decode a stretch without a break. A character split over tokens is decoded whole; it takes
    the colour of its last token."""
    ids = view.row.input_ids[begin:end]
    styles = view.marked[begin:end] + 2 * tokenizer.special[ids]
    changes = np.flatnonzero(np.diff(styles, prepend=-1))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    edges = [*changes.tolist(), len(ids)]
    for first, last in pairwise(edges):
        data = _bytes_of(ids[first:last], tokenizer)
        piece = decoder.decode(data, final=last == len(ids))
        text.append(_clean(piece, keep="\n\t"), ("", _HIGHLIGHT, _SPECIAL, _SPECIAL)[styles[first]])


def _bytes_of(ids: np.ndarray, tokenizer: Tokenizer) -> bytes:
    values, offsets = tokenizer.token_bytes
    starts, lengths = offsets[ids], offsets[ids + 1] - offsets[ids]
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return bytes(values[np.repeat(starts, lengths) + inside])


def _clean(text: str, keep: str = "") -> str:
    """Text is data: what a terminal would obey (control characters, changes of the direction of
    writing) becomes a visible sign."""
    if text.isprintable():
        return text
    return text.translate({code: sign for code, sign in _SIGNS.items() if chr(code) not in keep})


_SIGNS = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}
