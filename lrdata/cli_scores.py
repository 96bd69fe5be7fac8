"""The commands on scores: what long context matters for, and what selections keep of it."""

from pathlib import Path

import click

from lrdata.errors import LongRecipeError
from lrdata.sizes import Count, parse_share


@click.command()
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

    if out.suffix in (".json", ".png"):
        raise LongRecipeError(
            f"--out {out}: tables and figure go there; call it {out.stem}.parquet"
        )
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


@click.command()
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

    Compresses the windows of SCORES in several ways (random sentences, digits, returning tokens, a
    lexicon, direct scores; with and without --evidence) and counts which key tokens survive, alone
    and together with what they are copied from. Lexicons are judged on documents they were not made
    from.
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
    plots = not no_plots and _can_plot()
    if plots:
        report.plot_survival(outcomes, out / "survival.png")
    click.echo(f"{out} holds survival.json" + (" and survival.png" if plots else ""))
