"""Reading a whole corpus file in units, for the tests of every format."""

from pathlib import Path

from lrdata.corpus import UNIT_BYTES, find_files, plan_units
from lrdata.reader import read_unit
from lrdata.records import Documents, Fields, Rejected, records_read


def read_file(
    path: Path, fields: Fields | None = None, unit_bytes: int = UNIT_BYTES, batch_bytes: int = 1
) -> tuple[Documents, list[Rejected]]:
    """All documents and rejections of a file, in order. Batches of one record unless told."""
    documents, rejected = Documents(), list[Rejected]()
    for unit in plan_units(find_files([str(path)]), unit_bytes):
        for batch, refused in read_unit(unit, fields or Fields(), batch_bytes):
            assert records_read(batch, refused) > 0
            documents.texts += batch.texts
            documents.ids += batch.ids
            documents.sources += batch.sources
            documents.files += batch.files
            documents.records += batch.records
            if batch.prompts:
                documents.prompts = (documents.prompts or []) + batch.prompts
            rejected += refused
    return documents, rejected
