"""Which windows of a corpus are scored: a uniform sample, the same for a seed on every machine."""

import heapq
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.atomic import replacing
from lrdata.corpus import SourceFile, plan_units
from lrdata.draws import Draws
from lrdata.encoding import DocumentEncoder
from lrdata.errors import LongRecipeError
from lrdata.progress import progress
from lrdata.reader import read_unit
from lrdata.records import Fields


class TextWindow(NamedTuple):
    """Tokens int32 [n] of a document, from its token `start` on."""

    document: str
    start: int
    ids: np.ndarray


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
) -> list[TextWindow]:
    """About `tokens` tokens of the files' documents in windows, in corpus order.

    Every window of a document of at least `least` tokens has a key, drawn from the seed and its
    place; the smallest `per_document` of each document take part, and of these the smallest are
    taken until there are enough. Of documents with the same id the first counts. Raises
    LongRecipeError when no document is long enough.
    """
    chosen: list[tuple[float, int, int, TextWindow]] = []  # a heap, the largest key on top
    held, known, longest = 0, set[str](), 0
    for document, ids in _documents(files, fields, encoder):
        longest = max(longest, len(ids))
        if len(ids) < least or document in known:
            continue
        known.add(document)
        draws = Draws(seed, document)
        keyed = [
            (draws.share(f"score {start}"), start, stop)
            for start, stop in cut(len(ids), window, min(least, window))
        ]
        for key, start, stop in sorted(keyed)[:per_document]:
            part = TextWindow(document, start, ids[start:stop].copy())
            heapq.heappush(chosen, (-key, -len(known), -start, part))
            held += stop - start
        while tokens is not None and chosen and held - len(chosen[0][3].ids) >= tokens:
            held -= len(heapq.heappop(chosen)[3].ids)
    if not chosen:
        raise LongRecipeError(
            f"no document has {least:,} tokens (the longest has {longest:,}); lower --window or "
            "--min-doc-tokens"
        )
    return [part for *_, part in sorted(chosen, key=lambda item: item[1:3], reverse=True)]


def _documents(
    files: Sequence[SourceFile], fields: Fields, encoder: DocumentEncoder
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, tokens with the end of text) of every document."""
    units = plan_units(files)
    with progress("sampling windows", len(units)) as task:
        for unit in units:
            for documents, _ in read_unit(unit, fields):
                if documents.long is not None:
                    parts = encoder.encode_long(documents.long)
                    if not isinstance(parts, str):
                        yield documents.ids[0], np.concatenate([part.ids for part in parts])
                    continue
                tokens, starts = encoder.encode(documents)
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
