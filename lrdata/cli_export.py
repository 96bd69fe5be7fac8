"""`lrdata export`: options and help; the work is elsewhere."""

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "trainer",
    type=click.Choice(["axolotl", "trl"]),
    required=True,
    help="The trainer that is to read it.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new folder.")
@click.option(
    "--kind",
    type=click.Choice(["extend", "replay", "holdout"]),
    default="extend",
    show_default=True,
    help="Which rows.",
)
def export(folder: Path, trainer: str, out: Path, kind: str) -> None:
    """Write the rows of FOLDER for another trainer, with the settings it needs.

    Parquet files with input_ids, attention_mask, labels and position_ids, one attention document a
    row, and a README.md to copy settings from. Rows with gaps in their positions are what trainers
    get wrong: then this says how, and what to do.

    \b
    Example:
      lrdata export shards/ --format trl --out for-trl
    """
    from lrdata.exporting import export as write_export

    made = write_export(folder, trainer, out, kind)
    tally = made.tally
    click.echo(
        f"{out} is complete: {tally.documents:,} documents of {tally.tokens:,} tokens, at most "
        f"{tally.longest:,} each; settings are in {out / 'README.md'}"
    )
    if made.warning is None:
        click.echo("their positions have no gaps, so every trainer reads them as they are meant")
    else:
        click.echo(f"warning: {made.warning}", err=True)
