"""A row as two rulers: where in the window its segments come from, and where they pretend to be."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lrdata.inspecting.view import View, begins
from lrdata.sizes import format_tokens

WIDTH, TRACK, HEIGHT = 10_000, 12, 54
"""In the picture's own units; it is as wide as the page."""

_CELLS = 2_500
"""Finer than a screen: more rectangles would not be seen."""

_LINKS = 1_200


def ruler(view: View) -> str:
    """SVG: the window above, the positions below, each segment joined to its positions."""
    row = view.row
    window = max(row.window_tokens, int(view.offsets[-1]) + 1)
    target = max(row.target_len, int(row.position_ids.max()) + 1)
    below = HEIGHT - TRACK
    shapes = (
        f'<path class="track" d="{_box(0, 0, WIDTH)}{_box(0, below, WIDTH)}"/>',
        f'<path class="links" d="{"".join(_links(view, window, target))}"/>',
        f'<path class="from" d="{"".join(_cells(view.offsets, window, 0))}"/>',
        f'<path class="to" d="{"".join(_cells(row.position_ids, target, below))}"/>',
        f'<path class="edges" d="{"".join(_document_edges(view, window))}"/>',
        f'<rect class="seen" x="0" y="0" width="0" height="{TRACK}"/>',
        f'<rect class="seen" x="0" y="{below}" width="0" height="{TRACK}"/>',
    )
    inner = "\n".join(shapes)
    return (
        f'<div class="scale">{_scale(row.window_tokens)}<span class="what">window</span></div>\n'
        f'<svg class="ruler" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="kept parts of the window, and their positions">\n{inner}</svg>\n'
        f'<div class="scale">{_scale(row.target_len)}<span class="what">positions</span></div>'
    )


def _scale(length: int) -> str:
    marks = (format_tokens(length * quarter // 4) for quarter in range(5))
    return "".join(f"<span>{mark}</span>" for mark in marks)


def _cells(places: np.ndarray, length: int, top: int) -> Iterator[str]:
    """Boxes over the cells that hold a place."""
    cells = np.unique(places.astype(np.int64) * _CELLS // length)
    begins = np.flatnonzero(np.diff(cells, prepend=-2) != 1)
    for first, last in pairwise([*begins.tolist(), len(cells)]):
        left, right = (int(cell) * WIDTH // _CELLS for cell in (cells[first], cells[last - 1] + 1))
        yield _box(left, top, right - left)


def _links(view: View, window: int, target: int) -> Iterator[str]:
    """From each segment down to its positions; of very many, neighbours together."""
    firsts = begins(view.row.segment_lengths)
    firsts = firsts[:: -(-len(firsts) // _LINKS)]
    positions = view.row.position_ids
    for first, end in pairwise([*firsts.tolist(), len(view.offsets)]):
        above, below = (
            [int(place) * WIDTH // length for place in (places[first], places[end - 1] + 1)]
            for places, length in ((view.offsets, window), (positions.astype(np.int64), target))
        )
        if view.row.kind == "replay":  # positions restart: their runs would cross
            below = above
        down = f"L{below[0]} {HEIGHT - TRACK}H{below[1]}"
        yield f"M{above[0]} {TRACK}{down}L{above[1]} {TRACK}z"


def _document_edges(view: View, window: int) -> Iterator[str]:
    ends = view.lead + np.cumsum(view.row.doc_lengths.astype(np.int64))[:-1]
    for cell in np.unique(ends * _CELLS // window).tolist():
        yield f"M{cell * WIDTH // _CELLS} 0v{TRACK}"


def _box(left: int, top: int, width: int) -> str:
    return f"M{left} {top}h{width}v{TRACK}h-{width}z"
