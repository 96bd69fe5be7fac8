"""A name -> the place that it stands for."""

from pathlib import Path

from lrdata.hub.places import Place, parse_place
from lrdata.hub.plain import PlainFolder
from lrdata.hub.repository import Repository


def open_place(where: str | Path, revision: str | None = None) -> Place:
    """The place that a name stands for; nothing is asked of it yet."""
    found = where if isinstance(where, Path) else parse_place(where, revision)
    return PlainFolder(found) if isinstance(found, Path) else Repository(found)
