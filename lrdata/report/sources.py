"""Where a dataset's rows come from: each source with its files, licence and rows."""

from dataclasses import dataclass, field

import polars as pl

from lrdata.errors import LongRecipeError, one_line
from lrdata.shards import Shards


@dataclass
class SourceFacts:
    """rows: by kind; a row counts for the source of its first document."""

    name: str
    licence: str | None
    files: int = 0
    bytes: int = 0
    rows: dict[str, int] = field(default_factory=dict)


def sources_of(shards: Shards) -> list[SourceFacts]:
    """The sources of the manifest and of the rows, sorted by name.

    Of the rows only the column `source` is read. Raises LongRecipeError for a file that cannot be.
    """
    found: dict[tuple[str, str], SourceFacts] = {}
    for entry in sorted(shards.manifest.sources, key=lambda entry: entry.name):
        key = (entry.source, entry.licence or "")
        facts = found.setdefault(key, SourceFacts(entry.source, entry.licence))
        facts.files += 1
        facts.bytes += entry.bytes
    for kind in shards.kinds:
        for name, count in _rows_by_source(shards, kind):
            # Records may name a source of their own, which the manifest does not list.
            key = next((key for key in found if key[0] == name), (name, ""))
            found.setdefault(key, SourceFacts(name, None)).rows[kind] = count
    return [found[key] for key in sorted(found)]


def _rows_by_source(shards: Shards, kind: str) -> list[tuple[str, int]]:
    paths = [shards.path(entry) for entry in shards.files(kind)]
    try:
        counted = pl.scan_parquet(paths).group_by("source").agg(rows=pl.len())
        table = counted.sort("source").collect(engine="streaming")
    except (OSError, pl.exceptions.PolarsError) as problem:
        raise LongRecipeError(
            f"{shards.folder}: the {kind} rows cannot be read ({one_line(problem)}); "
            "run `lrdata verify`"
        ) from None
    return list(zip(table["source"].to_list(), table["rows"].to_list(), strict=True))
