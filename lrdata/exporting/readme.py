"""README.md of an export: what to set, what the trainer does with the rows, what is not in it."""

from collections.abc import Iterator

from lrdata.exporting.documents import IGNORED, Tally
from lrdata.exporting.trainer import Trainer, warning
from lrdata.manifest import Manifest
from lrdata.report.about import TAGS, licences, name, unlicensed
from lrdata.report.front_matter import front_matter
from lrdata.report.markdown import inert, table


def readme(manifest: Manifest, kind: str, trainer: Trainer, tally: Tally) -> str:
    """Of its arguments alone. DIR, MODEL and OUT in it are for the reader to fill in."""
    return "\n".join(_lines(manifest, kind, trainer, tally)) + "\n"


def _lines(manifest: Manifest, kind: str, trainer: Trainer, tally: Tally) -> Iterator[str]:
    title = f"The {kind} rows of {name(manifest)} for {trainer.name}"
    configs = {"default": ("train", "train-*.parquet")}
    yield from front_matter(
        title, licences(manifest), tally.documents, TAGS, configs, default="default", identity=title
    )
    yield from ("", f"# {title}", "")
    yield (
        f"Written by `lrdata export`. A row is one attention document: the dataset's "
        f"{tally.rows:,} rows are {tally.documents:,} here. Token ids are those of the tokenizer "
        f"{inert(manifest.tokenizer.name)}; the model must have the same."
    )
    yield from _warning(trainer, tally)
    yield from ("", "## Settings", "")
    yield from trainer.settings(tally)
    yield ""
    yield (
        f"DIR is this folder. **RoPE is yours to set**: a model trained for a shorter window needs "
        f"`rope_parameters` for {manifest.target_len:,} tokens in its config.json before; "
        f"{trainer.name} does not know of the window. `lrtrain run` sets them, and "
        "`lrtrain doctor FOLDER --model MODEL` says which."
    )
    yield from ("", f"## What {trainer.name} does with these rows", "")
    yield f"Known from {trainer.known_from}."
    yield ""
    yield from (f"- {sentence}" for sentence in trainer.behaviour(tally))
    yield from ("", "## What is here", "")
    yield from table(("", ""), _figures(tally))
    yield ""
    yield from _columns()
    yield from ("", "## What is not here", "")
    yield from _losses(tally)
    if unlicensed(manifest):
        yield "- A licence for every text: none was stated for some of the sources."


def _warning(trainer: Trainer, tally: Tally) -> Iterator[str]:
    line = warning(trainer, tally)
    yield ""
    if line is None:
        yield "**Safe:** positions have no gaps, so every trainer reads them as they are meant."
    else:
        yield f"> **Warning:** {line}."


def _figures(tally: Tally) -> Iterator[tuple[str, str]]:
    for what, number in (
        ("rows", tally.documents),
        ("tokens", tally.tokens),
        ("of them targets", tally.targets),
        ("tokens of the longest row", tally.longest),
        ("furthest distance of two positions of a row", tally.reach),
        ("rows with gaps in their positions", tally.gapped),
    ):
        yield what, f"{number:,}"


def _columns() -> Iterator[str]:
    yield "- `input_ids`, `position_ids`: as the dataset has them."
    yield "- `attention_mask`: all 1."
    yield (
        f"- `labels`: `input_ids`, and {IGNORED} where a token is no target: the loss mask is off, "
        "or it is the first of its document. They are not shifted; trainers do that."
    )


def _losses(tally: Tally) -> Iterator[str]:
    yield (
        "- `seq_lengths`: documents are rows of their own. Those of one row are no longer trained "
        "together in one step."
    )
    yield (
        "- `impact_mask` and `lsd`, and with them losses weighed by what long context is worth "
        "(`lrtrain run --token-weights`)."
    )
    yield "- Where tokens came from: `segment_*`, `doc_*`, `sample_id`, `source`."
    if tally.left_out:
        yield (
            f"- Documents in which no token is a target: {tally.left_out:,}, of "
            f"{tally.left_out_tokens:,} tokens."
        )
