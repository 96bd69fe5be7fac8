"""The `lrdata` command: options and help; the work is elsewhere."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lrdata.errors import Commands, LongRecipeError
from lrdata.sizes import Count, Share, parse_count, parse_share

if TYPE_CHECKING:
    from lrdata.manifest import Manifest
    from lrdata.recipe import BuildRecipe
    from lrdata.stopwatch import Timing


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: lrdata build corpus/ --tokenizer MODEL --target-len 128k --out shards/",
)
def main() -> None:
    """Turn a text corpus into a shareable dataset of compressed long-context training rows.

    Offline, on CPUs, without torch. Sizes are written 128k (= 131,072 tokens), 38400 or 30%. Add
    --debug to any command to see the traceback of an error.
    """


_RECIPE = (
    click.argument("corpora", nargs=-1, required=True),
    click.option("--tokenizer", required=True, help="A folder with tokenizer.json, or a hub id."),
    click.option(
        "--target-len", type=Count(), required=True, help="The window to extend to: 128k."
    ),
    click.option("--train-len", help="Tokens of a row: 38400 or 30%.  [default: 30%]"),
    click.option(
        "--positions",
        default="longrecipe",
        show_default=True,
        help="Position scheme: longrecipe, pose, randpos, full or source.",
    ),
    click.option(
        "--segment-tokens",
        type=Count(),
        default=88,
        show_default=True,
        help="About how many tokens keep consecutive positions.",
    ),
    click.option(
        "--impact",
        default="digits",
        show_default=True,
        help="What makes a token impactful: digits; lexicon:FILE (see `lrdata lexicon`); "
        "scores:DIR (see `lrtrain score`); random; or none (keep the start).",
    ),
    click.option(
        "--select",
        default="auto",
        show_default=True,
        help="draw: sentences with impactful tokens, at random; top: by mean score; auto: top for "
        "lexicon and scores, else draw.",
    ),
    click.option(
        "--evidence",
        type=Count(),
        default=0,
        metavar="TOKENS",
        help="Keep sentences with impactful tokens together with what these may be copied from: "
        "the same rare words, at least so far back (4k).  [default: no]",
    ),
    click.option(
        "--join",
        default="attend",
        show_default=True,
        help="Whether documents joined in a window attend to each other: attend, mask.",
    ),
    click.option("--replay", multiple=True, help="Corpus for the annealing stage; repeatable."),
    click.option(
        "--replay-ratio",
        type=Share(),
        default="10%",
        show_default=True,
        help="Replay tokens as a share of the extend tokens.",
    ),
    click.option(
        "--prompt-field", help="Replay records: the prompt; only the response is learned."
    ),
    click.option("--response-field", help="Replay records: the response."),
    click.option(
        "--chat-template", is_flag=True, help="Write prompts in the tokenizer's template."
    ),
    click.option(
        "--holdout",
        type=Share(),
        default="0%",
        show_default=True,
        help="Share of documents kept out, as whole windows.",
    ),
    click.option("--max-rows", type=Count(), help="Stop after so many rows, in corpus order."),
    click.option(
        "--min-doc-tokens",
        type=Count(),
        default=1,
        show_default=True,
        help="Set shorter documents aside.",
    ),
    click.option(
        "--weight",
        multiple=True,
        metavar="SOURCE=W",
        help="Use a source's documents W times (2) or a share of them (0.5); repeatable.",
    ),
    click.option(
        "--license",
        "licence",
        multiple=True,
        metavar="SOURCE=ID",
        help="A source's licence, for the dataset card; repeatable.",
    ),
    click.option("--text-field", default="text", show_default=True, help="Field of the text."),
    click.option("--id-field", help="Field of the document id.  [default: file and record]"),
    click.option("--source-field", help="Field of the source.  [default: the folder or file]"),
    click.option("--eot", help="End-of-text token.  [default: the tokenizer's]"),
    click.option(
        "--encoder",
        type=click.Choice(["auto", "fastokens", "tokenizers"]),
        default="auto",
        show_default=True,
        help="Which library encodes; the ids are the same.",
    ),
    click.option("--seed", type=int, default=0, show_default=True),
)
"""What is built: the arguments of `build` and `plan`, the fields of a BuildRecipe."""


def _recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a recipe to a command, in their order."""
    for option in reversed(_RECIPE):
        command = option(command)
    return command


@main.command()
@_recipe_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The dataset folder.")
@click.option("--workers", type=click.IntRange(1), help="Units at a time.  [default: one a core]")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where units are built: on this machine, or on a Ray cluster.",
)
@click.option(
    "--max-bad",
    type=Share(),
    default="1%",
    show_default=True,
    help="Exit with 1 if more of the records are unusable; the others are built.",
)
@click.option(
    "--profile", type=click.Path(path_type=Path), help="Write what took how long, as JSON."
)
@click.option("--dry-run", is_flag=True, help="Only say what to expect, as `lrdata plan` does.")
@click.option("--overwrite", is_flag=True, help="Remove an earlier build in OUT first.")
def build(
    out: Path,
    workers: int | None,
    engine: str,
    max_bad: float,
    profile: Path | None,
    dry_run: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Build a dataset of training rows from CORPORA: files, folders or globs.

    JSONL (plain, .zst, .gz), Parquet, Arrow and plain text. Each window of --target-len tokens
    becomes a row of --train-len tokens: the sentences with impactful tokens, with position ids
    that span the whole window. The same command goes on after an interruption.

    \b
    Examples:
      lrdata build books/ web.jsonl.zst --tokenizer ./llama3 --target-len 128k --out shards
      lrdata build 'lib/**/*.py' --tokenizer ./llama3 --target-len 32k --out code \\
          --replay instruct.jsonl --prompt-field question --response-field answer
    """
    recipe = _recipe(options)
    if dry_run:
        _show_plan(recipe, workers, out)
        return
    from lrdata.engines import open_engine

    # First of all: the engine's own start takes as long as the imports and the tokenizer here.
    open_engine(engine).begin(recipe, workers or os.cpu_count() or 1)
    from lrdata.build import build as build_dataset
    from lrdata.build import describe, refuse_bad
    from lrdata.runtime import prepare_for_bulk_work
    from lrdata.stopwatch import Timing

    prepare_for_bulk_work()
    timing = Timing()
    manifest = build_dataset(
        recipe, out, workers=workers, engine=engine, overwrite=overwrite, timing=timing
    )
    if profile is not None:
        _write_profile(profile, timing, manifest)
    for line in describe(manifest):
        click.echo(line)
    refuse_bad(manifest, max_bad, out)
    click.echo(f"{out} is complete; look at a row with: lrdata inspect {out}")


def _write_profile(file: Path, timing: "Timing", manifest: "Manifest") -> None:
    from lrdata.atomic import write_json

    facts = {
        "start_seconds": timing.start,
        "build_seconds": timing.build,
        "stage_seconds": timing.stages,
        "tokens_encoded": manifest.ledger.encoded,
    }
    write_json(file, facts)


@main.command()
@_recipe_options
@click.option("--out", type=click.Path(path_type=Path), help="A folder where a build has begun.")
@click.option("--workers", type=click.IntRange(1), help="Units at a time.  [default: one a core]")
def plan(out: Path | None, workers: int | None, **options: Any) -> None:
    """Say what `lrdata build` with the same options would make, and how long it would take.

    The corpus is listed, and a few megabytes of it are built to measure tokens, rejected records
    and speed; nothing is written.
    """
    _show_plan(_recipe(options), workers, out)


def _show_plan(recipe: "BuildRecipe", workers: int | None, out: Path | None) -> None:
    from rich.console import Console

    from lrdata.plan import make_plan, plan_table

    Console().print(plan_table(make_plan(recipe, workers=workers, out=out)))


def _recipe(options: dict[str, Any]) -> "BuildRecipe":
    """The recipe that command line options spell."""
    from lrdata.recipe import BuildRecipe

    options["licences"] = _pairs("--license", options.pop("licence"))
    options["weights"] = {
        source: _number("--weight", value)
        for source, value in _pairs("--weight", options.pop("weight")).items()
    }
    options["train_len"] = _train_len(options.pop("train_len"), options["target_len"])
    return BuildRecipe(**options)


@main.command()
@click.argument("scores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("lexicon.parquet"),
    show_default=True,
    help="The lexicon; its tables and figure go beside it as .json and .png.",
)
@click.option("--no-plots", is_flag=True, help="No figure.")
def lexicon(scores: tuple[Path, ...], out: Path, no_plots: bool) -> None:
    """Say for which types of tokens long context matters, from SCORES that `lrtrain score` made.

    Writes the significance of every token of the vocabulary, prints it by class (numbers, word
    parts, identifiers, ...) and draws the paper's Figure 4.

    \b
    Examples:
      lrdata lexicon scores --out lexicon.parquet
      lrdata build books/ --impact lexicon:lexicon.parquet ...
    """
    from lrdata.atomic import write_json
    from lrdata.lexicon import make_lexicon, write_lexicon
    from lrdata.report import lexicon as report
    from lrdata.scores import open_scores

    opened = [open_scores(folder) for folder in scores]
    made = make_lexicon(opened)
    positions = report.position_table(opened, made)
    write_lexicon(out, made)
    write_json(out.with_suffix(".json"), report.as_json(made, positions))
    report.print_lexicon(made)
    if not no_plots and _can_plot():
        report.plot_lexicon(made, positions, out.with_suffix(".png"))
    click.echo(f"{out} is complete; build with: lrdata build ... --impact lexicon:{out}")


def _can_plot() -> bool:
    """Whether figures can be drawn here; says how to make it so."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        click.echo("no figure: install matplotlib with: pip install 'longrecipe[plots]'", err=True)
        return False
    return True


@main.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("survival"),
    show_default=True,
    help="Folder for survival.json and survival.png.",
)
@click.option(
    "--budgets", default="10%,20%,30%,40%,50%", show_default=True, help="Shares of a window kept."
)
@click.option(
    "--lexicon",
    "lexicons",
    multiple=True,
    metavar="FILE",
    help="Judge this lexicon too; it should come from other documents.  Repeatable.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="Take key tokens from these scores, of the same windows by another model.",
)
@click.option("--segment-tokens", type=Count(), default=88, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--no-plots", is_flag=True, help="Only survival.json and the tables.")
def survival(
    scores: Path,
    out: Path,
    budgets: str,
    lexicons: tuple[str, ...],
    keys: Path | None,
    segment_tokens: int,
    seed: int,
    no_plots: bool,
) -> None:
    """Say how much of what needs long context a selection keeps, before any training.

    Compresses the windows of SCORES in several ways (random sentences, digits, a lexicon, direct
    scores; with and without --evidence) and counts which key tokens survive, alone and together
    with what they are copied from. Lexicons are judged on documents they were not made from.
    """
    from lrdata.atomic import write_json
    from lrdata.report import survival as report
    from lrdata.scores import open_scores
    from lrdata.survival import contestants
    from lrdata.survival import survival as judge

    outcomes = judge(
        open_scores(scores),
        contestants(lexicons),
        sorted({parse_share(part) for part in budgets.split(",")}),
        keys=open_scores(keys) if keys else None,
        segment_tokens=segment_tokens,
        seed=seed,
    )
    write_json(out / "survival.json", report.as_json(outcomes))
    report.print_survival(outcomes)
    if not no_plots and _can_plot():
        report.plot_survival(outcomes, out / "survival.png")
    click.echo(f"{out} holds survival.json" + ("" if no_plots else " and survival.png"))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also hash the decoded columns.")
def verify(folder: Path, deep: bool) -> None:
    """Check a dataset: schema, ranges, sums, checksums, accounting."""
    from lrdata.verify import verify as problems_of

    problems = problems_of(folder, deep=deep)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise LongRecipeError(f"{folder} has {len(problems)} problems; build or pull it again")
    click.echo(f"{folder} is whole")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--row", type=int, default=0, show_default=True, help="Which row of its kind.")
@click.option(
    "--kind",
    type=click.Choice(["extend", "replay", "holdout"]),
    default="extend",
    show_default=True,
)
@click.option("--tokenizer", help="A folder or hub id.  [default: the one of the build]")
@click.option("--full", is_flag=True, help="Show the whole row, however long.")
def inspect(folder: Path, row: int, kind: str, tokenizer: str | None, full: bool) -> None:
    """Show what a row became: kept text, gaps with their sizes, span, documents."""
    from rich.console import Console

    from lrdata.inspect import open_tokenizer, show

    show(folder, kind, row, open_tokenizer(folder, tokenizer), Console(), full=full)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--target-len", type=Count(), required=True, help="The window that positions span: 256k."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The new dataset folder.  [default: FOLDER-256k, beside it]",
)
def retarget(folder: Path, target_len: int, out: Path | None) -> None:
    """Draw new positions for another window, without retokenizing.

    The rows stay as they are; the position ids of extend rows are drawn again, as the build drew
    them, to span --target-len. For the schemes longrecipe, pose and randpos: positions of source
    and full are the tokens' own places.

    \b
    Example:
      lrdata retarget shards/ --target-len 256k      # writes shards-256k/
    """
    from lrdata.retarget import default_out
    from lrdata.retarget import retarget as write_retargeted

    made = default_out(folder, target_len) if out is None else out
    manifest = write_retargeted(folder, target_len, made)
    rows = sum(entry.rows for entry in manifest.files if entry.kind == "extend")
    click.echo(f"{made} is complete: {rows:,} rows whose positions span {target_len:,} tokens")


def _pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        source, equals, given = value.rpartition("=")
        if not equals or not source or not given:
            raise click.BadParameter(f"{option} {value}: write SOURCE=VALUE")
        pairs[source] = given
    return pairs


def _number(option: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{option} {value}: not a number") from None


def _train_len(text: str | None, target_len: int) -> int:
    """0 (the default share) without the option; a share is floored to a multiple of 16."""
    if text is None:
        return 0
    if text.strip().endswith("%"):
        return int(parse_share(text) * target_len) // 16 * 16
    return parse_count(text)
