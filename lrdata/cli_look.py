"""The commands that show a dataset: options and help; the work is elsewhere."""

from pathlib import Path

import click


@click.command()
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
