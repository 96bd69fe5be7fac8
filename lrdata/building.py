"""A corpus -> a dataset folder: plan -> units -> receipts -> final names -> manifest.

    build(BuildRecipe(corpora=("books/",), tokenizer="...", target_len=131072), Path("shards"))

Work goes on in `<out>/.build`, with a receipt for each finished unit; the same call after a kill
goes on from there (`lrdata.staging`).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from lrdata.atomic import locked
from lrdata.corpus import SourceFile, Unit, plan_units, unit_size
from lrdata.engines import Crew, open_engine
from lrdata.errors import LongRecipeError
from lrdata.layout import shard_name
from lrdata.manifest import (
    MANIFEST,
    FileEntry,
    Ledger,
    Manifest,
    read_manifest,
    safe_path,
)
from lrdata.progress import Meter, progress
from lrdata.recipe import BuildRecipe
from lrdata.replay import build_replay, same_files
from lrdata.runtime import usable_cpus
from lrdata.shards import KINDS, LSD_FIELD
from lrdata.sources import Sources, versions
from lrdata.staging import Staging, refuse_other, relicensed, restate
from lrdata.stopwatch import Timing, total
from lrdata.unit import (
    Job,
    Means,
    Receipt,
    build_unit,
    open_tokenizer,
    unit_stem,
)

_MUCH_TAIL = 0.05
"""Of the tokens: more in tails is said to be much."""


def build(
    recipe: BuildRecipe,
    out: Path | str,
    *,
    workers: int | None = None,
    engine: str = "local",
    overwrite: bool = False,
    like: Manifest | None = None,
    timing: Timing | None = None,
) -> Manifest:
    """Build the dataset that `recipe` describes in the folder `out` and return its manifest.

    Args:
        workers: units at a time; default one for each CPU that it may use. Never changes a byte.
            More than one are processes: a script that builds needs
            `if __name__ == "__main__":` around it.
        engine: `local` (this machine) or `ray`. Never changes a byte.
        overwrite: remove what an earlier build left in `out`, once the sources are known to be
            there.
        like: refuse corpus files, a tokenizer or scores that are not those of this manifest.
        timing: takes what the build took.
    Raises:
        LongRecipeError: for anything a person can mend; `out` then holds no half-written dataset.
    """
    began = time.perf_counter()
    out, timing = Path(out), timing or Timing()
    workers = workers or usable_cpus()
    units_engine = open_engine(engine)
    units_engine.begin(recipe, workers)
    with units_engine.crew(workers) as crew:
        sources = Sources.open(recipe, out, crew, workers, timing, like)
        if like is not None:
            sources.refuse_unlike(like)
        finished = None if overwrite else _finished(out, recipe, sources)
        if finished is not None:
            return finished
        with Staging.open(out, sources.identity_of_units(recipe), overwrite=overwrite) as staging:
            manifest, receipts = _build(recipe, sources, crew, staging)
        timing.build = time.perf_counter() - began - timing.start
    timing.stages = total(receipt.seconds for receipt in receipts if receipt.fresh)
    return manifest


def _build(
    recipe: BuildRecipe, sources: Sources, crew: Crew, staging: Staging
) -> tuple[Manifest, list[Receipt]]:
    """Make and publish what is not there yet."""
    published = staging.published()
    if published is not None:
        refuse_other(staging.out, sources.identity_of(published), sources.identity(recipe))
        stated = relicensed(published, recipe.licences)
        if stated != published:
            restate(staging.out, published, stated)
        return stated, []
    try:
        means = Means(sources.tokenizer, sources.impact)
        units = units_of(recipe, sources.files)
        jobs = [Job(unit, recipe, staging.folder, means) for unit in units]
        receipts = _until_enough(crew.run(build_unit, jobs), jobs, recipe.max_rows)
        staging.refuse_missing(entry for receipt in receipts for entry in receipt.files)
        manifest, made = _manifest(recipe, sources, receipts, staging)
    except LongRecipeError:
        staging.discard_if_fruitless()
        raise
    rejected = _quarantine_moves(receipts, manifest, staging)
    staging.publish({**_moves(made, manifest), **rejected}, manifest)
    return manifest, receipts


def units_of(recipe: BuildRecipe, files: list[SourceFile]) -> list[Unit]:
    """The corpus's units of work, the same wherever and by however many they are built."""
    return plan_units(files, recipe.unit_bytes or unit_size(files))


def _manifest(
    recipe: BuildRecipe, sources: Sources, receipts: list[Receipt], staging: Staging
) -> tuple[Manifest, list[FileEntry]]:
    """The manifest, with final names, and the files as they are in the staging folder."""
    ledger = _total(receipt.ledger for receipt in receipts)
    _refuse_empty(ledger, recipe)
    entries = [entry for receipt in receipts for entry in receipt.files]
    replay_ledger = None
    if recipe.replay:
        made, replay_ledger = build_replay(
            recipe,
            sources.replay_files,
            open_tokenizer(recipe),
            staging.folder,
            ledger.kept,
            same_files(sources.files, sources.replay_files, sources.entries),
        )
        entries += made
    by_kind = [entry for kind in KINDS for entry in entries if entry.kind == kind]
    manifest = Manifest(
        target_len=recipe.target_len,
        train_len=recipe.train_len,
        seed=recipe.seed,
        recipe=recipe.portable(),
        tokenizer=sources.tokenizer,
        sources=sources.entries,
        files=_final_names(by_kind),
        ledger=ledger,
        replay_ledger=replay_ledger,
        impact_sha256=sources.impact,
        chat_sha256=sources.chat,
        lsd=_has_lsd(by_kind, staging),
        versions=versions(),
    )
    return manifest, by_kind


def _has_lsd(entries: list[FileEntry], staging: Staging) -> bool:
    extend = next(entry for entry in entries if entry.kind == "extend")
    return LSD_FIELD.name in pq.read_schema(staging.folder / extend.path).names


def _until_enough(
    results: Iterator[Receipt], jobs: Sequence[Job], max_rows: int | None
) -> list[Receipt]:
    """Receipts of all units in order, or of as many as `max_rows` asks for."""
    receipts: list[Receipt] = []
    rows = bad = 0
    with progress("building units", len(jobs)) as task:
        meter = Meter()
        for job, receipt in zip(jobs, results, strict=False):
            if max_rows is not None and rows + receipt.ledger.rows > max_rows:
                receipt = build_unit(replace(job, row_limit=max_rows - rows))
            receipts.append(receipt)
            rows += receipt.ledger.rows
            ledger = receipt.ledger
            meter.add(ledger.encoded + ledger.tokens_filtered, fresh=receipt.fresh)
            bad += ledger.records_quarantined
            task.advance(note=f"{rows:,} rows, {meter}, {bad:,} in quarantine")
            if rows == max_rows:
                break
    return receipts


def _total(ledgers: Iterable[Ledger]) -> Ledger:
    total = Ledger()
    for ledger in ledgers:
        total.add(ledger)
    return total


def _refuse_empty(ledger: Ledger, recipe: BuildRecipe) -> None:
    if ledger.rows:
        return
    corpus = ", ".join(recipe.corpora)
    if not ledger.records_built:
        raise LongRecipeError(
            f"{corpus} holds no usable document ({ledger.records_quarantined:,} rejected, "
            f"{ledger.records_filtered:,} set aside); check --text-field and --min-doc-tokens"
        )
    raise LongRecipeError(
        f"{corpus} has {ledger.encoded:,} tokens, too few for one window of "
        f"{recipe.target_len:,}; give more text or a smaller --target-len"
    )


def refuse_bad(manifest: Manifest, max_bad: float, out: Path) -> None:
    """Raise LongRecipeError where more than a share `max_bad` of the records was rejected."""
    ledger = _total(filter(None, (manifest.ledger, manifest.replay_ledger)))
    bad, read = ledger.records_quarantined, ledger.records_read + ledger.records_filtered
    if bad > max_bad * read:
        raise LongRecipeError(
            f"{bad:,} of {read:,} records ({bad / read:.2%}) are in {out / 'quarantine'}, more "
            f"than --max-bad {max_bad:.2%}; the others are built: see why there, mend the corpus "
            "or accept it with a larger --max-bad"
        )


def _finished(out: Path, recipe: BuildRecipe, sources: Sources) -> Manifest | None:
    """The manifest of an equal build that is already there; an error for any other, and for one
    whose files are not all there. They are not hashed: that is for `lrdata verify`."""
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out)
    refuse_other(out, sources.identity_of(manifest), sources.identity(recipe))
    if manifest.left_out:
        raise LongRecipeError(
            f"{out} is a part of this dataset, without {manifest.left_out[0].path}; choose another "
            "--out for the whole, or --overwrite"
        )
    for entry in manifest.files:
        file = safe_path(out, entry.path)
        if not file.is_file() or file.stat().st_size != entry.bytes:
            raise LongRecipeError(
                f"{file} is missing, or not as it was built; put it back, or build again with "
                "--overwrite"
            )
    staging, stated = Staging(out), relicensed(manifest, recipe.licences)
    staging.remove_rest()
    if stated != manifest:
        with locked(staging.root, out):
            restate(out, manifest, stated)
    return stated


def _final_names(entries: list[FileEntry]) -> list[FileEntry]:
    """Entries, in the order of their kinds, under their final names, numbered in order."""
    named = []
    for kind in KINDS:
        chosen = [entry for entry in entries if entry.kind == kind]
        named += [
            replace(entry, path=shard_name(kind, index, len(chosen)))
            for index, entry in enumerate(chosen)
        ]
    return named


def _moves(made: list[FileEntry], manifest: Manifest) -> dict[str, str]:
    """Name in the staging folder -> name in the dataset."""
    return {entry.path: final.path for entry, final in zip(made, manifest.files, strict=True)}


def _quarantine_moves(
    receipts: list[Receipt], manifest: Manifest, staging: Staging
) -> dict[str, str]:
    """The same for what these units and replay rejected."""
    stems = [unit_stem(receipt.unit) for receipt in receipts]
    if manifest.replay_ledger is not None:  # else it is of an earlier run
        stems.append("replay")
    return {
        f"{stem}.quarantine.jsonl": f"quarantine/{stem}.jsonl"
        for stem in stems
        if (staging.folder / f"{stem}.quarantine.jsonl").exists()
    }


def describe(manifest: Manifest) -> list[str]:
    """A build in a few lines, for the terminal."""
    ledger = manifest.ledger
    lines = [
        f"{kind:8} {sum(e.rows for e in files):>10,} rows {sum(e.tokens for e in files):>15,} "
        f"tokens {sum(e.bytes for e in files):>15,} bytes"
        for kind in KINDS
        if (files := manifest.of_kind(kind))
    ]
    lines.append(
        f"windows of {manifest.target_len:,} tokens as rows of {manifest.train_len:,}; "
        f"records: {ledger.records_read:,} read, {ledger.records_built:,} built, "
        f"{ledger.records_quarantined:,} in quarantine, {ledger.records_filtered:,} set aside"
    )
    lines.append(
        f"tokens: {ledger.encoded:,} encoded + {ledger.inserted:,} inserted = {ledger.kept:,} kept "
        f"+ {ledger.dropped:,} dropped + {ledger.tail:,} tail + {ledger.held_out:,} held out"
    )
    sources = len({entry.source for entry in manifest.sources})
    of_replay = manifest.replay_ledger is not None  # whose sources are among them
    if sources > 1 and not of_replay and ledger.tail > _MUCH_TAIL * ledger.encoded:
        lines.append(
            f"{ledger.tail / ledger.encoded:.0%} of the tokens fill no window (tail): each of "
            f"{sources:,} sources has windows of its own; a folder, or a pattern in quotes, is one"
        )
    if manifest.recipe["impact"].startswith("scores:"):
        lines.append(f"scores: {ledger.scored:,} of {ledger.kept:,} kept tokens have an lsd")
    return lines
