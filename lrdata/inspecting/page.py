"""Look at rows in a browser: one file, `lrdata inspect --html`.

    write_page(Path("shards"), "extend", 3, Path("row.html"), tokenizer, corpora=["books/"])

Rows are articles of the page, of which one is shown; the script turns to the others.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lrdata.atomic import replacing
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.inspecting.ruler import ruler
from lrdata.inspecting.shown import Shown
from lrdata.inspecting.spelling import check_tokenizer
from lrdata.inspecting.view import View
from lrdata.inspecting.window import find_windows
from lrdata.report.page import asset, data_block, facts, page_parts, table, text
from lrdata.shards import Shards
from lrdata.tokenizer import Tokenizer
from lrdata.visible import visible

Window = np.ndarray | str | None
"""The ids of a row's window; the name of what was not found of it; None: nobody looked."""

_KEYS = (
    ("n →", "the next row"),
    ("p ←", "the row before"),
    ("j", "the next segment"),
    ("k", "the segment before"),
    ("J K", "the next and the previous gap between positions"),
    ("d", "hide or show what was dropped"),
    ("m", "letters of one width, or not"),
    ("?", "this help"),
)


_ROWS, _TOKENS = 5, 5 * 2**17
"""Rows on a page unless another number is asked for: fewer of windows above 128k."""


def write_page(
    folder: Path,
    kind: str,
    row: int,
    file: Path,
    tokenizer: Tokenizer | None,
    corpora: Sequence[str] = (),
    rows: int | None = None,
) -> None:
    """Write `rows` rows of a kind, from `row` on, as a page (None: five, fewer of long windows).

    With the corpus that the dataset was built from, `corpora`, it shows what was dropped, too;
    without the tokenizer, a mark for each token. Raises LongRecipeError when there is no such row,
    the tokenizer is another, or the first row's documents are not in the corpus.
    """
    shards = open_dataset(folder)
    if tokenizer is not None:
        check_tokenizer(shards.manifest, tokenizer)
    elif corpora:
        raise LongRecipeError(
            f"--corpus needs the tokenizer of the build, {shards.manifest.tokenizer.name}, to find "
            "the rows in it; give it with --tokenizer"
        )
    if corpora and kind != "extend":
        raise LongRecipeError(f"{kind} rows are whole: there is no more in --corpus; leave it out")
    if rows is None:
        rows = min(max(_TOKENS // max(shards.target_len, 1), 1), _ROWS)
    last = max(row + 1, min(row + rows, shards.rows(kind)))
    views = [View.read(shards, kind, index) for index in range(row, last)]
    windows = _windows(views, corpora, shards, tokenizer)
    package = "lrdata.inspecting"
    parts = page_parts(
        _title(shards, views[0]),
        _body(shards, views, windows, tokenizer),
        style=asset(package, "page.css"),
        script=asset(package, "page.js"),
    )
    with replacing(file) as partial, partial.open("w", encoding="utf-8") as stream:
        stream.writelines(parts)


def _body(
    shards: Shards, views: Sequence[View], windows: Sequence[Window], tokenizer: Tokenizer | None
) -> Iterator[str]:
    """Rows one at a time: one is some megabytes. Without the script all of them are shown."""
    yield "<main>"
    last = views[-1].index
    for view, window in zip(views, windows, strict=True):
        yield _article(shards, view, window, tokenizer, (views[0].index, last))
    yield '</main>\n<div id="tip" hidden></div><div id="status" role="status"></div>'
    yield _help()


def _windows(
    views: Sequence[View], corpora: Sequence[str], shards: Shards, tokenizer: Tokenizer | None
) -> Sequence[Window]:
    if tokenizer is None or not corpora:
        return [None] * len(views)
    wanted = [view for view in views if not view.is_whole]
    found = iter(find_windows(wanted, corpora, shards.manifest, tokenizer) if wanted else ())
    windows = [view.row.input_ids if view.is_whole else next(found) for view in views]
    if isinstance(windows[0], str):
        built = " ".join(map(str, shards.manifest.recipe.get("corpora", ())))
        raise LongRecipeError(
            f"{visible(windows[0])} of row {views[0].index} is not in the given --corpus as it was "
            f"built; name the corpus as the build did: {visible(built)}"
        )
    return windows


def _title(shards: Shards, view: View) -> str:
    return f"{shards.folder.resolve().name}: {view.row.kind} row {view.index:,}"


def _article(
    shards: Shards,
    view: View,
    window: Window,
    tokenizer: Tokenizer | None,
    ends: tuple[int, int],
) -> str:
    """A row; `ends` are the first and the last one of the page."""
    ids = window if isinstance(window, np.ndarray) else None
    shown = Shown.of(view, ids, tokenizer)
    title = _title(shards, view)
    hint = "hover over the text for positions; press ? for the keys"
    return "\n".join(
        [
            f'<article id="row-{view.index}" data-row="{view.index:,}" data-title="{text(title)}" '
            f'data-hint="{hint}">',
            '<header class="top">',
            f'<div class="title"><h1>{text(title)}</h1>',
            f'<span class="soft">of {view.rows:,}</span>{_navigation(view.index, *ends)}</div>',
            ruler(view),
            "</header>",
            '<div class="row">',
            facts(view.facts()[1:]),
            _documents(view, ids is not None),
            *_notes(shards, window, tokenizer),
            _legend(view, ids is not None),
            f'<div class="text{"" if ids is None else " whole"}">{"".join(shown.blocks())}</div>',
            data_block("tokens", shown.data()),
            "</div>",
            "</article>",
        ]
    )


def _navigation(index: int, first: int, last: int) -> str:
    """Links to other rows, which need no script, and buttons, which do."""
    links = ""
    if index > first:
        links += f'<a data-key="p" href="#row-{index - 1}" title="the row before">← row</a>'
    if index < last:
        links += f'<a data-key="n" href="#row-{index + 1}" title="the next row">row →</a>'
    return (
        f'<nav aria-label="rows and segments">{links}'
        '<button data-key="k" title="the segment before">↑ segment</button>'
        '<button data-key="j" title="the next segment">segment ↓</button>'
        '<button data-key="?" title="all keys">?</button></nav>'
    )


def _documents(view: View, whole: bool) -> str:
    row, kept = view.row, view.kept
    cells = []
    for index, name in enumerate(row.doc_ids):
        begin, length = int(row.doc_offsets[index]), int(row.doc_lengths[index])
        there = (length > 0) if whole else kept[index] > 0
        link = f'<a href="#r{view.index}-d{index}">{text(name)}</a>' if there else text(name)
        share = f"{kept[index] / length:.0%}" if length else ""
        cells.append((link, f"{begin:,}", f"{length:,}", f"{int(kept[index]):,}", share))
    header = ("document", "first token", "tokens used", "kept", "")
    several = "document" if len(cells) == 1 else "documents"
    opened = " open" if len(cells) <= 3 else ""
    rows = table(header, cells, numbers=(1, 2, 3, 4))
    return (
        f"<details{opened}><summary>{len(cells):,} {several} in the window</summary>\n{rows}"
        "</details>"
    )


def _notes(shards: Shards, window: Window, tokenizer: Tokenizer | None) -> Iterator[str]:
    if tokenizer is None:
        name = text(shards.manifest.tokenizer.name)
        yield (
            f'<p class="note">The tokenizer {name} is not at hand, so each token is a mark: pass '
            "<code>--tokenizer</code> (a folder or hub id) to see the text.</p>"
        )
    if isinstance(window, str):
        yield (
            f'<p class="note">What was dropped is not shown: {text(window)} is not in the given '
            "<code>--corpus</code>.</p>"
        )


def _legend(view: View, whole: bool) -> str:
    marks = "counts in the loss" if view.row.kind == "replay" else "impactful token"
    parts = [
        '<span><span class="k">kept</span></span>',
        f'<span class="k"><b>{marks}</b></span>',
        '<span class="k"><i>special token</i></span>',
    ]
    if whole:
        parts.insert(1, '<span class="d">dropped</span>')
    if view.row.kind == "extend":
        parts += [
            '<span><span class="gap">−640 +812</span> 640 tokens of text dropped, 812 positions '
            "skipped</span>",
            '<span><span class="gap none">−9</span> 9 tokens dropped, positions go on</span>',
        ]
    return f'<div class="legend{" whole" if whole else ""}">{"".join(parts)}</div>'


def _help() -> str:
    keys = "".join(
        "<dt>" + " ".join(f"<kbd>{key}</kbd>" for key in names.split()) + f"</dt><dd>{what}</dd>"
        for names, what in _KEYS
    )
    return (
        f'<dialog id="help" aria-labelledby="keys"><h2 id="keys">Keys</h2><dl>{keys}</dl>'
        "<p>Click on a ruler to go there: the upper one is the window, the lower one the positions."
        '</p><form method="dialog"><button>Close</button></form></dialog>'
    )
