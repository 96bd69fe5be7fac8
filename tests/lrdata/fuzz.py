"""Damaged corpora, thousands of them, each built and checked.

    python -m tests.lrdata.fuzz --count 2000 --seed 0
    python -m tests.lrdata.fuzz --only 1234            # one corpus again, with the traceback

A corpus is fixed by its number. Its build must finish with a dataset that `verify` finds whole,
whose rows can be rebuilt from what was readable, and whose counts are those of a second, simple
reader; or raise LongRecipeError with a reason that holds. Anything else, a crash and a hang too, is
a failure, printed with its number. Corpora are built in processes of their own for this.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue
from unittest import mock

import tokenizers

from lrdata.building import build
from lrdata.errors import LongRecipeError
from lrdata.manifest import Manifest
from lrdata.recipe import BuildRecipe
from lrdata.verifying import verify
from tests.conftest import train_tokenizer
from tests.lrdata.build_runs import ROOT
from tests.lrdata.damage import GOOD, Damaged, damaged_corpus
from tests.lrdata.rebuilding import problems_of_rows

SECONDS_A_CORPUS = 60
MEMORY_BYTES = 8 * 1024**3
"""Of addresses, for a process: damage that asks for more than there is must not get it."""

SCHEMES = ("longrecipe", "longrecipe", "pose", "randpos", "source", "full")


def recipe_of(number: int, corpora: list[Path], tokenizer_folder: Path) -> BuildRecipe:
    """The options of a corpus's build: all schemes, joins and cuts have their turn."""
    draw = random.Random(f"recipe {number}")
    target = draw.choice([64, 128, 256])
    return BuildRecipe(
        corpora=tuple(str(path) for path in corpora),
        tokenizer=str(tokenizer_folder / draw.choice(["tiny", "tiny-bos"])),
        target_len=target,
        positions=draw.choice(SCHEMES),
        segment_tokens=draw.choice([8, 30]),
        join=draw.choice(["attend", "mask"]),
        impact=draw.choice(["digits", "digits", "random", "none"]),
        select=draw.choice(["draw", "top"]),
        holdout=draw.choice([0.0, 0.0, 0.2]),
        seed=number,
        unit_bytes=draw.choice([700, 3000, 3000, 10**8, 10**8, 10**8, 10**8, 10**8]),
    )


def check(number: int, folder: Path, tokenizer_folder: Path) -> tuple[str, str]:
    """Build a corpus: ("built" or "refused", how it was damaged). Raises where a promise breaks."""
    corpus = damaged_corpus(number)
    paths = []
    for name, data in corpus.files.items():
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    recipe = recipe_of(number, paths, tokenizer_folder)
    what = f"{corpus.format}, {corpus.damage}"
    try:
        with long_texts_are_short(number):
            manifest = build(recipe, folder / "out", workers=1)
    except LongRecipeError as problem:
        if "\n" in str(problem):
            raise AssertionError(f"more than a line: {problem}") from None
        if not holds(str(problem), corpus, recipe):
            raise AssertionError(f"refused without need: {problem}") from None
        return "refused", what
    check_dataset(folder / "out", corpus, manifest, recipe)
    return "built", what


def holds(reason: str, corpus: Damaged, recipe: BuildRecipe) -> bool:
    """Whether a build may be refused for this: damage, or too little text for one row."""
    enough = GOOD in corpus.files and recipe.unit_bytes >= 12 * recipe.target_len
    too_little = "too few for one window" in reason or "no usable document" in reason
    return corpus.refusable or (too_little and (not enough or recipe.holdout > 0))


@contextmanager
def long_texts_are_short(number: int) -> Iterator[None]:
    """In one corpus of four, texts of some hundred bytes are treated as those of many megabytes."""
    if number % 4:
        yield
        return
    with ExitStack() as patches:
        for module in ("jsonl", "columnar", "long_text"):
            patches.enter_context(mock.patch(f"lrdata.{module}.LONG_BYTES", 300))
        patches.enter_context(mock.patch("lrdata.long_text.PIECE_BYTES", 70))
        yield


def check_dataset(out: Path, corpus: Damaged, manifest: Manifest, recipe: BuildRecipe) -> None:
    ledger = manifest.ledger
    problems = [*verify(out, deep=True), *ledger.problems()]
    assert not problems, f"verify: {problems[:3]}"
    rejected = [
        json.loads(line)
        for path in sorted(out.glob("quarantine/*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert sum(entry["count"] for entry in rejected) == ledger.records_quarantined
    assert {entry["file"] for entry in rejected} <= set(corpus.files)
    library = tokenizers.Tokenizer.from_file(str(Path(recipe.tokenizer, "tokenizer.json")))
    library.encode_special_tokens = True
    problems = problems_of_rows(out, corpus, manifest, library)
    assert not problems, f"rows: {problems[:3]}"
    if corpus.rejected is not None:
        built = len(corpus.texts)
        counts = (ledger.records_built, ledger.records_quarantined, ledger.records_filtered)
        assert counts == (built, corpus.rejected, 0), (
            f"built, rejected, filtered: {counts}, not {(built, corpus.rejected, 0)}"
        )


# Processes that build, and the one that hands out the numbers


def serve(tokenizer_folder: Path) -> None:
    """Numbers from stdin, a line of JSON on stdout for each: outcome, what, problem."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(dir=tokenizer_folder) as folder:
            outcome, what, problem = answer(int(line), Path(folder), tokenizer_folder)
        print(json.dumps([outcome, what, problem]), file=answers, flush=True)


def answer(number: int, folder: Path, tokenizer_folder: Path) -> tuple[str, str, str]:
    try:
        return *check(number, folder, tokenizer_folder), ""
    except (Exception, MemoryError) as problem:
        corpus = damaged_corpus(number)
        where = traceback.extract_tb(problem.__traceback__)[-1]
        line = " ".join(str(problem).split())[:400]
        at = f"{Path(where.filename).name}:{where.lineno}"
        return (
            "failed",
            f"{corpus.format}, {corpus.damage}",
            f"{type(problem).__name__} {at} {line}",
        )


class Server:
    """A process that builds; started again after a crash or a hang."""

    def __init__(self, tokenizer_folder: Path, command: Sequence[str] = ()) -> None:
        itself = (sys.executable, "-m", "tests.lrdata.fuzz", "--serve", str(tokenizer_folder))
        self._command = command or itself
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = open(tokenizer_folder / f"stderr-{id(self)}", "w+b")  # noqa: SIM115

    def ask(self, number: int) -> tuple[str, str, str]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], SECONDS_A_CORPUS)
        line = process.stdout.readline() if ready else b""
        if line:
            outcome, what, problem = json.loads(line)
            return outcome, what, problem
        code = self.close()
        corpus = damaged_corpus(number)
        self._errors.seek(0)
        tail = self._errors.read()[-2000:].decode(errors="replace")
        problem = f"the process died ({code}): {tail}" if ready else "it hangs"
        return "failed", f"{corpus.format}, {corpus.damage}", problem

    def close(self) -> int | None:
        if self._process is None:
            return None
        process, self._process = self._process, None
        if process.poll() is None:
            process.kill()
        process.communicate()
        return process.returncode


def fuzz(numbers: range, workers: int) -> Iterator[tuple[int, str, str, str]]:
    """(number, outcome, what, problem) of each corpus, as they come."""
    todo: Queue[int] = Queue()
    done: Queue[tuple[int, str, str, str]] = Queue()
    for number in numbers:
        todo.put(number)
    memory = Path("/dev/shm")  # thousands of small files, each with fsync
    home = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="longrecipe-fuzz-", dir=home) as name:
        folder = Path(name)
        make_tokenizers(folder)

        def work() -> None:
            server = Server(folder)
            while True:
                try:
                    number = todo.get_nowait()
                except Empty:
                    server.close()
                    return
                done.put((number, *server.ask(number)))

        threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for _ in numbers:
            yield done.get()
        for thread in threads:
            thread.join()


def make_tokenizers(folder: Path) -> None:
    train_tokenizer(folder / "tiny", bos=None)
    train_tokenizer(folder / "tiny-bos", bos="<s>")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build damaged corpora and check what comes out.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first corpus")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--only", type=int, help="build one corpus here; keep it in fuzz-N/")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    if options.only is not None:
        return again(options.only)
    return report(range(options.seed, options.seed + options.count), options.workers)


def again(number: int) -> int:
    folder = Path(f"fuzz-{number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make_tokenizers(folder)
    print(check(number, folder, folder))
    return 0


def report(numbers: range, workers: int) -> int:
    began = time.monotonic()
    outcomes: Counter[str] = Counter()
    table: dict[str, Counter[str]] = {}
    for number, outcome, what, problem in fuzz(numbers, workers):
        outcomes[outcome] += 1
        table.setdefault(what, Counter())[outcome] += 1
        if problem:
            print(f"FAILED {number} ({what}): {problem}", flush=True)
            print(f"    again: python -m tests.lrdata.fuzz --only {number}", flush=True)
    for what, counts in sorted(table.items()):
        print(f"{what:40}" + "".join(f"{counts[name]:6} {name}" for name in sorted(outcomes)))
    seconds = time.monotonic() - began
    print(
        f"{len(numbers)} corpora in {seconds:.0f} s ({len(numbers) / seconds:.0f} a second): "
        + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    )
    return 1 if outcomes["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
