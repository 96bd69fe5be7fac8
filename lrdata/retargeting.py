"""New positions for the rows of a built dataset, for another window, without retokenizing.

    retarget(Path("shards"), 262144, Path("shards-256k"))

The tokens of a row stay; its position ids are drawn again, with the draws of the build, to span
the new target_len. Only positions that a scheme draws can be: those of `full` and `source` are the
tokens' own places. `position_ids` and `target_len` change, and no other column: `window_tokens`
stays the length of the text's window, which the recipe keeps as `retargeted_from`. Replay and
holdout rows keep their positions too.

Like a build it works in a hidden folder inside the new one, `<out>/.retarget`. Final names are
given when all files are written; the manifest comes last. The same call after a kill starts again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lrdata.atomic import clear, locked, remove_partials, replacing, write_json
from lrdata.dataset import open_dataset
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrdata.layout import CARD
from lrdata.manifest import MANIFEST, FileEntry, Manifest, read_manifest, refuse_leaving
from lrdata.positions import SCHEMES
from lrdata.progress import Task, progress
from lrdata.rules import window_len
from lrdata.shard_writer import writing_shard
from lrdata.shards import KINDS, LSD_FIELD, SCHEMA, Row, Shards, file_sha256
from lrdata.sizes import format_tokens
from lrdata.staging import complete

RETARGETABLE = ("longrecipe", "pose", "randpos")
"""Schemes whose positions are drawn from the length of a row, its segments and target_len."""

STAGING = ".retarget"
_PLAN = "plan.json"
_LONGEST = 2**31 - 1  # positions are int32


def segments(pieces: np.ndarray, segment_tokens: int, lead: int) -> np.ndarray:
    """The segments of a row, from the pieces that it stores: the inverse of `lrdata.select`.

    A segment begins with the first sentence at or after each multiple of `segment_tokens` kept
    tokens. Pieces are cut where segments begin and where sentences were dropped, so that sentence
    is also the first piece there.

    Args:
        pieces: the row's segment_lengths, int32 [p]. lead: 1 where the row begins with a
            start-of-text token; it is not counted and belongs to the first segment.
    Returns:
        int64 [N], with the sum of `pieces`.
    """
    lengths = pieces.astype(np.int64)
    before = np.maximum(np.cumsum(lengths) - lengths - lead, 0)
    first = np.flatnonzero(np.diff(before // segment_tokens, prepend=-1))
    return np.add.reduceat(lengths, first)


@dataclass(frozen=True)
class Positioner:
    """Draws the positions of a dataset's extend rows, as the build drew them."""

    scheme: str
    segment_tokens: int
    seed: int
    lead: int

    @classmethod
    def of(cls, shards: Shards) -> "Positioner":
        """Raises LongRecipeError when the positions of the dataset are not drawn for a window."""
        recipe = shards.manifest.recipe
        scheme, segment_tokens = recipe.get("positions"), recipe.get("segment_tokens")
        if scheme not in RETARGETABLE:
            raise LongRecipeError(
                f"{shards.folder} has positions of the scheme {scheme}, not drawn anew; "
                f"only {', '.join(RETARGETABLE)} can be retargeted: build it again"
            )
        if not isinstance(segment_tokens, int) or segment_tokens < 1:
            raise LongRecipeError(
                f"{shards.folder / MANIFEST} does not say how long segments are "
                f"(segment_tokens {segment_tokens}); build the dataset again"
            )
        lead = int(shards.bos_id is not None)
        return cls(scheme, segment_tokens, shards.manifest.seed, lead)

    def positions(self, row: Row, target_len: int) -> np.ndarray:
        """int32 [n], strictly increasing, in [0, target_len); n <= target_len.

        At the target_len that the row was made for these are its position_ids.
        """
        pieces = row.segment_lengths.astype(np.int64)
        before = np.cumsum(pieces) - pieces
        kept = np.arange(len(row.input_ids)) + np.repeat(row.segment_starts - before, pieces)
        parts = segments(pieces, self.segment_tokens, self.lead)
        file, record, start, copy = row.sample_id.rsplit(":", 3)
        stream = Draws(self.seed, file, record, start, copy).stream("positions")
        return SCHEMES[self.scheme](kept.astype(np.int32), parts, target_len, stream)


def default_out(folder: Path, target_len: int) -> Path:
    """`shards` -> `shards-256k`, beside it."""
    named = folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))
    return named.with_name(f"{named.name}-{format_tokens(target_len).replace(',', '')}")


def retarget(folder: Path | str, target_len: int, out: Path | str) -> Manifest:
    """Write the dataset `folder` with positions that span `target_len` into the new folder `out`.

    Equal datasets give equal bytes, and the way back to the window of the build gives the dataset
    as it was built. A row group is in memory at a time.

    Raises:
        LongRecipeError: the dataset cannot be retargeted so, a file of it is damaged, or `out`
            exists and is not empty. Nothing of it is then left in `out`.
    """
    folder, out = Path(folder), Path(out)
    shards = Shards(folder, open_dataset(folder).manifest, cached_groups=1)
    positioner = Positioner.of(shards)
    _refuse_target(shards, target_len)
    for entry in shards.manifest.files:
        _refuse_name(folder, entry)
    if out.resolve().is_relative_to(folder.resolve()):
        raise LongRecipeError(f"{out} is in the dataset {folder} itself; choose another --out")
    plan = {"manifest": file_sha256(folder / MANIFEST), "target_len": target_len}
    with _open_staging(out, plan) as staging:
        if not (out / MANIFEST).exists():  # else killed when all was done but this
            entries = list(_files(shards, positioner, target_len, staging))
            _copy_quarantine(folder, staging)
            manifest = _manifest(shards.manifest, target_len, entries)
            _publish(out, staging, manifest)
    return read_manifest(out)


# What cannot be done


def _refuse_target(shards: Shards, target_len: int) -> None:
    folder = shards.folder
    if target_len == shards.target_len:
        raise LongRecipeError(
            f"{folder} has positions for --target-len {target_len} already; choose another"
        )
    longest, what = shards.train_len, "rows"
    if shards.rows("holdout"):
        longest, what = max(longest, window_len(shards.manifest)), "holdout rows"
    if target_len < longest:
        raise LongRecipeError(
            f"--target-len {target_len} is too short: {folder} has {what} of {longest} tokens"
        )
    if target_len > _LONGEST:
        raise LongRecipeError(f"--target-len {target_len} is too long; {_LONGEST} is the most")


def _refuse_name(folder: Path, entry: FileEntry) -> None:
    """A new file is written under the name of the old one: it has to be where shards are."""
    parts = PurePosixPath(entry.path).parts
    if entry.kind not in KINDS or len(parts) != 2 or parts[0] != entry.kind:
        raise LongRecipeError(
            f"{folder / MANIFEST} names {entry.path} as {entry.kind} rows; run `lrdata verify`"
        )


def _refuse_row(shards: Shards, positioner: Positioner, entry: FileEntry, row: Row) -> None:
    """What is drawn for the present target_len has to be what the row has."""
    tokens, pieces = len(row.input_ids), row.segment_lengths
    whole = (
        0 < tokens <= shards.train_len
        and len(row.segment_starts) == len(pieces)
        and (pieces > 0).all()
        and pieces.sum() == tokens
        and row.sample_id.count(":") >= 3
    )
    if not whole or not np.array_equal(
        positioner.positions(row, shards.target_len), row.position_ids
    ):
        raise LongRecipeError(
            f"{shards.path(entry)}: the positions of {row.sample_id} are not those that "
            f"{positioner.scheme} draws for it; run `lrdata verify`, or build the dataset again"
        )


# The files


def _files(
    shards: Shards, positioner: Positioner, target_len: int, staging: Path
) -> Iterator[FileEntry]:
    """Write every file anew into the staging folder, under its own name."""
    firsts = dict.fromkeys(KINDS, 0)
    with progress("retargeting", sum(entry.rows for entry in shards.manifest.files)) as task:
        for entry in shards.manifest.files:
            rows = _rows(shards, positioner, target_len, entry, firsts[entry.kind], task)
            yield _write(rows, _schema(shards, entry, firsts[entry.kind]), entry, staging)
            firsts[entry.kind] += entry.rows


def _schema(shards: Shards, entry: FileEntry, first: int) -> pa.Schema:
    """The columns of a file; an error for one that would be lost."""
    if not entry.rows:
        return SCHEMA
    scored = shards.read_row(entry.kind, first).lsd is not None  # this checks the sha256 too
    schema = SCHEMA.append(LSD_FIELD) if scored else SCHEMA
    unknown = [
        name for name in pq.read_schema(shards.path(entry)).names if name not in schema.names
    ]
    if unknown:
        raise LongRecipeError(
            f"{shards.path(entry)} has the column {unknown[0]}, which this version cannot keep; "
            "use the version that wrote it"
        )
    return schema


def _rows(
    shards: Shards,
    positioner: Positioner,
    target_len: int,
    entry: FileEntry,
    first: int,
    task: Task,
) -> Iterator[Row]:
    for index in range(first, first + entry.rows):
        row = shards.read_row(entry.kind, index)
        changes: dict[str, Any] = {"target_len": target_len}
        if entry.kind == "extend":
            _refuse_row(shards, positioner, entry, row)
            changes["position_ids"] = positioner.positions(row, target_len)
        yield replace(row, **changes)
        task.advance(note=entry.path)


def _write(rows: Iterator[Row], schema: pa.Schema, entry: FileEntry, staging: Path) -> FileEntry:
    path = staging / entry.path
    with writing_shard(path, schema) as shard:
        for row in rows:
            shard.write(row)
    return replace(
        entry,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        content_sha256=shard.content.hexdigest(),
    )


def _copy_quarantine(folder: Path, staging: Path) -> None:
    """Records that the build rejected are still rejected."""
    for path in sorted((folder / "quarantine").glob("*.jsonl")):
        refuse_leaving(folder, path)
        if not path.is_file():
            continue
        with replacing(staging / "quarantine" / path.name) as partial:
            shutil.copyfile(path, partial)


def _manifest(manifest: Manifest, target_len: int, entries: list[FileEntry]) -> Manifest:
    """The manifest with the new target; at the window of the build it is that of the build.

    What the whole dataset has and this part of it does not is only counted: nobody has seen the
    bytes that it would have.
    """
    left_out = [
        replace(entry, bytes=0, sha256="", content_sha256="") for entry in manifest.left_out
    ]
    window = window_len(manifest)
    recipe = {**manifest.recipe, "target_len": target_len, "retargeted_from": window}
    if target_len == window:
        del recipe["retargeted_from"]
    return replace(manifest, target_len=target_len, recipe=recipe, files=entries, left_out=left_out)


# The new folder


@contextmanager
def _open_staging(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """The staging folder, for this process alone, removed in the end; after an error with all that
    was written. What an earlier run of the same plan left unfinished goes first.

    While the plan is there others may take `out` for unfinished and clear it: so it goes before the
    lock does, and last of all else.
    """
    staging = out / STAGING
    refuse_foreign(out)
    with locked(staging, out):
        refuse_foreign(out)  # another run may have come to its end since
        if not (staging / _PLAN).exists():
            _clear(out)
            write_json(staging / _PLAN, plan)
        elif json.loads((staging / _PLAN).read_text(encoding="utf-8")) != plan:
            raise LongRecipeError(
                f"{out} holds an unfinished retarget of another dataset or --target-len; "
                "choose another --out, or remove it"
            )
        elif not (out / MANIFEST).exists():
            _clear(out)
        try:
            yield staging
        except BaseException:
            _clear(out)
            clear(staging)
            raise
        clear(staging, keep=(_PLAN,))
        (staging / _PLAN).unlink(missing_ok=True)


def refuse_foreign(out: Path) -> None:
    """Raise LongRecipeError unless `out` is new, empty, or of a `retarget` that was ended."""
    if out.exists() and not out.is_dir():
        raise LongRecipeError(f"{out} is a file; choose another --out")
    ours = (out / STAGING / _PLAN).exists()
    if not ours and out.exists() and any(path.name != STAGING for path in out.iterdir()):
        raise LongRecipeError(f"{out} is not an empty folder; choose another --out")


def _publish(out: Path, staging: Path, manifest: Manifest) -> None:
    # Whole folders are renamed; completing it then syncs `out`, and with it their names.
    for name in (*KINDS, "quarantine"):
        if (staging / name).exists():
            os.replace(staging / name, out / name)
    complete(out, manifest)


def _clear(out: Path) -> None:
    """Remove what was written. The manifest goes first; the plan, which says it is ours, stays."""
    for name in (MANIFEST, *CARD):
        (out / name).unlink(missing_ok=True)
    remove_partials(out)
    for folder in (out, out / STAGING):
        for name in (*KINDS, "quarantine"):
            shutil.rmtree(folder / name, ignore_errors=True)
