"""What of a dataset may be published: its sources' licences, and no path of the machine it is from.

What is one value in JSON is a path where all of it is one. In the card a path is a word that begins
like one of this machine, or with a folder that people's files lie in; `a/b`, addresses, what a site
calls `/datasets/me/x`, HTML that ends an element and what follows a wildcard are none.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lrdata.errors import LongRecipeError, one_line
from lrdata.layout import CARD, PAGE
from lrdata.manifest import MANIFEST, Manifest

_HOMES = "home|Users|root|mnt|media|Volumes|tmp|var|srv|opt|scratch|nfs|gpfs|lustre"
_REST = r"[^\s)\]>\"'`*|,;&]*"
_BEFORE = r"(?:^|(?<=[\s(\[<>|:=,;\"'`_]))"
_EMPHASIS = r"(?:^|(?<=[\s(\[<>|:=,;_]))\*{1,3}"
"""Markdown's, which begins a word: in `a/*/b` and in quotes an asterisk is a wildcard."""


def refuse_unlicensed(root: Path, manifest: Manifest) -> None:
    bare = sorted({entry.source for entry in manifest.sources if not entry.licence})
    if bare:
        more = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        raise LongRecipeError(
            f"{root} has sources without a licence ({', '.join(bare[:3])}{more}); build it with "
            "--license SOURCE=ID, or push it with --allow-unlicensed"
        )


def refuse_absolute_paths(root: Path) -> None:
    """They tell of the machine that a dataset was built on."""
    for name in (*CARD, MANIFEST, *([PAGE] if (root / PAGE).exists() else [])):
        try:
            text = (root / name).read_text(encoding="utf-8")
            parts = _strings(json.loads(text)) if name.endswith(".json") else [text]
            found = next((path for part in parts for path in _published(name, part)), None)
        except (ValueError, RecursionError) as problem:
            raise LongRecipeError(
                f"{root / name} cannot be read ({one_line(problem)}); build or pull the dataset "
                "again"
            ) from None
        if found is not None:
            raise LongRecipeError(
                f"{root / name} has the absolute path {found!r}, which is not published; take it "
                "out, build with relative names, or push it with --allow-absolute-paths"
            )


def _published(name: str, text: str) -> Iterator[str]:
    """The paths in a text of a file. A value that is one word, and a page, are no Markdown."""
    return absolute_paths(text, markdown=name != PAGE and len(text.split()) != 1)


def absolute_paths(text: str, *, markdown: bool = True) -> Iterator[str]:
    """The paths of a machine in a text; the whole text, where that is one."""
    one = text.strip()
    if "\n" not in one and _is_path(one):
        yield one
    else:
        found = _words(markdown).finditer(text)
        yield from (match["path"] for match in found if not _ends_element(match))


def _ends_element(found: re.Match[str]) -> bool:
    """Whether it is HTML: `</main>`, where there is a `<main`."""
    text, (start, stop) = found.string, found.span()
    tag = text[start - 1 : start] == "<" and text[stop : stop + 1] == ">"
    return tag and re.search(rf"<{re.escape(found['path'][1:])}\b", text) is not None


def _is_path(text: str) -> bool:
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return (absolute or text.startswith(("~/", "file:"))) and text.strip("/~") != ""


def _words(markdown: bool) -> re.Pattern[str]:
    here = "|".join(
        re.escape(str(folder)) for folder in (Path.home(), Path.cwd()) if len(folder.parts) > 1
    )
    begins = rf"/(?:{_HOMES})/|~/\w|file:/|[A-Za-z]:\\\w" + (f"|(?:{here})\\b" if here else "")
    before = f"(?:{_BEFORE}|{_EMPHASIS})" if markdown else _BEFORE
    return re.compile(rf"{before}(?P<path>(?:{begins}){_REST})", re.MULTILINE)


def _strings(value: Any) -> Iterator[str]:
    """All texts of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        yield from (text for item in value.values() for text in _strings(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in _strings(item))
