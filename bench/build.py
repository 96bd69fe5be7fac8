"""How fast `lrdata build` is, beside what it could be and what else there is.

    python bench/build.py                     # some ten minutes on two cores
    python bench/build.py --quick             # under a minute, figures worth less
    python bench/build.py --corpus books=/data/books.jsonl --tokenizer ./llama3-8b

On the same corpora in the same run: raw fastokens (the limit: texts in memory to ids in memory),
raw tokenizers, datatrove's tokenization, and the real command, JSONL on disk to shards on disk;
then the command on a corpus several times as large, and on a single large document. Contestants
take turns, because machines have moods; the median counts. Memory is watched in a first round that
is not timed: watching costs some percent.

Rates leave start-up out (imports, loading the tokenizer), for all alike; the column "with start-up"
is the whole command. Files are in the page cache. tokenizers and datatrove get only the first part
of a corpus, since they are slow. datatrove is in the extra `bench`; or install it in another
environment and name that with --datatrove-python.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from corpora import CACHE, FORMS, Corpus, default_corpora, fetch, one_document, repeat
from report import (
    aims_table,
    disagreements,
    document_table,
    figures,
    scaling_table,
    speed_table,
    stage_table,
)
from rich.console import Console
from runs import Bench, Contestant, Failed, Measured, Run, contestants, ours

from lrdata.errors import LongRecipeError
from lrdata.progress import Task, progress
from lrdata.recipe import BuildRecipe
from lrdata.sizes import Count
from lrdata.tokenizer import Tokenizer

PARTS = ("raw", "tokenizers", "datatrove", "ours", "scaling", "document")
_LIBRARIES = ("fastokens", "tokenizers", "numpy", "pyarrow", "polars")
_FULL = {"mb": 200, "repeat": 3, "tokenizers_mb": 30.0, "datatrove_mb": 8.0, "scale": "1,3,10"}
_DOCUMENT_MB = 300
_QUICK = {"mb": 8, "repeat": 1, "tokenizers_mb": 2.0, "datatrove_mb": 3.0, "scale": "1,3"}


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--corpus", multiple=True, metavar="[NAME=]PATH", help="JSONL with a text field.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A folder.  [default: Llama-3]")
@click.option("--workers", default="1,2", show_default=True, help="Of lrdata build.")
@click.option("--target-len", type=Count(), default="128k", show_default=True)
@click.option("--impact", default=BuildRecipe.impact, show_default=True, help="Of lrdata build.")
@click.option("--only", default=",".join(PARTS), show_default=True, help="Which parts to run.")
@click.option("--scale", help=f"How many times the largest corpus.  [default: {_FULL['scale']}]")
@click.option("--repeat", type=click.IntRange(1), help="Timed rounds.  [default: 3]")
@click.option("--mb", type=int, help="Cap of each default corpus.  [default: 200]")
@click.option("--tokenizers-mb", type=float, help="Cap for tokenizers.  [default: 30]")
@click.option("--datatrove-mb", type=float, help="Cap for datatrove.  [default: 8]")
@click.option("--datatrove-python", help="Interpreter that has datatrove.  [default: this one]")
@click.option("--quick", is_flag=True, help="Small corpora, one round.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write figures.")
def main(
    corpus: tuple[str, ...],
    tokenizer: Path | None,
    workers: str,
    target_len: int,
    impact: str,
    only: str,
    datatrove_python: str | None,
    quick: bool,
    json_file: Path | None,
    **sizes: Any,
) -> None:
    sizes = {name: value or (_QUICK if quick else _FULL)[name] for name, value in sizes.items()}
    parts = set(only.split(","))
    if parts - set(PARTS):
        raise click.BadParameter(f"--only {only}: choose from {','.join(PARTS)}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    python = datatrove_python or sys.executable
    if "datatrove" in parts and not _has_datatrove(python):
        console.print(_NO_DATATROVE)
        parts.discard("datatrove")
    folder = tokenizer or fetch("llama3")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="scratch-") as scratch:
        bench = Bench(
            tokenizer=folder.resolve() / "tokenizer.json",
            eot=_end_of_text(folder),
            target_len=target_len,
            impact=impact,
            workers=tuple(_numbers("--workers", workers)),
            tokenizers_mb=sizes["tokenizers_mb"],
            datatrove_mb=sizes["datatrove_mb"],
            datatrove_python=python,
            scratch=Path(scratch).resolve(),
        )
        machine = _machine(bench)
        console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
        corpora = [_named(given) for given in corpus] or default_corpora(sizes["mb"])
        results = _compare(bench, corpora, parts, sizes["repeat"], console)
        scaling: dict[int, Measured] = {}
        if "scaling" in parts:
            largest = max(corpora, key=lambda corpus: corpus.bytes)
            scaling = _scale(bench, largest, _numbers("--scale", sizes["scale"]))
            console.print(scaling_table(largest, scaling))
        documents: list[Measured] = []
        if "document" in parts and not quick:
            documents = _documents(bench, corpora[0])
            console.print(document_table(documents))
    warnings = [
        line for corpus in corpora for line in disagreements(corpus, results.get(corpus.name, []))
    ]
    for line in warnings:
        console.print(f"[yellow]warning:[/] {line}")
    if json_file:
        found = {"machine": machine, **figures(results, scaling, documents, warnings)}
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _compare(
    bench: Bench, corpora: Sequence[Corpus], parts: set[str], rounds: int, console: Console
) -> dict[str, list[Measured]]:
    """All contestants on each corpus, in turns; a table as soon as a corpus is done."""
    results = {}
    for corpus in corpora:
        line_up = contestants(bench, corpus, parts)
        if not line_up:
            return {}
        with progress(corpus.name, len(line_up) * (rounds + (rounds > 1))) as task:
            results[corpus.name] = _take_turns(line_up, rounds, task)
        console.print(speed_table(corpus, results[corpus.name]))
    if "ours" in parts:
        console.print(stage_table(results))
        console.print(aims_table(results))
    return results


def _take_turns(line_up: Sequence[Contestant], rounds: int, task: Task) -> list[Measured]:
    """A round to watch memory, then the timed ones, A B C A B C; a single round does both."""
    watched = [_run(contestant, task, watched=True) for contestant in line_up]
    timed = [[run] for run in watched] if rounds == 1 else [[] for _ in line_up]
    for _ in range(rounds if rounds > 1 else 0):
        for contestant, runs in zip(line_up, timed, strict=True):
            runs.append(_run(contestant, task, watched=False))
    return [
        Measured(contestant, runs, seen.peak_bytes)
        for contestant, runs, seen in zip(line_up, timed, watched, strict=True)
    ]


def _scale(bench: Bench, corpus: Corpus, scales: Sequence[int]) -> dict[int, Measured]:
    """The command with most workers on the corpus so many times over, once each."""
    found = {}
    with progress("scaling", len(scales)) as task:
        for times in scales:
            larger = repeat(corpus, times, bench.scratch)
            contestant = ours(bench, larger, max(bench.workers))
            run = _run(contestant, task, watched=True)
            found[times] = Measured(contestant, [run], run.peak_bytes)
            larger.path.unlink()
    return found


def _documents(bench: Bench, corpus: Corpus) -> list[Measured]:
    """The command with most workers on one large document, in each form."""
    found = []
    with progress("one document", len(FORMS)) as task:
        for form in FORMS:
            document = one_document(corpus, _DOCUMENT_MB, bench.scratch, form)
            contestant = ours(bench, document, max(bench.workers))
            run = _run(contestant, task, watched=True)
            found.append(Measured(contestant, [run], run.peak_bytes))
            document.path.unlink()
    return found


def _run(contestant: Contestant, task: Task, watched: bool) -> Run:
    try:
        run = contestant.run(watched)
    except Failed as problem:
        name = contestant.corpus.name
        raise click.ClickException(f"{contestant.label} on {name}: {problem}") from None
    task.advance(note=f"{contestant.label}: {run.tokens / run.seconds / 1e6:.2f} Mtok/s")
    return run


# Options


_NO_DATATROVE = (
    "[yellow]datatrove is not here, so it is left out.[/] Install it beside ours with "
    "`pip install -c constraints.txt -e '.\\[bench]'`, or in an environment of its own with "
    "`pip install 'datatrove\\[io,processing]'` and name that: --datatrove-python ENV/bin/python"
)


def _has_datatrove(python: str) -> bool:
    command = [python, "-c", "import datatrove.pipeline.tokens, tokenizers, orjson"]
    try:
        return not subprocess.run(command, capture_output=True).returncode
    except OSError as problem:
        raise click.ClickException(f"--datatrove-python {python}: {problem}") from None


def _end_of_text(folder: Path) -> str:
    if not (folder / "tokenizer.json").is_file():
        raise click.BadParameter(f"--tokenizer {folder}: name a folder with tokenizer.json")
    try:
        tokenizer = Tokenizer.load(str(folder), encoder="tokenizers")
    except LongRecipeError as problem:
        raise click.ClickException(str(problem)) from None
    return tokenizer.decode([tokenizer.eot_id])


def _named(given: str) -> Corpus:
    name, _, path = given.rpartition("=")
    if not Path(path).is_file():
        raise click.BadParameter(f"--corpus {given}: no file {path}")
    return Corpus.open(name or Path(path).stem, Path(path).resolve())


def _numbers(option: str, given: str) -> list[int]:
    try:
        numbers = sorted({int(part) for part in given.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise click.BadParameter(f"{option} {given}: write whole numbers such as 1,2")
    return numbers


def _machine(bench: Bench) -> dict[str, str]:
    """What the figures depend on."""
    facts = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    processor = next((value for name, _, value in facts if name.strip() == "model name"), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor.strip(),
        "cores": f"{len(bench.cores)} of {os.cpu_count()}",
        "memory": f"{memory / 2**30:.0f} GiB",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        "target_len": f"{bench.target_len:,}",
        "impact": bench.impact,
    }


if __name__ == "__main__":
    main()
