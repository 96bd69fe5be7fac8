"""A corpus -> a dataset folder: plan -> units -> receipts -> final names -> manifest.

    build(BuildRecipe(corpora=("books/",), tokenizer="...", target_len=131072), Path("shards"))

Work goes on in `<out>/.build`, a hidden staging folder with a receipt for each finished unit. The
same call after a kill goes on from there. Final names are given when all units are done; the
manifest comes last, so a folder with a manifest is complete.
"""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrdata.atomic import write_json, write_text
from lrdata.corpus import SourceFile, find_files, plan_units, source_hash
from lrdata.engines import local
from lrdata.errors import LongRecipeError
from lrdata.manifest import (
    MANIFEST,
    FileEntry,
    Ledger,
    Manifest,
    SourceEntry,
    TokenizerEntry,
    read_manifest,
    write_manifest,
)
from lrdata.progress import progress
from lrdata.recipe import REPLAY_OPTIONS, BuildRecipe, differences, portable_name
from lrdata.replay import build_replay
from lrdata.report.card import card
from lrdata.report.croissant import croissant
from lrdata.shards import KINDS
from lrdata.tokenizer import Tokenizer
from lrdata.unit import Job, Receipt, build_unit, open_tokenizer

STAGING = ".build"
_OURS = (*KINDS, "quarantine", "report", "croissant.json", "README.md", STAGING)
_LIBRARIES = ("longrecipe", "numpy", "pyarrow", "tokenizers", "fastokens", "zstandard")


def build(
    recipe: BuildRecipe, out: Path, *, workers: int | None = None, overwrite: bool = False
) -> Manifest:
    """Build the dataset that `recipe` describes in the folder `out` and return its manifest.

    Args:
        workers: processes; default one for each core. Never changes a byte.
        overwrite: remove what an earlier build left in `out`.
    Raises:
        LongRecipeError: for anything a person can mend; `out` then holds no half-written dataset.
    """
    if overwrite:
        _remove(out)
    files, replay_files = find_files(recipe.corpora), find_files(recipe.replay)
    tokenizer = open_tokenizer(recipe)
    sources = _hash_sources(recipe, [*files, *replay_files])
    identity = _identity(recipe, tokenizer, sources)
    finished = _finished(out, identity)
    if finished is not None:
        return finished
    # Units do not depend on replay: after "too short" they wait for more of it.
    of_units = _identity(recipe, tokenizer, sources[: len(files)])
    for option in REPLAY_OPTIONS:
        del of_units[option]
    staging = _open_staging(out, of_units, shared=overwrite)
    try:
        receipts = _run_units(recipe, files, staging, workers or os.cpu_count() or 1)
        ledger = _total(receipt.ledger for receipt in receipts)
        _refuse_empty(ledger, recipe)
        entries = [entry for receipt in receipts for entry in receipt.files]
        replay_ledger = None
        if recipe.replay:
            made, replay_ledger = build_replay(
                recipe, replay_files, tokenizer, staging, ledger.kept
            )
            entries += made
    except LongRecipeError:
        _discard_if_fruitless(out, staging)
        raise
    manifest = Manifest(
        target_len=recipe.target_len,
        train_len=recipe.train_len,
        seed=recipe.seed,
        recipe=recipe.portable(),
        tokenizer=_tokenizer_entry(tokenizer),
        sources=sources,
        files=_final_names(entries),
        ledger=ledger,
        replay_ledger=replay_ledger,
        versions=_versions(),
    )
    _publish(out, staging, entries, manifest)
    return manifest


def _run_units(
    recipe: BuildRecipe, files: list[SourceFile], staging: Path, workers: int
) -> list[Receipt]:
    """Receipts of all units in order, or of as many as `max_rows` asks for."""
    units = plan_units(files, recipe.unit_bytes)
    jobs = [Job(unit, recipe, staging) for unit in units]
    return _until_enough(local.run(build_unit, jobs, workers), jobs, recipe.max_rows, build_unit)


def _until_enough(
    results: Iterator[Receipt],
    jobs: Sequence[Job],
    max_rows: int | None,
    function: Callable[[Job], Receipt],
) -> list[Receipt]:
    receipts: list[Receipt] = []
    rows = 0
    with progress("building units", len(jobs)) as task:
        for receipt in results:
            if max_rows is not None and rows + receipt.ledger.rows > max_rows:
                receipt = function(replace(jobs[receipt.unit], row_limit=max_rows - rows))
            receipts.append(receipt)
            rows += receipt.ledger.rows
            task.advance(note=f"{rows:,} rows")
            if rows == max_rows:
                break
    return receipts


def _total(ledgers: Iterator[Ledger]) -> Ledger:
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


def _hash_sources(recipe: BuildRecipe, files: list[SourceFile]) -> list[SourceEntry]:
    with progress("hashing the corpus", len(files)) as task:
        entries = []
        for file in files:
            entries.append(
                SourceEntry(
                    name=file.name,
                    source=file.source,
                    licence=recipe.licences.get(file.source),
                    bytes=file.size,
                    sha256=source_hash(file),
                )
            )
            task.advance()
    return entries


def _identity(
    recipe: BuildRecipe, tokenizer: Tokenizer, sources: list[SourceEntry]
) -> dict[str, Any]:
    """What must be equal for a build to go on in a folder."""
    return {
        **recipe.portable(),
        "tokenizer fingerprint": tokenizer.fingerprint,
        "tokenizer probe": tokenizer.probe_fingerprint,
        **{f"corpus file {entry.name}": entry.sha256[:16] for entry in sources},
    }


def _finished(out: Path, identity: dict[str, Any]) -> Manifest | None:
    """The manifest of an equal build that is already there; an error for any other."""
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out)
    there = {
        **manifest.recipe,
        "tokenizer fingerprint": manifest.tokenizer.fingerprint,
        "tokenizer probe": manifest.tokenizer.probe_fingerprint,
        **{f"corpus file {entry.name}": entry.sha256[:16] for entry in manifest.sources},
    }
    _refuse_other(out, there, identity)
    return manifest


def _refuse_other(out: Path, there: dict[str, Any], identity: dict[str, Any]) -> None:
    found = differences(json.loads(json.dumps(there)), json.loads(json.dumps(identity)))
    if found:
        raise LongRecipeError(
            f"{out} holds another build ({found[0]}); choose another --out, or --overwrite"
        )


def _open_staging(out: Path, identity: dict[str, Any], shared: bool) -> Path:
    """The staging folder, new or of an earlier run; `shared`: `out` may hold files not ours."""
    staging = out / STAGING
    plan = staging / "recipe.json"
    if plan.exists():
        _refuse_other(out, json.loads(plan.read_text(encoding="utf-8")), identity)
        return staging
    if out.exists() and not out.is_dir():
        raise LongRecipeError(f"{out} is a file; choose another --out")
    if not shared and out.exists() and any(path.name != STAGING for path in out.iterdir()):
        raise LongRecipeError(f"{out} is not an empty folder; choose another --out, or --overwrite")
    staging.mkdir(parents=True, exist_ok=True)
    write_json(plan, identity)
    return staging


def _discard_if_fruitless(out: Path, staging: Path) -> None:
    """After an error in the input, leave nothing behind unless units are done."""
    if not any(staging.glob("unit-*.json")) or not any(staging.glob("unit-*.parquet")):
        shutil.rmtree(staging)
        if not any(out.iterdir()):
            out.rmdir()


def _remove(out: Path) -> None:
    """Remove an earlier build, and nothing that is not ours. The manifest goes first."""
    if out.exists() and not (out / MANIFEST).exists() and not (out / STAGING).exists():
        if any(out.iterdir()):
            raise LongRecipeError(f"{out} holds no dataset of ours; --overwrite leaves it alone")
        return
    (out / MANIFEST).unlink(missing_ok=True)
    for name in _OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _final_names(entries: list[FileEntry]) -> list[FileEntry]:
    """Entries under their final names, kind by kind, numbered in order."""
    named = []
    for kind in KINDS:
        chosen = [entry for entry in entries if entry.kind == kind]
        split = "test" if kind == "holdout" else "train"
        for index, entry in enumerate(chosen):
            path = f"{kind}/{split}-{index:05d}-of-{len(chosen):05d}.parquet"
            named.append(replace(entry, path=path))
    return named


def _publish(out: Path, staging: Path, entries: list[FileEntry], manifest: Manifest) -> None:
    by_kind = [entry for kind in KINDS for entry in entries if entry.kind == kind]
    for made, final in zip(by_kind, manifest.files, strict=True):
        target = out / final.path
        target.parent.mkdir(exist_ok=True)
        os.replace(staging / made.path, target)
    for rejected in sorted(staging.glob("*.quarantine.jsonl")):
        target = out / "quarantine" / rejected.name.replace(".quarantine", "")
        target.parent.mkdir(exist_ok=True)
        os.replace(rejected, target)
    write_text(out / "README.md", card(manifest))
    write_json(out / "croissant.json", croissant(manifest, out.resolve().name))
    write_manifest(out, manifest)
    shutil.rmtree(staging)


def _tokenizer_entry(tokenizer: Tokenizer) -> TokenizerEntry:
    return TokenizerEntry(
        name=portable_name(tokenizer.name),
        fingerprint=tokenizer.fingerprint,
        probe_fingerprint=tokenizer.probe_fingerprint,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        bos_id=tokenizer.bos_id,
    )


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def describe(manifest: Manifest) -> list[str]:
    """A build in a few lines, for the terminal."""
    ledger = manifest.ledger
    kinds = [(kind, [e for e in manifest.files if e.kind == kind]) for kind in KINDS]
    lines = [
        f"{kind:8} {sum(e.rows for e in files):>10,} rows {sum(e.tokens for e in files):>15,} "
        f"tokens {sum(e.bytes for e in files):>15,} bytes"
        for kind, files in kinds
        if files
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
    return lines
