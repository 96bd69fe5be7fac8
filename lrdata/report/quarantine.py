"""Rejected records by reason: counts and reasons alone, no place and no text."""

import json
import re
from collections import Counter
from pathlib import Path

from lrdata.manifest import refuse_leaving

_LONGEST_LINE = 64 * 1024
_MOST_REASONS = 1_000
_OTHERS = "other reasons"
_PLACE = re.compile(r"\b(at byte |at character |row group )\d+")
"""Where in its record or file something is wrong: another for each."""


def rejected_by_reason(folder: Path) -> list[tuple[str, int]]:
    """(reason, records) of a dataset's quarantine, the most frequent first; places in them are cut.

    Memory is bounded: of very many reasons, those that come late are counted together. Lines that
    are not as a build writes them are passed over.
    """
    counts = Counter[str]()
    for path in sorted((folder / "quarantine").glob("*.jsonl")):
        refuse_leaving(folder, path)
        with path.open("rb") as stream:
            while line := stream.readline(_LONGEST_LINE):
                reason, count = _entry(line)
                if count:
                    known = reason in counts or len(counts) < _MOST_REASONS
                    counts[reason if known else _OTHERS] += count
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _entry(line: bytes) -> tuple[str, int]:
    try:
        entry = json.loads(line)
        reason, count = entry["reason"], entry.get("count", 1)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", 0
    fits = isinstance(reason, str) and type(count) is int and count > 0
    return (_PLACE.sub(r"\1…", reason[:200]), count) if fits else ("", 0)
