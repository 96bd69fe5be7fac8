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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrdata.atomic import locked, replacing, write_json
from lrdata.corpus import SourceFile, find_files, source_hash
from lrdata.encoding import DocumentEncoder
from lrdata.errors import LongRecipeError
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
from lrdata.tokenizer import Tokenizer
from lrtrain.model import (
    check_architecture,
    check_extensible,
    choose_device,
    load_config,
    load_model,
    model_fingerprint,
)
from lrtrain.model_spec import ModelSpec, parse_models
from lrtrain.rope import parse_rope
from lrtrain.score.readings import read_short, read_whole, short_blocks
from lrtrain.score.recipe import ScoreRecipe
from lrtrain.score.sample import TextWindow, read_sample, sample_windows, write_sample

__all__ = ["ScoreRecipe", "score"]

_STAGING, _IDENTITY, _SAMPLE = ".score", "recipe.json", "sample.parquet"
_LARGEST_WINDOW, _LARGEST_CONTEXT, _LARGEST_STRIDE = 131_072, 4096, 1024
_LIBRARIES = ("longrecipe", "torch", "transformers", "tokenizers", "numpy", "pyarrow")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Reading:
    """One way in which windows are read: a role in `ScoresManifest.models`, or `short`."""

    name: str
    model: ModelSpec
    short: bool = False


@dataclass(frozen=True)
class _Plan:
    """A recipe with all that was looked up: what is scored, and how. Sizes are in tokens."""

    recipe: ScoreRecipe
    readings: list[Reading]
    tokenizer: Tokenizer
    files: list[SourceFile]
    window: int
    short_context: int
    stride: int
    dtype: torch.dtype
    device: torch.device

    @property
    def models(self) -> dict[str, ModelSpec]:
        """The model of each role."""
        return {reading.name: reading.model for reading in self.readings if not reading.short}

    def cost(self, reading: Reading, window: TextWindow) -> int:
        """Tokens that go through the model."""
        tokens = len(window.ids)
        if not reading.short:
            return tokens
        blocks = short_blocks(tokens, self.short_context, self.stride)
        return sum(block.stop - block.start for block in blocks)

    def read(self, model: Any, reading: Reading, window: TextWindow) -> np.ndarray:
        """float32 [2, n]: see `lrtrain.score.readings`."""
        bos_id, chunk = self.tokenizer.bos_id, self.recipe.chunk_tokens
        if not reading.short:
            return read_whole(model, window.ids, bos_id, chunk)
        blocks = short_blocks(len(window.ids), self.short_context, self.stride)
        return read_short(model, window.ids, bos_id, blocks, self.recipe.batch_tokens, chunk)


def score(recipe: ScoreRecipe, out: Path, say: Say = print) -> Scores:
    """Score a sample of the corpora's long documents and write it to the folder `out`.

    Everything that can be refused is refused before the first window is read. Raises
    LongRecipeError.
    """
    plan = _open_plan(recipe, say)
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
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, out):
        windows = _sample(plan, staging, out, identity)
        say(_what_is_scored(plan, windows))
        _read_all(plan, windows, staging)
        _publish(plan, windows, staging, out, fingerprints, sources, identity)
    shutil.rmtree(staging)
    return open_scores(out)


def _open_plan(recipe: ScoreRecipe, say: Say) -> _Plan:
    specs = parse_models([recipe.model, *([recipe.long_model] if recipe.long_model else [])])
    base, long = specs[0], specs[-1]
    configs = [_config(spec) for spec in specs]
    limit = long.target_len or int(configs[-1].max_position_embeddings)
    window = recipe.window or min(limit, _LARGEST_WINDOW)
    if window > limit:
        raise LongRecipeError(
            f"--window {window} is more than the {limit:,} tokens of {long.path}; choose less, or "
            f"give it another RoPE: {long.path}@target={window}"
        )
    if recipe.method == "contrast":
        readings = [Reading("base", base), Reading("long", long)]
        own = base.target_len or int(configs[0].max_position_embeddings)
        if own < window:
            say(
                f"{base.path} is read beyond its window of {own:,} tokens, where it may fail for "
                f"reasons of its own; {base.path}@target={window} gives it the RoPE for it"
            )
    else:
        readings = [Reading("long", long), Reading("short", long, short=True)]
    short_context = recipe.short_context or min(max(window // 8, 1), _LARGEST_CONTEXT)
    stride = recipe.stride or min(short_context, _LARGEST_STRIDE)
    if recipe.method == "lsd" and window <= short_context + stride:
        raise LongRecipeError(
            f"a window of {window} tokens has no token beyond a short context of {short_context} + "
            f"{stride}; raise --window or lower --short-context and --stride"
        )
    device = choose_device(recipe.device)
    auto = "bf16" if device.type == "cuda" else "fp32"
    name = auto if recipe.dtype == "auto" else recipe.dtype
    return _Plan(
        recipe=recipe,
        readings=readings,
        tokenizer=_tokenizer(specs, configs),
        files=find_files(recipe.corpora),
        window=window,
        short_context=short_context,
        stride=stride,
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[name],
        device=device,
    )


def _config(spec: ModelSpec) -> Any:
    """The model's config; raises LongRecipeError for all that loading it would."""
    config = load_config(spec.path)
    check_architecture(config, spec.path)
    if spec.rope is not None:
        parse_rope(spec.rope)
        if spec.target_len is None:
            raise LongRecipeError(
                f"{spec.path}@{spec.rope} needs a window; write {spec.path}@{spec.rope},target=128k"
            )
        check_extensible(config, spec.path, spec.target_len)
    return config


def _tokenizer(specs: list[ModelSpec], configs: list[Any]) -> Tokenizer:
    """The models' tokenizer; both must have the same, and an embedding for each of its ids."""
    found = [Tokenizer.load(spec.path) for spec in specs]
    for spec, config, tokenizer in zip(specs, configs, found, strict=True):
        if tokenizer.vocab_size > config.vocab_size:
            raise LongRecipeError(
                f"{spec.path} has {config.vocab_size} embeddings but its tokenizer "
                f"{tokenizer.vocab_size} ids; put the tokenizer there that it was trained with"
            )
    if found[0].fingerprint != found[-1].fingerprint:
        raise LongRecipeError(
            f"{specs[0].path} and {specs[-1].path} have different tokenizers; their scores of a "
            "token cannot be compared"
        )
    return found[0]


def _identity(
    plan: _Plan, fingerprints: dict[str, str], sources: list[SourceEntry]
) -> dict[str, Any]:
    """What must be equal for scores to be the same."""
    return {
        **plan.recipe.portable(),
        "window": plan.window,
        "short_context": plan.short_context,
        "stride": plan.stride,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "tokenizer probe": plan.tokenizer.probe_fingerprint,
        **{f"{role} model": fingerprint for role, fingerprint in fingerprints.items()},
        **{f"corpus file {entry.name}": entry.sha256 for entry in sources},
    }


def _finished(out: Path, identity: dict[str, Any]) -> Scores:
    """Equal scores that are already there; an error for any others."""
    scores = open_scores(out)
    _refuse_other(out, scores.manifest.recipe, identity)
    if (out / _STAGING).exists():  # killed when all was done but this
        shutil.rmtree(out / _STAGING)
    return scores


def _refuse_other(out: Path, there: dict[str, Any], identity: dict[str, Any]) -> None:
    ours = json.loads(json.dumps(identity))
    for name in ours:  # what a person wrote comes first
        for difference in differences({name: there.get(name)}, {name: ours[name]}):
            raise LongRecipeError(f"{out} holds other scores ({difference}); choose another --out")


def _sample(plan: _Plan, staging: Path, out: Path, identity: dict[str, Any]) -> list[TextWindow]:
    """The windows to score, of an earlier run or new; from then on the folder is for these."""
    path, claim = staging / _SAMPLE, staging / _IDENTITY
    if claim.exists():
        _refuse_other(out, json.loads(claim.read_text(encoding="utf-8")), identity)
    if not (claim.exists() and path.exists()):
        recipe = plan.recipe
        least = plan.short_context + plan.stride + 1 if recipe.method == "lsd" else 2
        windows = sample_windows(
            plan.files,
            Fields(text=recipe.text_field, id=recipe.id_field),
            DocumentEncoder(plan.tokenizer),
            window=plan.window,
            least=max(recipe.min_doc_tokens, least) if recipe.min_doc_tokens else plan.window,
            tokens=recipe.tokens,
            per_document=recipe.per_document,
            seed=recipe.seed,
        )
        write_sample(path, windows)
        write_json(claim, identity)
    return read_sample(path)


def _what_is_scored(plan: _Plan, windows: list[TextWindow]) -> str:
    tokens = sum(len(window.ids) for window in windows)
    documents = len({window.document for window in windows})
    names = {role: Path(spec.path).name for role, spec in plan.models.items()}
    how = (
        f"{names['long']} against the last {plan.short_context:,} to "
        f"{plan.short_context + plan.stride - 1:,} tokens"
        if plan.recipe.method == "lsd"
        else f"{names['long']} against {names['base']}"
    )
    asked = plan.recipe.tokens
    few = ", all that there are" if asked is not None and tokens < asked else ""
    return (
        f"scoring {tokens:,} tokens in {len(windows):,} windows of {documents:,} documents{few}: "
        f"{how}, on {plan.device}"
    )


def _read_all(plan: _Plan, windows: list[TextWindow], staging: Path) -> None:
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
    with progress("scoring tokens", total) as task:
        meter = Meter()
        for reading, index, path in missing:
            if reading.model != spec:
                loaded = None  # before the next is there
                spec, loaded = reading.model, _load(plan, reading.model)
            with _memory_explained(plan):
                found = plan.read(loaded, reading, windows[index])
            with replacing(path) as partial, partial.open("wb") as stream:
                np.save(stream, found, allow_pickle=False)
            meter.add(cost := plan.cost(reading, windows[index]))
            task.advance(cost, note=f"{reading.name}, {meter}")


@contextmanager
def _memory_explained(plan: _Plan) -> Iterator[None]:
    """Device memory that runs out becomes a line that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise LongRecipeError(
            f"{plan.device} ran out of memory; lower --batch-tokens ({plan.recipe.batch_tokens:,}) "
            f"or --window ({plan.window:,}), or use --dtype bf16; the same command goes on"
        ) from None


def _reading_path(staging: Path, reading: Reading, index: int) -> Path:
    return staging / f"{reading.name}-{index:06d}.npy"


def _load(plan: _Plan, spec: ModelSpec) -> Any:
    rope = None if spec.rope is None else parse_rope(spec.rope)
    return load_model(
        spec.path, dtype=plan.dtype, rope=rope, target_len=spec.target_len, device=plan.device
    ).eval()


def _scored(plan: _Plan, windows: list[TextWindow], staging: Path) -> Iterator[ScoredWindow]:
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
    plan: _Plan,
    windows: list[TextWindow],
    staging: Path,
    out: Path,
    fingerprints: dict[str, str],
    sources: list[SourceEntry],
    identity: dict[str, Any],
) -> None:
    """Write the files of the folder, the manifest last."""
    for partial in out.glob(".*.partial"):  # of a run that was killed here
        partial.unlink()
    write_windows(out / SCORES, plan.recipe.method, _scored(plan, windows, staging))
    write_vocabulary(out / VOCABULARY, plan.tokenizer.token_bytes, plan.tokenizer.special)
    measured = sum(
        int(np.isfinite(window.gain).sum()) for window in _scored(plan, windows, staging)
    )
    tokenizer = plan.tokenizer
    manifest = ScoresManifest(
        method=plan.recipe.method,
        models={role: portable_name(spec.path) for role, spec in plan.models.items()},
        fingerprints=fingerprints,
        tokenizer=TokenizerEntry(
            name=portable_name(tokenizer.name),
            fingerprint=tokenizer.fingerprint,
            probe_fingerprint=tokenizer.probe_fingerprint,
            vocab_size=tokenizer.vocab_size,
            eot_id=tokenizer.eot_id,
            bos_id=tokenizer.bos_id,
        ),
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
