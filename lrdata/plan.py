"""What a build will come to, before it is paid for: `lrdata plan`, `lrdata build --dry-run`.

    print(plan_table(make_plan(recipe, workers=2)))

The corpus is listed and cut into units as the build would. Of a few units, spread over it, the
first megabytes are really built, in a temporary folder: that measures tokens a byte, rejected
records, bytes on disk and speed. Everything counted is exact; everything estimated says "about".
"""

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from lrdata.building import units_of
from lrdata.corpus import SourceFile, Unit, find_files, open_source
from lrdata.errors import LongRecipeError
from lrdata.manifest import Ledger
from lrdata.progress import duration, progress
from lrdata.recipe import BuildRecipe
from lrdata.replay import bytes_to_read
from lrdata.runtime import usable_cpus
from lrdata.sizes import format_bytes
from lrdata.staging import Staging
from lrdata.unit import Job, Receipt, build_unit, open_tokenizer

_SAMPLES, _SAMPLE_BYTES = 6, 4 * 1024**2
_HASHED_BYTES = 32 * 1024**2
_UNITS_SHOWN = 12
_CHANCES = [NormalDist().inv_cdf((index + 0.5) / 50) for index in range(50)]
"""What is drawn around its mean, in deviations; each as likely as the others."""


@dataclass(frozen=True)
class Sample:
    """What the sampled parts of some units came to. `bytes_read`: of records, in their files."""

    ledger: Ledger
    bytes_read: int
    shard_bytes: int
    seconds: float

    @property
    def tokens_per_byte(self) -> float:
        return self.tokens / max(self.bytes_read, 1)

    @property
    def tokens(self) -> int:
        return self.ledger.encoded + self.ledger.tokens_filtered

    @property
    def document_tokens(self) -> float:
        """Of a document, its end of text too."""
        documents = self.ledger.records_built + self.ledger.records_filtered
        return self.tokens / max(documents, 1) + 1


@dataclass(frozen=True)
class Plan:
    """`units`, their `sizes` in bytes of text, how many are `finished`, what a sample says.

    start_seconds: until units are built, while the corpus is hashed and the tokenizer loaded.
    replay_bytes: of text that is read for replay, twice or more, when the units are built."""

    recipe: BuildRecipe
    files: list[SourceFile]
    units: list[Unit]
    sizes: list[int]
    finished: int
    sample: Sample
    start_seconds: float
    workers: int
    replay_bytes: int = 0

    @property
    def text_bytes(self) -> int:
        return sum(self.sizes)

    @property
    def tokens(self) -> int:
        return round(self.text_bytes * self.sample.tokens_per_byte)

    def rows(self, size: int) -> float:
        """Rows of a unit of `size` bytes; on average half a window is left over at its end."""
        ledger = self.sample.ledger
        used = (ledger.encoded + ledger.inserted - ledger.held_out) / max(self.sample.tokens, 1)
        windows = size * self.sample.tokens_per_byte * used / self.recipe.target_len
        return max(windows - 0.5, 0.0)

    def holdout_rows(self, size: int) -> float:
        """Of a unit of `size` bytes: the windows that all its held-out documents together fill. How
        many documents that are is drawn."""
        share, each = self.recipe.holdout, self.sample.document_tokens
        documents = share * size * self.sample.tokens_per_byte / (each - 1 or 1)
        drawn = (documents + chance * math.sqrt(documents) for chance in _CHANCES)
        filled = (max(count, 0) * each // self.recipe.target_len for count in drawn)
        return sum(filled) / len(_CHANCES)

    @property
    def total_rows(self) -> int:
        rows = round(sum(map(self.rows, self.sizes)))
        return rows if self.recipe.max_rows is None else min(rows, self.recipe.max_rows)

    @property
    def total_holdout_rows(self) -> int:
        return round(sum(map(self.holdout_rows, self.sizes)) * self.needed / len(self.units))

    @property
    def needed(self) -> int:
        """How many units are built until there are `--max-rows`."""
        rows, most = sum(map(self.rows, self.sizes)), self.recipe.max_rows
        if most is None or most >= rows:
            return len(self.units)
        return math.ceil(len(self.units) * most / rows)

    @property
    def row_bytes(self) -> float:
        """A row on the disk."""
        rows = self.sample.ledger.rows
        return self.sample.shard_bytes / rows if rows else 1.35 * self.recipe.train_len

    @property
    def out_bytes(self) -> int:
        """The dataset on the disk."""
        return round(self.total_rows * self.row_bytes)

    @property
    def seconds(self) -> float:
        """Until all units are built; replay comes after that."""
        left = self.text_bytes * max(self.needed - self.finished, 0) / len(self.units)
        each = self.sample.seconds / max(self.sample.bytes_read, 1)
        return self.start_seconds + each * left / min(self.workers, self.needed)

    def as_json(self) -> dict[str, Any]:
        """The figures of the table; all but files and units are estimates."""
        ledger = self.sample.ledger
        return {
            "files": len(self.files),
            "units": len(self.units),
            "finished_units": self.finished,
            "file_bytes": sum(file.size for file in self.files),
            "text_bytes": self.text_bytes,
            "tokens": self.tokens,
            "rows": self.total_rows,
            "holdout_rows": self.total_holdout_rows,
            "train_len": self.recipe.train_len,
            "target_len": self.recipe.target_len,
            "out_bytes": self.out_bytes,
            "replay_bytes": self.replay_bytes,
            "sampled_records": ledger.records_read + ledger.records_filtered,
            "sampled_rejected": ledger.records_quarantined,
            "seconds": self.seconds,
            "workers": self.workers,
        }


def make_plan(recipe: BuildRecipe, *, workers: int | None = None, out: Path | None = None) -> Plan:
    """List the corpus and build a sample of it. `out`: where a build may have begun.

    Raises LongRecipeError as `build` does for a corpus, recipe or tokenizer that cannot be used.
    """
    workers = workers or usable_cpus()
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")  # as a build does
    files = find_files(recipe.corpora)
    replay_files = find_files(recipe.replay)
    recipe.refuse_unknown_sources(files, replay_files)
    units = units_of(recipe, files)
    if not units:
        raise LongRecipeError(f"{', '.join(recipe.corpora)} holds no text; name other files")
    hashing = _hash_seconds([*files, *replay_files], workers)
    began = time.monotonic()
    open_tokenizer(recipe)
    starting = max(time.monotonic() - began, hashing)  # a build does both at once
    finished = 0 if out is None else Staging(out).finished_units()
    sizes = [sum(piece.text_bytes for piece in unit.pieces) for unit in units]
    sample = _sample(recipe, units)
    plan = Plan(recipe, files, units, sizes, finished, sample, starting, workers)
    if not recipe.replay:
        return plan
    extend_tokens = plan.total_rows * recipe.train_len
    return replace(plan, replay_bytes=bytes_to_read(recipe, replay_files, extend_tokens))


def _hash_seconds(files: list[SourceFile], workers: int) -> float:
    """What hashing all bytes takes, by the first ones of the largest file. Remote files are not
    read for it."""
    local = [file for file in files if not file.address]
    largest = max(local, key=lambda file: file.size, default=None)
    if largest is None or not largest.size:
        return 0.0
    began = time.monotonic()
    with open_source(largest) as stream:
        data = stream.read(_HASHED_BYTES)
    hashlib.sha256(data)
    each = (time.monotonic() - began) / len(data)
    total = sum(file.size for file in local)
    return each * max(largest.size, total / min(workers, len(local)))


def _sample(recipe: BuildRecipe, units: list[Unit]) -> Sample:
    count = min(_SAMPLES, len(units))
    chosen = [units[(2 * index + 1) * len(units) // (2 * count)] for index in range(count)]
    ledger, read, shards, seconds = Ledger(), 0, 0, 0.0
    with tempfile.TemporaryDirectory(prefix="lrdata-plan-") as folder:
        jobs = [Job(unit, recipe, Path(folder), read_limit=_SAMPLE_BYTES) for unit in chosen]
        for receipt in _built(jobs):
            ledger.add(receipt.ledger)
            read += receipt.bytes_read
            shards += sum(entry.bytes for entry in receipt.files if entry.kind == "extend")
            seconds += sum(receipt.seconds.values())
    return Sample(ledger, read, shards, seconds)


def _built(jobs: list[Job]) -> Iterator[Receipt]:
    with progress("sampling the corpus", len(jobs)) as task, ThreadPoolExecutor(1) as pool:
        for receipt in pool.map(build_unit, jobs):
            yield receipt
            task.advance()


def plan_table(plan: Plan) -> RenderableType:
    """The plan for the terminal."""
    recipe, sample, ledger = plan.recipe, plan.sample, plan.sample.ledger
    sources = {file.source for file in plan.files}
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row(
        "corpus",
        f"{len(plan.files):,} files of {len(sources):,} sources, "
        f"{format_bytes(sum(file.size for file in plan.files))}; "
        f"about {format_bytes(plan.text_bytes)} of text",
    )
    done = f", {plan.finished:,} of them finished" if plan.finished else ""
    facts.add_row("units", f"{len(plan.units):,}{done}")
    facts.add_row("tokens", f"about {plan.tokens:,} ({sample.tokens_per_byte:.3f} a byte of text)")
    facts.add_row(
        "rows",
        f"about {plan.total_rows:,} of {recipe.train_len:,} tokens, "
        f"for windows of {recipe.target_len:,}",
    )
    if recipe.holdout:
        facts.add_row("holdout rows", _holdout(plan))
    facts.add_row("on disk", f"about {format_bytes(plan.out_bytes)}")
    records = ledger.records_read + ledger.records_filtered
    rejected = ledger.records_quarantined / max(records, 1)
    facts.add_row(
        "rejected", f"{ledger.records_quarantined:,} of {records:,} records ({rejected:.1%})"
    )
    facts.add_row("time", f"about {duration(plan.seconds)} with {plan.workers} workers")
    if recipe.replay:
        facts.add_row(
            "replay",
            f"not in that time: about {format_bytes(plan.replay_bytes)} of text are read twice or "
            "more, by one process",
        )
    facts.add_row("sampled", f"{format_bytes(sample.bytes_read)}, {sample.tokens:,} tokens")
    return Group(facts, "", _units_table(plan))


def _holdout(plan: Plan) -> str:
    if rows := plan.total_holdout_rows:
        return f"about {rows:,} of {plan.recipe.target_len:,} tokens"
    tokens = round(plan.tokens / len(plan.units))
    return (
        f"0: documents are joined within a unit, and {100 * plan.recipe.holdout:g}% of its about "
        f"{tokens:,} tokens fill no window of {plan.recipe.target_len:,}; give a larger --holdout"
    )


def _units_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("unit", justify="right")
    table.add_column("source", overflow="fold")
    table.add_column("from", overflow="fold")
    for name in ("text", "tokens", "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for unit, size in list(zip(plan.units, plan.sizes, strict=True))[:_UNITS_SHOWN]:
        first, more = unit.pieces[0], len(unit.pieces) - 1
        whole = first.start == 0 and first.stop == first.file.size
        part = "" if whole else f" [{first.start:,}, {first.stop:,})"
        others = f" and {more:,} more" if more else ""
        table.add_row(
            f"{unit.index}",
            first.file.source,
            f"{first.file.name}{part}{others}",
            format_bytes(size),
            f"{round(size * plan.sample.tokens_per_byte):,}",
            f"{round(plan.rows(size)):,}",
        )
    if len(plan.units) > _UNITS_SHOWN:
        table.add_row("", f"... and {len(plan.units) - _UNITS_SHOWN:,} more")
    return table
