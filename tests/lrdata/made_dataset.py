"""A small dataset written by hand, row by row: right in everything, ready to be spoiled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lrdata.manifest import (
    FileEntry,
    Ledger,
    Manifest,
    SourceEntry,
    TokenizerEntry,
    write_manifest,
)
from lrdata.shard_writer import writing_shard
from lrdata.shards import SCHEMA, Row, file_sha256

TARGET, TRAIN, VOCABULARY, EOT, BOS = 64, 32, 1000, 0, 1
SPLITS = {"extend": "train", "replay": "train", "holdout": "test"}


def rows_to_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as pyarrow makes a table of them."""
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA)


def extend_row(number: int = 0, **changes: Any) -> Row:
    """Three pieces of a window of two documents, a skip of positions before the second and third.

    Its window has no start-of-text token.
    """
    lengths = np.array([8, 12, 12], np.int32)
    skips = np.repeat([0, 7, 20], lengths)
    values: dict[str, Any] = {
        "input_ids": _ids(TRAIN, number),
        "position_ids": (np.arange(TRAIN) + skips).astype(np.int32),
        "seq_lengths": np.array([TRAIN], np.int32),
        "impact_mask": np.arange(TRAIN) % 5 == 0,
        "loss_mask": np.ones(TRAIN, bool),
        "segment_starts": np.array([0, 20, 40], np.int32),
        "segment_lengths": lengths,
        "doc_ids": ["a", f"b{number}"],
        "doc_offsets": np.array([100, 0], np.int64),
        "doc_lengths": np.array([30, TARGET - 30], np.int32),
        "sample_id": f"books/a.jsonl:{number}:100:0",
        "source": "books",
        "kind": "extend",
        "window_tokens": TARGET,
        "target_len": TARGET,
    }
    return Row(**{**values, **changes})


def replay_row(number: int = 0, **changes: Any) -> Row:
    """Two packed documents; the first three tokens of each are prompt."""
    lengths = np.array([10, 15], np.int32)
    positions = np.concatenate([np.arange(10), np.arange(15)]).astype(np.int32)
    values = {
        "input_ids": _ids(25, 1000 + number),
        "position_ids": positions,
        "seq_lengths": lengths,
        "impact_mask": np.zeros(25, bool),
        "loss_mask": positions >= 3,
        "segment_starts": np.array([0, 10], np.int32),
        "segment_lengths": lengths,
        "doc_ids": [f"q{number}", f"r{number}"],
        "doc_offsets": np.array([0, 0], np.int64),
        "doc_lengths": lengths,
        "sample_id": f"chat.jsonl:{number}:0:replay",
        "source": "chat",
        "kind": "replay",
        "window_tokens": 25,
    }
    return extend_row(**{**values, **changes})


def holdout_row(number: int = 0, **changes: Any) -> Row:
    """A whole window of one document."""
    values = {
        "input_ids": _ids(TARGET, 2000 + number),
        "position_ids": np.arange(TARGET, dtype=np.int32),
        "seq_lengths": np.array([TARGET], np.int32),
        "impact_mask": np.arange(TARGET) % 7 == 0,
        "loss_mask": np.ones(TARGET, bool),
        "segment_starts": np.array([0], np.int32),
        "segment_lengths": np.array([TARGET], np.int32),
        "doc_ids": [f"h{number}"],
        "doc_offsets": np.array([0], np.int64),
        "doc_lengths": np.array([TARGET], np.int32),
        "sample_id": f"books/b.jsonl:{number}:0:0",
        "kind": "holdout",
    }
    return extend_row(**{**values, **changes})


MAKERS = {"extend": extend_row, "replay": replay_row, "holdout": holdout_row}


def good_rows() -> dict[str, list[list[Row]]]:
    """For each kind its files, each a list of rows: two of extend rows, one of each other kind."""
    return {
        "extend": [[extend_row(n) for n in range(3)], [extend_row(n) for n in range(3, 6)]],
        "replay": [[replay_row(n) for n in range(3)]],
        "holdout": [[holdout_row(n) for n in range(3)]],
    }


def _ids(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(10, VOCABULARY, count, np.int32)


def write_dataset(
    folder: Path,
    files: Mapping[str, Sequence[Sequence[Row]]] | None = None,
    tokenizer: TokenizerEntry | None = None,
    **recipe: Any,
) -> Manifest:
    """Write rows and a manifest that agrees with them, ledgers included, whatever the rows hold."""
    files = good_rows() if files is None else files
    entries = []
    for kind, parts in files.items():
        for index, rows in enumerate(parts):
            name = f"{kind}/{SPLITS[kind]}-{index:05d}-of-{len(parts):05d}.parquet"
            with writing_shard(folder / name) as shard:
                for row in rows:
                    shard.write(row)
            entries.append(
                FileEntry(
                    path=name,
                    kind=kind,
                    rows=len(rows),
                    tokens=sum(len(row.input_ids) for row in rows),
                    bytes=(folder / name).stat().st_size,
                    sha256=file_sha256(folder / name),
                    content_sha256=shard.content.hexdigest(),
                )
            )
    manifest = Manifest(
        target_len=TARGET,
        train_len=TRAIN,
        seed=3,
        recipe={
            "corpora": ["books/*.jsonl"],
            "tokenizer": "me/tiny",
            "target_len": TARGET,
            "train_len": TRAIN,
            "positions": "longrecipe",
            "seed": 3,
            **recipe,
        },
        tokenizer=tokenizer or tokenizer_entry(),
        sources=[
            SourceEntry("books/a.jsonl", "books", "CC-BY-4.0", 1234, "0" * 64),
            SourceEntry("chat.jsonl", "chat", None, 567, "1" * 64),
        ],
        files=entries,
        ledger=_ledger(entries),
        replay_ledger=_replay_ledger(entries),
        versions={"longrecipe": "0.1", "numpy": "2.0"},
    )
    write_manifest(folder, manifest)
    return manifest


def tokenizer_entry(bos_id: int | None = None, fingerprint: str = "f" * 64) -> TokenizerEntry:
    return TokenizerEntry("me/tiny", fingerprint, "e" * 64, VOCABULARY, EOT, bos_id)


def _ledger(entries: Sequence[FileEntry]) -> Ledger:
    extend = [entry for entry in entries if entry.kind == "extend"]
    holdout = [entry for entry in entries if entry.kind == "holdout"]
    rows, kept = sum(entry.rows for entry in extend), sum(entry.tokens for entry in extend)
    held_out = sum(entry.tokens for entry in holdout)
    return Ledger(
        records_read=10,
        records_built=9,
        records_quarantined=1,
        encoded=kept + held_out + 300 + 5,
        inserted=20,
        kept=kept,
        dropped=300,
        tail=25,
        held_out=held_out,
        rows=rows,
        holdout_rows=sum(entry.rows for entry in holdout),
    )


def _replay_ledger(entries: Sequence[FileEntry]) -> Ledger | None:
    replay = [entry for entry in entries if entry.kind == "replay"]
    if not replay:
        return None
    kept = sum(entry.tokens for entry in replay)
    return Ledger(
        records_read=6, records_built=6, encoded=kept, kept=kept, rows=sum(e.rows for e in replay)
    )
