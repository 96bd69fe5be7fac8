"""The shell of our HTML pages: one file that loads nothing, whatever the data hold.

    page("A title", body, style=css, script=javascript)

Everything is in the file, and a Content-Security-Policy forbids the rest: only this very script
runs, and nothing is fetched. All text from data goes through `text` (or, as JSON, `data_block`).
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

from lrdata.visible import visible


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page. `body` is HTML; `script` runs when the body is there."""
    return "".join(page_parts(title, [body], style=style, script=script))


def page_parts(
    title: str, body: Iterable[str], *, style: str = "", script: str = ""
) -> Iterator[str]:
    """The same in parts, to be written one at a time; so is the body, a line or more each."""
    if "</script" in script.lower() or "</style" in style.lower():
        raise ValueError("the page's own code must not end its element")
    runs = f"; script-src 'sha256-{_sha256(script)}'" if script else ""
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'{runs}"
    )
    yield from (
        f"{line}\n"
        for line in (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text(title)}</title>",
            f"<style>{asset('lrdata.report', 'page.css')}{style}</style>",
            "</head>",
            "<body>",
        )
    )
    yield from (f"{part}\n" for part in body)
    if script:
        yield f"<script>{script}</script>\n"
    yield "</body>\n</html>\n"


def asset(package: str, name: str) -> str:
    """A style sheet or script that lies beside a package's modules."""
    return (files(package) / name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def text(value: Any) -> str:
    """Text of the data as it may stand in an element or in a quoted attribute."""
    return html.escape(visible(str(value)))


def data_block(name: str, value: Any) -> str:
    """JSON for the page's script. No `<` is in it, so that nothing ends the element."""
    packed = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" class="{text(name)}">{packed}</script>'


def section(title: str, *parts: str) -> str:
    """A part of a page; the title is text, the parts are HTML."""
    return "\n".join(["<section>", f"<h2>{text(title)}</h2>", *parts, "</section>"])


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table whose cells are HTML; the columns in `numbers` are set to the right."""

    def row(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if at in numbers else f"<{tag}>{cell}</{tag}>"
            for at, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row('td', cells)}</tr>\n" for cells in rows)
    head = f"<thead><tr>{row('th', header)}</tr></thead>\n" if any(header) else ""
    return f'<div class="wide"><table>\n{head}<tbody>\n{body}</tbody></table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, both text."""
    inner = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>\n" for name, value in pairs)
    return f'<dl class="facts">\n{inner}</dl>'


def short(count: int) -> str:
    """`1.2 M`: a number of three digits."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,}"


def some_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def bar(share: float) -> str:
    """A share of 0..1 as a bar in a table's cell."""
    width = 100 * min(max(share, 0.0), 1.0)
    return f'<span class="bar"><span style="width:{width:.2f}%"></span></span>'
