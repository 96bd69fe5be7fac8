"""Where a dataset's rows come from: each source with its files, licences and rows."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from lrdata.errors import LongRecipeError, one_line
from lrdata.manifest import FileEntry
from lrdata.progress import progress
from lrdata.shard_file import ShardFile
from lrdata.shards import Shards

OTHERS = "other sources"
_LONGEST_NAME = 200
_MOST_NAMES = 10_000
"""Records may name sources of their own; of more names, those that come late are one."""


@dataclass
class SourceFacts:
    """licences: those stated for its files, None where none was. rows: by kind; a row counts for
    the source of its first document."""

    name: str
    files: int = 0
    bytes: int = 0
    licences: set[str | None] = field(default_factory=set)
    rows: Counter[str] = field(default_factory=Counter)

    def add(self, other: "SourceFacts") -> None:
        self.files += other.files
        self.bytes += other.bytes
        self.licences |= other.licences
        self.rows += other.rows


def sources_of(shards: Shards) -> list[SourceFacts]:
    """The sources of the manifest and of the rows: those with most rows, then bytes, first.

    Of the rows only the column `source` is decoded, of files whose sha256 was checked. Raises
    LongRecipeError for a file that is damaged.
    """
    found: dict[str, SourceFacts] = {}
    for source in shards.manifest.sources:
        facts = found.setdefault(source.source, SourceFacts(source.source))
        facts.files += 1
        facts.bytes += source.bytes
        facts.licences.add(source.licence)
    files = [entry for kind in shards.kinds for entry in shards.files(kind) if entry.rows]
    with progress("checking files and counting their sources", len(files)) as task:
        for entry in files:
            for name, count in _rows_by_source(shards, entry).items():
                known = name in found or len(found) < _MOST_NAMES
                key = name if known else OTHERS
                found.setdefault(key, SourceFacts(key)).rows[entry.kind] += count
            task.advance()
    return sorted(found.values(), key=lambda one: (-one.rows.total(), -one.bytes, one.name))


def _rows_by_source(shards: Shards, entry: FileEntry) -> Counter[str]:
    counts, path = Counter[str](), shards.checked(entry)
    try:
        with ShardFile(path) as file:
            if file.schema.field("source").type != pa.string():
                raise pa.ArrowInvalid("the column source is no text")
            for group in range(file.groups):
                names = file.read(group, ["source"])["source"]
                cut = pc.utf8_slice_codeunits(names, 0, _LONGEST_NAME)
                for pair in pc.value_counts(cut).to_pylist():
                    counts[str(pair["values"])] += pair["counts"]
    except (OSError, pa.ArrowException, KeyError) as problem:
        raise LongRecipeError(
            f"{path} cannot be read ({one_line(problem)}); run `lrdata verify`"
        ) from None
    return counts
