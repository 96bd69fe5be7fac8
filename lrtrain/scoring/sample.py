"""Which windows of a corpus are scored: a uniform sample, the same for a seed on every machine."""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.atomic import replacing
from lrdata.corpus import SourceFile, plan_units
from lrdata.draws import Draws
from lrdata.encoding import DocumentEncoder, sifted
from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.reader import read_unit
from lrdata.records import Fields, Rejected


class TextWindow(NamedTuple):
    """Tokens int32 [n] of a document, from its token `start` on."""

    document: str
    start: int
    ids: np.ndarray


@dataclass
class LeftOut:
    """What no window comes from: records that cannot be used, and ids that come twice."""

    records: int = 0
    first: Rejected | None = None
    twice: int = 0

    def add(self, rejected: Sequence[Rejected]) -> None:
        self.records += sum(entry.count for entry in rejected)
        self.first = self.first or next(iter(rejected), None)

    def lines(self) -> Iterator[str]:
        """What a person should know of it."""
        if self.first is not None:
            yield (
                f"{self.records:,} records cannot be used; the first: {self.first.file} record "
                f"{self.first.record}: {self.first.reason}"
            )
        if self.twice:
            yield f"{self.twice:,} ids come twice; their documents are left out"


def cut(tokens: int, window: int, least: int) -> list[tuple[int, int]]:
    """The windows [start, stop) of a document, as `lrdata build` cuts it, and its rest.

    The rest counts where it has at least `least` tokens.
    """
    edges = [*range(0, tokens, window), tokens]
    return [(start, stop) for start, stop in pairwise(edges) if stop - start >= least]


def sample_windows(
    files: Sequence[SourceFile],
    fields: Fields,
    encoder: DocumentEncoder,
    *,
    window: int,
    least: int,
    tokens: int | None,
    per_document: int | None,
    seed: int,
) -> tuple[list[TextWindow], LeftOut]:
    """About `tokens` tokens of the files' documents in windows, in corpus order.

    Every window of a document of at least `least` tokens has a key, drawn from the seed and its
    place; the smallest `per_document` of each document take part, and of these the smallest are
    taken until there are enough. Documents whose id comes twice are left out: nothing could tell
    which of them was scored. Raises LongRecipeError when no document is long enough.
    """
    chosen: list[tuple[float, int, int, TextWindow]] = []  # a heap, the largest key on top
    held, number, longest = 0, 0, 0
    twice = _ids_that_come_twice(files, fields)
    left_out = LeftOut(twice=len(twice))
    for document, ids in _documents(files, fields, encoder, left_out):
        longest = max(longest, len(ids))
        number += 1
        if len(ids) < least or _key(document) in twice:
            continue
        draws = Draws(seed, document)
        keyed = [
            (draws.share(f"score {start}"), start, stop)
            for start, stop in cut(len(ids), window, min(least, window))
        ]
        for key, start, stop in sorted(keyed)[:per_document]:
            part = TextWindow(document, start, ids[start:stop].copy())
            heapq.heappush(chosen, (-key, -number, -start, part))
            held += stop - start
        while tokens is not None and chosen and held - len(chosen[0][3].ids) >= tokens:
            held -= len(heapq.heappop(chosen)[3].ids)
    if not chosen:
        if longest >= least:
            raise LongRecipeError(
                f"the ids of all documents with {least:,} tokens come twice; choose another "
                "--id-field, or leave it out"
            )
        raise LongRecipeError(
            f"no document has {least:,} tokens (the longest has {longest:,}); lower --window or "
            "--min-doc-tokens"
        )
    ordered = sorted(chosen, key=lambda item: item[1:3], reverse=True)
    return [part for *_, part in ordered], left_out


def _ids_that_come_twice(files: Sequence[SourceFile], fields: Fields) -> set[int]:
    """Keys of the ids that two documents have. Without a field for ids there are none."""
    known, twice = set[int](), set[int]()
    for unit in plan_units(files) if fields.id else ():
        for documents, _ in read_unit(unit, fields):
            for key in map(_key, documents.ids):
                (twice if key in known else known).add(key)
    return twice


def _key(document: str) -> int:
    """64 bits of an id: a corpus has many."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8).digest())


def _documents(
    files: Sequence[SourceFile], fields: Fields, encoder: DocumentEncoder, left_out: LeftOut
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, tokens with the end of text) of every document."""
    units = plan_units(files)
    with progress("sampling windows", len(units)) as task:
        for unit in units:
            for documents, rejected in read_unit(unit, fields):
                left_out.add(rejected)
                if documents.long is not None:
                    parts = encoder.encode_long(documents.long)
                    if isinstance(parts, str):
                        left_out.add([Rejected(documents.files[0], documents.records[0], parts)])
                    else:
                        yield documents.ids[0], np.concatenate([part.ids for part in parts])
                    continue
                (tokens, starts), documents, rejected = sifted(encoder.encode, documents)
                left_out.add(rejected)
                for name, (start, stop) in zip(documents.ids, pairwise(starts), strict=True):
                    yield name, tokens.ids[start:stop]
            task.advance()


_SCHEMA = pa.schema(
    [("document", pa.string()), ("start", pa.int64()), ("ids", pa.list_(pa.int32()))]
)


def write_sample(path: Path, windows: Sequence[TextWindow]) -> None:
    """Keep a sample, atomically."""
    columns = [list(column) for column in zip(*windows, strict=True)]
    with replacing(path) as partial:
        pq.write_table(pa.table(columns, schema=_SCHEMA), partial)


def read_sample(path: Path) -> list[TextWindow]:
    """What `write_sample` kept."""
    table = pq.read_table(path).combine_chunks()
    return [
        TextWindow(document.as_py(), start.as_py(), ids.values.to_numpy())
        for document, start, ids in zip(*table.columns, strict=True)
    ]
