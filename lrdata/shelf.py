"""Where a unit of work puts what it makes: shards by kind, and its rejected records.

Files appear in the staging folder as `<stem>.<kind>.parquet` and `<stem>.quarantine.jsonl`, each
complete or not at all; a kind without rows leaves no file.
"""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TextIO

import pyarrow as pa

from lrdata.atomic import replacing
from lrdata.manifest import FileEntry
from lrdata.records import Rejected
from lrdata.shard_writer import ShardWriter, writing_shard
from lrdata.shards import SCHEMA, Row, file_sha256
from lrdata.stopwatch import Stopwatch


class Shelf:
    """A context that collects rows and rejected records.

    When it closes, `entries` are its shards. watch: adds up what writing takes, by stage.
    """

    def __init__(
        self,
        staging: Path,
        stem: str,
        watch: Stopwatch | None = None,
        schema: pa.Schema = SCHEMA,
    ) -> None:
        self.staging, self.stem, self._watch, self._schema = staging, stem, watch, schema
        self.entries: list[FileEntry] = []
        self._open = ExitStack()
        self._writers: dict[str, ShardWriter] = {}
        self._quarantine: TextIO | None = None

    def __enter__(self) -> "Shelf":
        self._open.__enter__()
        self.quarantine_path.unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, problem, trace)
        if problem is None:
            self.entries = [self._entry(name, writer) for name, writer in self._writers.items()]

    def write(self, row: Row) -> None:
        """Add a row to the shard of its kind."""
        if row.kind not in self._writers:
            path = self.staging / f"{self.stem}.{row.kind}.parquet"
            self._writers[row.kind] = self._open.enter_context(
                writing_shard(path, self._schema, self._watch)
            )
        self._writers[row.kind].write(row)

    def reject(self, entry: Rejected) -> None:
        """Add a line to the quarantine: file, record, reason; never the text."""
        if self._quarantine is None:
            partial = self._open.enter_context(replacing(self.quarantine_path))
            self._quarantine = self._open.enter_context(partial.open("w", encoding="utf-8"))
        self._quarantine.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")

    @property
    def quarantine_path(self) -> Path:
        return self.staging / f"{self.stem}.quarantine.jsonl"

    def _entry(self, kind: str, writer: ShardWriter) -> FileEntry:
        path = self.staging / f"{self.stem}.{kind}.parquet"
        return FileEntry(
            path=path.name,
            kind=kind,
            rows=writer.rows,
            tokens=writer.tokens,
            bytes=path.stat().st_size,
            sha256=file_sha256(path),
            content_sha256=writer.content.hexdigest(),
        )
