"""Does it extend the window, and at what price? Every method under equal conditions.

    python bench/proof small --out /tmp/proof            # a tiny model; two hours on two cores
    python bench/proof small --out /tmp/smoke --smoke    # shows in two minutes that it runs
    python bench/proof scale --out /tmp/proof            # the attention scale, with its bases
    python bench/proof variants --out /tmp/proof         # LongRecipe with one thing changed
    python bench/proof real prepare --out /tmp/real --plan 16k
    python bench/proof real run --out /tmp/real --plan 16k    # SmolLM2; hours on two cores

The protocol is bench/proof/README.md. Everything that is found is a JSON file in --out; the same
command goes on where it was stopped, and at the end prints the tables and writes OUT/*.json and the
figures.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import real as real_proof
import real_tables
import scale as scale_study
import tables
import variants as variants_study
from cells import OutOfTime, Study, made
from small import SEEDS, SmallProof

from lrdata.atomic import write_json
from lrdata.commands import Commands
from lrdata.runtime import usable_cpus

_OPTIONS = (
    click.option("--out", type=click.Path(path_type=Path), required=True),
    click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one a core]"),
    click.option(
        "--seconds",
        type=float,
        default=float("inf"),
        help="Begin nothing after so many; the same command goes on.  [default: no end]",
    ),
)


def study_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command whose cells are done in as many calls as it takes."""

    @functools.wraps(command)
    def in_time(**options: Any) -> None:
        try:
            command(**options)
        except OutOfTime as left:
            click.echo(f"{left}; run the same command to go on", err=True)

    wrapped: Callable[..., None] = in_time
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def study_of(out: Path, workers: int | None, seconds: float) -> Study:
    made()  # by what is here now, whatever becomes of it meanwhile
    return Study(out, workers or usable_cpus(), seconds=seconds)


def draw(what: str, found: dict[str, Any], path: Path) -> None:
    """The figure of a study, where there is matplotlib."""
    if find_spec("matplotlib") is None:
        click.echo(f"no {path.name}: install matplotlib", err=True)
        return
    import figures

    figures.FIGURES[what](found, path)


@click.group(cls=Commands, help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
def main() -> None:
    pass


@main.command()
@study_options
@click.option("--smoke", is_flag=True, help="A step each: figures mean nothing.")
def small(smoke: bool, **options: Any) -> None:
    """Sixteen methods on a tiny model, with equal tokens and with equal rows; anneal and merge."""
    study = study_of(**options)
    proof = SmallProof.smoke(study) if smoke else SmallProof(study)
    found = {**proof.run(), "made": study.made()}
    write_json(study.out / "small.json", found)
    tables.show(found)
    draw("small", found, study.out / "small.png")


@main.command()
@study_options
@click.option("--seeds", type=click.IntRange(2, len(SEEDS)), default=3, show_default=True)
@click.option("--smoke", is_flag=True, help="A step each: figures mean nothing.")
def scale(seeds: int, smoke: bool, **options: Any) -> None:
    """Retrieval and text against the softmax scale in training, for rows of 10 to 50 %."""
    study = study_of(**options)
    numbers = (0, 1) if smoke else SEEDS[:seeds]
    found = {**scale_study.run(study, numbers, smoke), "made": study.made()}
    write_json(study.out / "scale.json", found)
    scale_study.show(found)
    draw("scale", found, study.out / "scale.png")


@main.command()
@study_options
@click.option("--seeds", type=click.IntRange(2, len(SEEDS)), default=3, show_default=True)
@click.option("--smoke", is_flag=True, help="A step each: figures mean nothing.")
def variants(seeds: int, smoke: bool, **options: Any) -> None:
    """LongRecipe with one thing changed: segments, law of gaps, share, theta, scale."""
    study = study_of(**options)
    numbers = (0, 1) if smoke else SEEDS[:seeds]
    found = {**variants_study.run(study, numbers, smoke), "made": study.made()}
    write_json(study.out / "variants.json", found)
    variants_study.show(found)


@main.group(cls=Commands, help=(real_proof.__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
def real() -> None:
    pass


@main.command()
@click.argument("folder")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--back", is_flag=True, help="From FILE into OUT/cells, to go on from there.")
def cells(folder: str, file: Path, out: Path, back: bool) -> None:
    """Gather the cells of a study, FOLDER of OUT/cells, in one FILE; or put them back.

    With them another machine goes on where this one was stopped.
    """
    study = Study(out, 1)
    if back:
        study.take(file)
    else:
        write_json(file, study.gather(folder))


_PLAN = click.option("--plan", type=click.Choice(list(real_proof.PLANS)), required=True)
_OUT = click.option("--out", type=click.Path(path_type=Path), required=True)


@real.command("prepare")
@_OUT
@_PLAN
def prepare_real(out: Path, plan: str) -> None:
    """Fetch the model, write corpora and build every method's rows."""
    out.mkdir(parents=True, exist_ok=True)
    real_proof.prepare(out, real_proof.PLANS[plan])


@real.command("run")
@study_options
@_PLAN
def run_real(plan: str, **options: Any) -> None:
    """Train and measure every method; one process, on a GPU where there is one."""
    study = replace(study_of(**{**options, "workers": options["workers"] or 1}), threads=None)
    found = {**real_proof.run(study, real_proof.PLANS[plan]), "made": study.made()}
    write_json(study.out / f"real-{plan}.json", found)
    real_tables.show(found)


@real.command("pack")
@_OUT
def pack_real(out: Path) -> None:
    """Cut what `real run` needs into files of at most 48 MB in OUT/parts."""
    for part in real_proof.pack(out):
        click.echo(f"{part.stat().st_size:>12,} {part}")


@real.command("unpack")
@_OUT
def unpack_real(out: Path) -> None:
    """Put OUT/parts together again."""
    real_proof.unpack(out)


if __name__ == "__main__":
    main()
