"""Write an export: a Parquet file for each shard, then README.md; the folder appears when whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from lrdata.atomic import LOCK, clear, fsync, locked, replacing, write_text
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrdata.exporting.axolotl import AXOLOTL
from lrdata.exporting.documents import SCHEMA, Tally, documents_of, row_groups
from lrdata.exporting.readme import readme
from lrdata.exporting.trainer import warning
from lrdata.exporting.trl import TRL
from lrdata.manifest import FileEntry
from lrdata.progress import Task, progress
from lrdata.shards import Shards

TRAINERS = {"axolotl": AXOLOTL, "trl": TRL}


@dataclass(frozen=True)
class Exported:
    """What was written. `warning`: one line, where the trainer would train something else."""

    folder: Path
    tally: Tally
    warning: str | None


def export(folder: Path | str, trainer: str, out: Path | str, kind: str = "extend") -> Exported:
    """Write the rows of a kind into the new folder `out`, for one of TRAINERS.

    Equal datasets give equal bytes. A row group is in memory at a time.

    Raises:
        LongRecipeError: there is no such trainer or kind, a file is damaged, or `out` exists and
            is not empty. Nothing is then left behind.
    """
    if trainer not in TRAINERS:
        raise LongRecipeError(f"no export for {trainer!r}; choose one of {', '.join(TRAINERS)}")
    shards, out = open_dataset(folder), Path(out)
    if kind not in shards.kinds:
        there = ", ".join(shards.kinds) or "no rows at all"
        raise LongRecipeError(f"{folder} has no {kind} rows; it has {there}: choose --kind")
    if out.resolve().is_relative_to(shards.folder.resolve()):
        raise LongRecipeError(f"{out} is in the dataset {folder} itself; choose another --out")
    tally, files = Tally(), shards.files(kind)
    with _appearing(out) as staging, progress("exporting", shards.rows(kind)) as task:
        for number, entry in enumerate(files):
            name = f"train-{number:05d}-of-{len(files):05d}.parquet"
            _write(staging / name, shards, entry, tally, task)
        if not tally.documents:
            raise LongRecipeError(
                f"{folder} has no {kind} row with a token that counts in the loss"
            )
        text = readme(shards.manifest, kind, TRAINERS[trainer], tally)
        write_text(staging / "README.md", text)
    return Exported(out, tally, warning(TRAINERS[trainer], tally))


def _write(path: Path, shards: Shards, entry: FileEntry, tally: Tally, task: Task) -> None:
    with (
        replacing(path) as partial,
        pq.ParquetWriter(partial, SCHEMA, compression="zstd", compression_level=3) as writer,
    ):
        for group in row_groups(shards, entry):
            table = documents_of(group, tally)
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)
            task.advance(group.count, note=path.name)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Yield a folder in a hidden one beside `out`, which becomes `out` when all is written.

    What a killed run left there is removed. On an exception nothing is left.
    """
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise LongRecipeError(f"{out} is a file; choose another --out")
    if out.exists() and any(out.iterdir()):
        raise LongRecipeError(f"{out} is not an empty folder; choose another --out")
    staging = out.with_name(f".{out.name}.export")
    made = staging / "export"
    with locked(staging, out):
        for path in staging.iterdir():
            ours = path.name in (LOCK, made.name)
            if not ours and not path.name.endswith((".parquet", ".partial", "README.md")):
                raise LongRecipeError(f"{staging} holds {path.name}, not ours; move it away")
        clear(staging)
        made.mkdir()
        try:
            yield made
            fsync(made)
            os.replace(made, out)
            fsync(out.parent)
        except BaseException:
            clear(staging)
            raise
