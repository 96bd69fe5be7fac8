"""Corpora that are made, not stored: the same bytes for the same seed, in every format."""

import gzip
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.conftest import generated_text

Record = Mapping[str, object]

ENDINGS = {
    "jsonl": ".jsonl",
    "jsonl.gz": ".jsonl.gz",
    "jsonl.zst": ".jsonl.zst",
    "parquet": ".parquet",
    "arrow file": ".arrow",
    "arrow stream": ".arrow",
    "txt": ".txt",
    "txt.gz": ".txt.gz",
}
"""The formats of a corpus file, and how their names end."""


def paragraphs(count: int, seed: int) -> list[str]:
    return list(generated_text(count, seed))


def long_texts(characters: int, seed: int, longest: int = 200) -> Iterator[str]:
    """Texts of 1..`longest` paragraphs, about `characters` in all; fast, since paragraphs recur."""
    draw, pool = random.Random(seed), paragraphs(200, seed)
    while characters > 0:
        text = "".join(draw.choices(pool, k=draw.randint(1, longest)))
        characters -= len(text)
        yield text


def json_lines(records: Sequence[Record]) -> bytes:
    return "".join(json.dumps(dict(record)) + "\n" for record in records).encode()


def encoded(records: Sequence[Record], format: str, rows_in_group: int = 8) -> bytes:
    """Records as the bytes of a file of this format; text formats hold their texts alone."""
    if format.startswith("jsonl"):
        return packed(json_lines(records), format)
    if format.startswith("txt"):
        return packed("\n".join(str(record["text"]) for record in records).encode(), format)
    return columnar(pa.Table.from_pylist([dict(r) for r in records]), format, rows_in_group)


def packed(data: bytes, format: str) -> bytes:
    """Compressed as the format's name says."""
    if format.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    return zstandard.compress(data) if format.endswith(".zst") else data


def columnar(table: pa.Table, format: str, rows: int) -> bytes:
    """A Parquet file with checksums, or an Arrow file or stream, in groups of `rows`."""
    sink = io.BytesIO()
    if format == "parquet":
        pq.write_table(table, sink, row_group_size=rows, write_page_checksum=True)
        return sink.getvalue()
    new = pa.ipc.new_file if format == "arrow file" else pa.ipc.new_stream
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def several_files(folder: Path, characters: int, seed: int = 0) -> list[Path]:
    """Eight files in the formats people have, of about equal size: each a source, so a unit.

    `characters`: of all of them together.
    """
    formats = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet") * 2
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, format in enumerate(formats):
        texts = long_texts(characters // len(formats), seed + number)
        records = [{"id": f"{number}-{at}", "text": text} for at, text in enumerate(texts)]
        paths.append(folder / f"part{number}{ENDINGS[format]}")
        paths[-1].write_bytes(encoded(records, format, rows_in_group=100))
    return paths


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too: relative path -> bytes. An empty folder: `name/`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = path.read_bytes()
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = b""
    return found


def some_texts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Texts of 1..`longest` paragraphs."""
    draw = random.Random(seed)
    return ["".join(generated_text(draw.randint(1, longest), seed + i)) for i in range(count)]


def write_jsonl(path: Path, texts: Sequence[str], **fields: object) -> Path:
    """A file of texts with ids, `<the file's name>-<number>`; returns its path."""
    records = [{"id": f"{path.stem}-{i}", "text": text, **fields} for i, text in enumerate(texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json_lines(records))
    return path
