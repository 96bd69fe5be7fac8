"""The `lrdata` command: options and help; the work is elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lrdata.cli_export import export
from lrdata.cli_hub import pull, push
from lrdata.cli_json import json_option, print_json
from lrdata.cli_look import inspect, report
from lrdata.cli_recipe import recipe_of, recipe_options, without_foreign_sources
from lrdata.cli_scores import lexicon, survival
from lrdata.commands import Commands
from lrdata.errors import LongRecipeError
from lrdata.sizes import Count, Share
from lrdata.visible import visible

if TYPE_CHECKING:
    from lrdata.manifest import Manifest
    from lrdata.recipe import BuildRecipe
    from lrdata.stopwatch import Timing


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: lrdata build corpus/ --tokenizer MODEL --target-len 128k --out shards/",
)
@click.version_option(package_name="longrecipe", message="%(package)s %(version)s")
def main() -> None:
    """Turn a text corpus into a shareable dataset of compressed long-context training rows.

    Offline, on CPUs, without torch. Sizes are written 128k (= 131,072 tokens), 38400 or 30%. Add
    --debug to any command to see the traceback of an error.
    """


@main.command()
@recipe_options
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
@json_option
def build(
    out: Path,
    workers: int | None,
    engine: str,
    max_bad: float,
    profile: Path | None,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
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
    recipe = without_foreign_sources(recipe_of(options))
    if dry_run:
        _show_plan(recipe, workers, out, as_json)
        return
    from lrdata.engines import open_engine
    from lrdata.runtime import prepare_for_bulk_work, usable_cpus

    # First of all: the engine's own start takes as long as the imports and the tokenizer here.
    open_engine(engine).begin(recipe, workers or usable_cpus())
    from lrdata.building import build as build_dataset
    from lrdata.building import describe, refuse_bad
    from lrdata.layout import PAGE
    from lrdata.manifest import as_json as manifest_json
    from lrdata.stopwatch import Timing

    prepare_for_bulk_work()
    timing, page = Timing(), out / PAGE
    reported = page.exists() and not overwrite
    manifest = build_dataset(
        recipe, out, workers=workers, engine=engine, overwrite=overwrite, timing=timing
    )
    if profile is not None:
        _write_profile(profile, timing, manifest)
    if as_json:
        print_json(manifest_json(manifest))
    else:
        for line in describe(manifest):
            click.echo(line)
    if reported and not page.exists():
        again = f"write it again with: lrdata report {out}"
        click.echo(f"{page} named other licences and is removed; {again}", err=True)
    refuse_bad(manifest, max_bad, out)
    if not as_json:
        click.echo(f"{out} is complete; look at a row with: lrdata inspect {out}")
    if manifest.holdout_unfilled:
        click.echo(f"warning: no holdout rows: {manifest.holdout_unfilled}", err=True)


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
@recipe_options
@click.option("--out", type=click.Path(path_type=Path), help="A folder where a build has begun.")
@click.option("--workers", type=click.IntRange(1), help="Units at a time.  [default: one a core]")
@json_option
def plan(out: Path | None, workers: int | None, as_json: bool, **options: Any) -> None:
    """Say what `lrdata build` with the same options would make, and how long it would take.

    The corpus is listed, and a few megabytes of it are built to measure tokens, rejected records
    and speed; nothing is written.
    """
    _show_plan(without_foreign_sources(recipe_of(options)), workers, out, as_json)


def _show_plan(recipe: "BuildRecipe", workers: int | None, out: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from lrdata.plan import make_plan, plan_table

    made = make_plan(recipe, workers=workers, out=out)
    if as_json:
        print_json(made.as_json())
    else:
        Console().print(plan_table(made))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Also hash the decoded columns.")
@json_option
def verify(folder: Path, deep: bool, as_json: bool) -> None:
    """Check a dataset: schema, ranges, sums, checksums, accounting."""
    from lrdata.verifying import verify as problems_of

    problems = problems_of(folder, deep=deep)
    if as_json:
        print_json({"folder": str(folder), "problems": problems})
    else:
        for problem in problems or [f"{folder} is whole"]:
            click.echo(visible(problem))
    if problems:
        raise LongRecipeError(f"{folder} has {len(problems)} problems; build or pull it again")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--target-len", type=Count(), required=True, help="The window that positions span: 256k."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The new dataset folder.  [default: beside it: FOLDER-256k]",
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
    from lrdata.retargeting import default_out
    from lrdata.retargeting import retarget as write_retargeted

    made = default_out(folder, target_len) if out is None else out
    manifest = write_retargeted(folder, target_len, made)
    rows = sum(entry.rows for entry in manifest.of_kind("extend"))
    click.echo(f"{made} is complete: {rows:,} rows whose positions span {target_len:,} tokens")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("corpora", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new folder.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default=True,
    help="The folder that holds what the recipe names.",
)
@click.option("--tokenizer", help="Where it is, if not there.")
@click.option("--replay", multiple=True, help="Where replay corpora are, if not there.")
@click.option("--impact", metavar="KIND:PATH", help="Where a lexicon or scores are, if not there.")
@click.option("--workers", type=click.IntRange(1), help="Units at a time.  [default: one a core]")
def rebuild(folder: Path, out: Path, **options: Any) -> None:
    """Build the dataset of FOLDER again, from its manifest alone, and compare to the byte.

    CORPORA are the files or folders that it was built from, if they are not under --root by the
    names that the manifest has. Each must have the sha256 that the manifest says. Of a part, as
    `lrdata pull --only` makes it, the whole is built.

    \b
    Example:
      lrdata rebuild shards books/ --tokenizer ./llama3-8b --out again
    """
    from lrdata.rebuilding import rebuild as build_again

    rebuilt = build_again(folder, out, **options)
    files = len(rebuilt.same) + len(rebuilt.same_content) + len(rebuilt.other)
    click.echo(f"{len(rebuilt.same):,} of {files:,} files are the same, byte for byte")
    if rebuilt.same_content:
        click.echo(f"{len(rebuilt.same_content):,} hold the same rows in other bytes")
    for difference in rebuilt.versions:
        click.echo(visible(f"version of {difference}"))
    if not rebuilt.equal:
        first = (rebuilt.other or rebuilt.same_content)[0]
        raise LongRecipeError(
            f"{out} is not {folder} to the byte: {first} is the first file that differs"
            + ("; install the versions of its manifest" if rebuilt.versions else "")
        )
    click.echo(f"{out} is {folder}, built again")


for command in (inspect, report, push, pull, export, lexicon, survival):
    main.add_command(command)
