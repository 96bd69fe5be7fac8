"""Look at one row in the terminal.

    show(Path("shards"), "extend", 0, tokenizer, Console())

A header, the part of 0..target_len that the positions cover, the documents, and the kept text:
impactful tokens in colour (in a replay row: those that count in the loss), each skip of positions
as ⟨+1234⟩, each change of document on a line of its own.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lrdata.dataset import open_dataset
from lrdata.inspecting.spelling import check_tokenizer, token_texts
from lrdata.inspecting.view import View
from lrdata.shards import Row
from lrdata.tokenizer import Tokenizer
from lrdata.visible import visible

_HEAD_TOKENS, _TAIL_TOKENS = 500, 200
_DOCUMENTS = 8
"""Shown of a longer row without `full`."""

_HIGHLIGHT, _SKIP, _EDGE, _SPECIAL = "bold yellow", "cyan", "green", "magenta"
_RULER_CELLS = " ▁▂▃▄▅▆▇█"


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
    view = View.read(shards, kind, row)
    console.print(_header(view))
    console.print(_ruler(view.row, console.width))
    console.print(_documents(view, full))
    if tokenizer is None:
        name = visible(shards.manifest.tokenizer.name)
        line = f"Pass --tokenizer (a folder or hub id of {name}) to see the text; here are numbers"
        console.print(Text(f"{line} of tokens.", style="dim"))  # no markup in the name
    console.print()
    for piece in _body(view, tokenizer, full):
        console.print(piece, soft_wrap=not console.is_terminal)


def _header(view: View) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in view.facts():
        table.add_row(Text(name), Text(visible(value)))
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


def _documents(view: View, full: bool) -> Table:
    row, kept = view.row, view.kept
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("document", overflow="fold")
    for name in ("used from", "to", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = len(row.doc_ids) if full else _DOCUMENTS
    for index, name in enumerate(row.doc_ids[:shown]):
        begin, length = int(row.doc_offsets[index]), int(row.doc_lengths[index])
        table.add_row(
            Text(visible(name)), f"{begin:,}", f"{begin + length:,}", f"{int(kept[index]):,}"
        )
    if len(row.doc_ids) > shown:
        table.add_row(Text(f"... and {len(row.doc_ids) - shown:,} more (--full)", style="dim"))
    return table


# The text


def _body(view: View, tokenizer: Tokenizer | None, full: bool) -> Iterator[Text]:
    tokens = len(view.row.input_ids)
    if full or tokens <= _HEAD_TOKENS + _TAIL_TOKENS:
        yield _stretch(view, 0, tokens, tokenizer)
        return
    head = _character_start(view, _HEAD_TOKENS, tokenizer)
    tail = _character_start(view, tokens - _TAIL_TOKENS, tokenizer)
    yield _stretch(view, 0, head, tokenizer)
    yield Text(f"\n... {tail - head:,} tokens not shown (--full) ...\n", style="dim")
    yield _stretch(view, tail, tokens, tokenizer)


def _character_start(view: View, token: int, tokenizer: Tokenizer | None) -> int:
    """The first token from `token` on that does not begin inside a character."""
    if tokenizer is not None:
        values, offsets = tokenizer.token_bytes
        while token < len(view.row.input_ids):
            start, stop = offsets[view.row.input_ids[token] + np.arange(2)]
            if start == stop or values[start] & 0xC0 != 0x80:
                break
            token += 1
    return token


def _stretch(view: View, start: int, stop: int, tokenizer: Tokenizer | None) -> Text:
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


def _add_break(text: Text, view: View, at: int) -> None:
    """A skip of positions (…: text was left out, positions go on), a change of document."""
    skip = int(view.skips[at])
    if skip or view.left_out[at]:
        text.append(f"⟨+{skip}⟩" if skip else "⟨…⟩", _SKIP)
    ends, begins = int(view.document[max(0, at - 1)]), int(view.document[at])
    if ends != begins:
        names = [visible(view.row.doc_ids[index]) for index in (ends, begins)]
        passed = f" ({begins - ends - 1} with nothing kept)" if begins - ends > 1 else ""
        line = f"-- end of {names[0]}{passed}; {names[1]} --"
        newline = "" if text.plain.endswith("\n") else "\n"
        text.append(f"{newline}{line}\n", _EDGE)


def _add_counts(text: Text, view: View, begin: int, end: int) -> None:
    marked = int(view.marked[begin:end].sum())
    text.append(f"[{end - begin}]", _HIGHLIGHT if marked else "")


def _add_text(text: Text, view: View, begin: int, end: int, tokenizer: Tokenizer) -> None:
    """Decode a stretch without a break. A character split over tokens is decoded whole; it takes
    the colour of its last token."""
    ids = view.row.input_ids[begin:end]
    texts = token_texts(ids, tokenizer)
    styles = view.marked[begin:end] + 2 * tokenizer.special[ids]
    edges = [*np.flatnonzero(np.diff(styles, prepend=-1)).tolist(), len(ids)]
    for first, last in pairwise(edges):
        style = ("", _HIGHLIGHT, _SPECIAL, _SPECIAL)[styles[first]]
        text.append("".join(texts[first:last]), style)
