"""How much of a changed dataset a second push uploads: content-defined chunking at work.

    pip install 'longrecipe[hub]'
    python bench/sharing.py              # a minute on two cores, once the corpora are made
    python bench/sharing.py --corpus books.jsonl --tokenizer ./llama3-8b

A dataset is stored by the Hub's own client (hf-xet) in a folder that speaks for the Hub, and then
a variant of it; the client itself counts the bytes that it did not find there already. The same
variants, written by pyarrow's writer without content-defined chunking, are the rival. Nothing goes
over the network.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click
import hf_xet
import pyarrow.parquet as pq
from corpora import default_corpora, fetch, first
from rich import box
from rich.console import Console
from rich.table import Table
from shards import PAGE_ROWS, pyarrow_writer

import lrdata
from lrdata.sizes import Count


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), help="JSONL.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A folder.  [default: Llama-3]")
@click.option("--mb", type=float, default=60, show_default=True, help="Of the default corpus.")
@click.option("--target-len", type=Count(), default="32k", show_default=True)
def main(corpus: Path | None, tokenizer: Path | None, mb: float, target_len: int) -> None:
    with tempfile.TemporaryDirectory(prefix="longrecipe-sharing-") as name:
        scratch = Path(name)
        if corpus is None:
            english = next(one for one in default_corpora(200) if one.name == "english")
            corpus = first(english, mb, scratch).path
        lines = corpus.read_bytes().splitlines(keepends=True)
        recipe = lrdata.BuildRecipe(
            (str(corpus),), str(tokenizer or fetch("llama3")), target_len, impact="digits"
        )
        datasets = build_all(scratch, lines, recipe)
        print_table(datasets, scratch, len(lines))


def build_all(scratch: Path, lines: Sequence[bytes], recipe: lrdata.BuildRecipe) -> dict[str, Path]:
    """The dataset and its variants: what changed -> folder."""
    more = len(lines) // 10
    start, middle = list(lines[: -2 * more]), len(lines) // 2
    at_end, inside = list(lines[-2 * more : -more]), list(lines[-more:])
    corpora = {
        "as it was": start,
        "a tenth more documents at the end": start + at_end,
        "a tenth more documents in the middle": start[:middle] + inside + start[middle:],
        "one document less, the first": start[1:],
        "one word more in each hundredth document": [
            _longer(line) if number % 100 == 50 else line for number, line in enumerate(start)
        ],
    }
    made = {}
    for number, (what, texts) in enumerate(corpora.items()):
        made[what] = _built(scratch / f"{number}", {"corpus.jsonl": texts}, recipe)
    files = {"corpus.jsonl": start, "more.jsonl": at_end}
    made["a tenth more documents in a file of their own"] = _built(scratch / "file", files, recipe)
    wide = scratch / "wide" / "shards"
    lrdata.retarget(made["as it was"], 2 * recipe.target_len, wide)
    made["another window: lrdata retarget"] = wide
    return made


def _built(folder: Path, files: dict[str, Sequence[bytes]], recipe: lrdata.BuildRecipe) -> Path:
    """A dataset of files in a folder."""
    folder.mkdir()
    for name, lines in files.items():
        (folder / name).write_bytes(b"".join(lines))
    corpora = tuple(str(folder / name) for name in files)
    lrdata.build(replace(recipe, corpora=corpora), folder / "shards")
    return folder / "shards"


def _longer(line: bytes) -> bytes:
    record = json.loads(line)
    return json.dumps({**record, "text": f"Indeed. {record['text']}"}).encode() + b"\n"


def pushed_again(first: Path, second: Path, store: Path) -> tuple[int, int]:
    """Bytes of the second dataset's shards, and how many of them the store did not have."""
    session = hf_xet.XetSession()
    uploads = []
    for folder in (first, second):
        with session.new_upload_commit(endpoint=f"local://{store}") as commit:
            files = sorted(folder.rglob("*.parquet"))
            uploads = [commit.start_upload_file(str(file)) for file in files]
        metrics = [upload.result().dedup_metrics for upload in uploads]
    return sum(one.total_bytes for one in metrics), sum(one.new_bytes for one in metrics)


def plain(folder: Path, out: Path) -> Path:
    """The same tables as pyarrow writes them, without content-defined chunking."""
    for file in sorted(folder.rglob("*.parquet")):
        copy = out / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        table = pq.read_table(file)
        with pyarrow_writer(copy, table.schema, chunking=False) as writer:
            writer.write_table(table, row_group_size=2 * PAGE_ROWS)
    return out


def print_table(datasets: dict[str, Path], scratch: Path, documents: int) -> None:
    table = Table(box=box.MARKDOWN)
    table.add_column("changed")
    for name in (
        "MB of shards",
        "uploaded again, MB",
        "spared",
        "spared, plain",
    ):
        table.add_column(name, justify="right")
    ways: tuple[tuple[str, Callable[[str], Path]], ...] = (
        ("ours", lambda what: datasets[what]),
        ("plain", lambda what: plain(datasets[what], scratch / "plain" / what.replace(" ", "-"))),
    )
    before, *changed = datasets
    for number, what in enumerate(changed):
        shares = []
        for name, folder in ways:
            store = scratch / "store" / f"{name}-{number}"
            total, new = pushed_again(folder(before), folder(what), store)
            shares.append((total, new))
        (total, new), (plain_total, plain_new) = shares
        table.add_row(
            what,
            f"{total / 1e6:.1f}",
            f"{new / 1e6:.1f}",
            f"{1 - new / total:.0%}",
            f"{1 - plain_new / plain_total:.0%}",
        )
    console = Console(width=140)
    console.print(f"{documents:,} documents")
    console.print(table)


if __name__ == "__main__":
    main()
