"""The commands that show a dataset: options and help; the work is elsewhere."""

from pathlib import Path

import click

from lrdata.errors import LongRecipeError


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
@click.option(
    "--html",
    "html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page for a browser instead.",
)
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    help="What the dataset was built from: the page then shows what was dropped, too.",
)
@click.option(
    "--rows",
    type=click.IntRange(1, 100),
    help="How many rows the page has, from --row on.  [default: 5, fewer of windows above 128k]",
)
def inspect(
    folder: Path,
    row: int,
    kind: str,
    tokenizer: str | None,
    full: bool,
    html: Path | None,
    corpora: tuple[str, ...],
    rows: int | None,
) -> None:
    """Show what a row became: kept text, gaps with their sizes, span, documents.

    In the terminal, or with --html as one file for a browser: positions under the pointer, the
    window and its positions as rulers, keys for the next row and segment.

    \b
    Examples:
      lrdata inspect shards --row 3
      lrdata inspect shards --row 3 --html row.html --corpus books/ --corpus 'web/*.jsonl.zst'
    """
    from lrdata.inspecting.spelling import open_tokenizer

    if html is None and (corpora or rows is not None):
        raise LongRecipeError(
            f"{'--corpus' if corpora else '--rows'} is for the page: add --html FILE"
        )
    if html is not None and full:
        raise LongRecipeError("--full is for the terminal: a page has all of a row; leave it out")
    known = open_tokenizer(folder, tokenizer)
    if html is not None:
        from lrdata.inspecting.page import write_page

        write_page(folder, kind, row, html, known, corpora, rows)
        click.echo(f"{html} is complete; open it in a browser")
        return
    from rich.console import Console

    from lrdata.inspecting.terminal import show

    show(folder, kind, row, known, Console(), full=full)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write it.  [default: FOLDER/report]",
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    help="Read at most so many rows, spread evenly.  [default: 512, fewer of windows above 128k]",
)
@click.option("--tokenizer", help="A folder or hub id.  [default: the one of the build]")
@click.option("--no-plots", is_flag=True, help="The page alone, without a PNG.")
def report(
    folder: Path, out: Path | None, rows: int | None, tokenizer: str | None, no_plots: bool
) -> None:
    """Write a page about a dataset: tokens, documents, gaps, sources, and what its rows cover.

    Which distances between tokens and which positions training will see, against full-length rows
    and other position schemes. One file, index.html, that loads nothing; and coverage.png, which
    the dataset's card, README.md, then shows.
    """
    from importlib.util import find_spec

    from lrdata.inspecting.spelling import open_tokenizer
    from lrdata.report.dataset import write_report

    plots = not no_plots
    if plots and find_spec("matplotlib") is None:
        click.echo("no PNG: install matplotlib with: pip install 'longrecipe[plots]'", err=True)
        plots = False
    for path in write_report(folder, out, rows, open_tokenizer(folder, tokenizer), plots):
        click.echo(f"{path} is complete")
