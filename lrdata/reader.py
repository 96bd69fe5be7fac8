"""Units -> batches of documents: every record is either a document or rejected with a reason.

for documents, rejected in read_unit(unit, Fields(text="body", id="meta.id")): ...
"""

from collections.abc import Callable, Iterator

from lrdata.columnar import read_arrow, read_parquet
from lrdata.corpus import Piece, Unit, changed
from lrdata.errors import LongRecipeError
from lrdata.jsonl import read_jsonl, read_text
from lrdata.long_text import LongText
from lrdata.records import Documents, Fields, Record, Rejected

BATCH_BYTES = 4 * 1024**2
"""Enough to keep the encoder busy, little enough for the caches."""

_RECORD_OVERHEAD = 256  # bytes that a record costs beside its text, roughly

_READERS: dict[str, Callable[[Piece, Fields], Iterator[Record | Rejected]]] = {
    "jsonl": read_jsonl,
    "text": read_text,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


def read_unit(
    unit: Unit, fields: Fields, batch_bytes: int = BATCH_BYTES
) -> Iterator[tuple[Documents, list[Rejected]]]:
    """The records of a unit in order, in batches of about `batch_bytes` of text.

    Holds about `batch_bytes` and the largest record. Raises LongRecipeError where a needed field
    is in no record of a file, and where a file changed since the unit was planned.
    """
    documents, rejected, held = Documents(), list[Rejected](), 0
    for piece in unit.pieces:
        for item in _read_piece(piece, fields):
            long = isinstance(item, Record) and type(item.text) is LongText
            if long and documents.texts:
                yield documents, rejected
                documents, rejected, held = Documents(), [], 0
            held += _RECORD_OVERHEAD
            if isinstance(item, Record):
                documents.add(item)
                held += item.size
            else:
                rejected.append(item)
            if long or held >= batch_bytes:
                yield documents, rejected
                documents, rejected, held = Documents(), [], 0
    if held:
        yield documents, rejected


def _read_piece(piece: Piece, fields: Fields) -> Iterator[Record | Rejected]:
    file = piece.file
    if changed(file):
        raise LongRecipeError(
            f"{file.place} changed while it was being read; run the command again"
        )
    return _READERS[file.format](piece, fields)
