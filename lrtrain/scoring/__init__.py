"""Per-token scores from models: for which tokens does long context matter?

    score(ScoreRecipe(corpora=("books/",), model="./llama3-8b"), Path("scores"))

    corpus -> sample of windows -> readings of each window -> scores.parquet

A reading is what one model says of a window's tokens after some context (`readings`). The method
`lsd` reads with one model twice: after all of the window, and after the last K tokens. `contrast`
reads with two models: the base, and the one that was trained for long context. Readings are kept in
`<out>/.score` as they are made, one model in memory at a time; the same call goes on from there.
"""

import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrdata.atomic import locked, remove_partials, replacing, write_json
from lrdata.corpus import source_hash
from lrdata.encoding import DocumentEncoder
from lrdata.errors import LongRecipeError
from lrdata.layout import refuse_own
from lrdata.manifest import MANIFEST, SourceEntry, TokenizerEntry
from lrdata.progress import Meter, progress
from lrdata.recipe import differences, portable_name
from lrdata.records import Fields
from lrdata.scores import (
    SCORES,
    VOCABULARY,
    ScoredWindow,
    Scores,
    ScoresManifest,
    open_scores,
    write_scores_manifest,
    write_vocabulary,
    write_windows,
)
from lrdata.shards import file_sha256
from lrtrain.attention import using
from lrtrain.finite import finite_logits
from lrtrain.model import model_fingerprint
from lrtrain.model_spec import ModelSpec
from lrtrain.scoring.plan import Plan, Reading, Say, open_plan
from lrtrain.scoring.recipe import ScoreRecipe
from lrtrain.scoring.sample import TextWindow, read_sample, sample_windows, write_sample

__all__ = ["ScoreRecipe", "score"]

_STAGING, _IDENTITY, _SAMPLE = ".score", "recipe.json", "sample.parquet"
_LIBRARIES = ("longrecipe", "torch", "transformers", "tokenizers", "numpy", "pyarrow")


def score(recipe: ScoreRecipe, out: Path, say: Say = print) -> Scores:
    """Score a sample of the corpora's long documents and write it to the folder `out`.

    Everything that can be refused is refused before the first window is read. Raises
    LongRecipeError.
    """
    plan = open_plan(recipe, say)
    refuse_own(out, recipe.corpora, plan.files)
    fingerprints = {role: model_fingerprint(spec.path) for role, spec in plan.models.items()}
    sources = [
        SourceEntry(file.name, file.source, None, file.size, source_hash(file))
        for file in plan.files
    ]
    identity = _identity(plan, fingerprints, sources)
    if (out / MANIFEST).exists():
        return _finished(out, identity)
    staging = out / _STAGING
    ours = not out.exists() or (staging / _IDENTITY).exists()
    if not ours and (not out.is_dir() or any(path.name != _STAGING for path in out.iterdir())):
        raise LongRecipeError(f"{out} is not an empty folder; choose another --out")
    with locked(staging, out):
        remove_partials(staging)  # of a run that was killed
        windows = _sample(plan, staging, out, identity, say)
        say(plan.describe(windows))
        _read_all(plan, windows, staging)
        _publish(plan, windows, staging, out, fingerprints, sources, identity)
    shutil.rmtree(staging)
    return open_scores(out)


def _identity(
    plan: Plan, fingerprints: dict[str, str], sources: list[SourceEntry]
) -> dict[str, Any]:
    """What must be equal for scores to be the same."""
    return {
        **plan.recipe.portable(),
        "window": plan.window,
        "short_context": plan.short_context,
        "stride": plan.stride,
        "dtype": str(plan.dtype).removeprefix("torch."),
        **TokenizerEntry.of(plan.tokenizer).identity(),
        **{f"{role} model": fingerprint for role, fingerprint in fingerprints.items()},
        **{f"corpus file {entry.name}": entry.sha256 for entry in sources},
    }


def _finished(out: Path, identity: dict[str, Any]) -> Scores:
    """Equal scores that are already there; an error for any others."""
    scores = open_scores(out)
    # An earlier version wrote less of the tokenizer into the recipe.
    there = {**scores.manifest.tokenizer.identity(), **scores.manifest.recipe}
    _refuse_other(out, there, identity)
    if (out / _STAGING).exists():  # killed when all was done but this
        shutil.rmtree(out / _STAGING)
    return scores


def _refuse_other(out: Path, there: dict[str, Any], identity: dict[str, Any]) -> None:
    ours = json.loads(json.dumps(identity))
    for name in [*ours, *(there.keys() - ours.keys())]:  # what a person wrote comes first
        for difference in differences({name: there.get(name)}, {name: ours.get(name)}):
            raise LongRecipeError(f"{out} holds other scores ({difference}); choose another --out")


def _sample(
    plan: Plan, staging: Path, out: Path, identity: dict[str, Any], say: Say
) -> list[TextWindow]:
    """The windows to score, of an earlier run or new; from then on the folder is for these."""
    path, claim = staging / _SAMPLE, staging / _IDENTITY
    if claim.exists():
        _refuse_other(out, json.loads(claim.read_text(encoding="utf-8")), identity)
    if not (claim.exists() and path.exists()):
        recipe = plan.recipe
        least = plan.short_context + plan.stride + 1 if recipe.method == "lsd" else 2
        windows, left_out = sample_windows(
            plan.files,
            Fields(text=recipe.text_field, id=recipe.id_field),
            DocumentEncoder(plan.tokenizer),
            window=plan.content,
            least=max(recipe.min_doc_tokens, least) if recipe.min_doc_tokens else plan.content,
            tokens=recipe.tokens,
            per_document=recipe.per_document,
            seed=recipe.seed,
        )
        for line in left_out.lines():
            say(line)
        write_sample(path, windows)
        write_json(claim, identity)
    return read_sample(path)


def _read_all(plan: Plan, windows: list[TextWindow], staging: Path) -> None:
    """Make the readings that are not there, one model after the other."""
    missing = [
        (reading, index, _reading_path(staging, reading, index))
        for model in dict.fromkeys(reading.model for reading in plan.readings)
        for index in range(len(windows))
        for reading in plan.readings
        if reading.model == model
        if not _reading_path(staging, reading, index).exists()
    ]
    total = sum(plan.cost(reading, windows[index]) for reading, index, _ in missing)
    spec: ModelSpec | None = None
    loaded: Any = None
    with progress("scoring tokens", total) as task, ExitStack() as stack:
        meter = Meter()
        for reading, index, path in missing:
            if reading.model != spec:
                loaded = None  # before the next is there
                spec = reading.model
                stack.enter_context(using(plan.backend(spec)))
                with _memory_explained(plan):
                    loaded = plan.load(spec)
            with _memory_explained(plan), finite_logits(reading.model.path, plan.dtype):
                found = plan.read(loaded, reading, windows[index])
            with replacing(path) as partial, partial.open("wb") as stream:
                np.save(stream, found, allow_pickle=False)
            meter.add(cost := plan.cost(reading, windows[index]))
            task.advance(cost, note=f"{reading.name}, {meter}")


@contextmanager
def _memory_explained(plan: Plan) -> Iterator[None]:
    """Device memory that runs out becomes a line that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        narrower = " or --dtype bf16" if plan.dtype == torch.float32 else ""
        raise LongRecipeError(
            f"{plan.device} ran out of memory; with fewer --batch-tokens than "
            f"{plan.recipe.batch_tokens:,} the same command goes on; or begin with a smaller "
            f"--window ({plan.window:,}){narrower} and another --out"
        ) from None


def _reading_path(staging: Path, reading: Reading, index: int) -> Path:
    return staging / f"{reading.name}-{index:06d}.npy"


def _scored(plan: Plan, windows: list[TextWindow], staging: Path) -> Iterator[ScoredWindow]:
    """The windows with what their readings come to."""
    for index, window in enumerate(windows):
        found = {
            reading.name: np.load(_reading_path(staging, reading, index), allow_pickle=False)
            for reading in plan.readings
        }
        long = found["long"]
        if plan.recipe.method == "lsd":
            measures: tuple[np.ndarray, ...] = (long[0] - found["short"][0],)
        else:
            measures = tuple(long - found["base"])
        yield ScoredWindow(window.document, window.start, window.ids, long[0], measures)


def _publish(
    plan: Plan,
    windows: list[TextWindow],
    staging: Path,
    out: Path,
    fingerprints: dict[str, str],
    sources: list[SourceEntry],
    identity: dict[str, Any],
) -> None:
    """Write the files of the folder, the manifest last."""
    remove_partials(out)  # of a run that was killed here
    scored = _scored(plan, windows, staging)
    measured = write_windows(out / SCORES, plan.recipe.method, scored)
    write_vocabulary(out / VOCABULARY, plan.tokenizer.token_bytes, plan.tokenizer.special)
    manifest = ScoresManifest(
        method=plan.recipe.method,
        models={role: portable_name(spec.path) for role, spec in plan.models.items()},
        fingerprints=fingerprints,
        tokenizer=TokenizerEntry.of(plan.tokenizer),
        sources=sources,
        recipe=identity,
        window=plan.window,
        windows=len(windows),
        documents=len({window.document for window in windows}),
        tokens=sum(len(window.ids) for window in windows),
        measured=measured,
        files={name: file_sha256(out / name) for name in (SCORES, VOCABULARY)},
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES},
    )
    write_scores_manifest(out, manifest)
