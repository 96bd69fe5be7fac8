"""`python -m lrtrain.demo`: the whole recipe on a CPU, from text to a merged, evaluated model.

It runs the commands a person would run, and shows them.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from lrdata.commands import Commands
from lrdata.draws import Draws
from lrdata.errors import LongRecipeError
from lrtrain.demo.base import WINDOW, train_base
from lrtrain.demo.corpus import (
    ANSWER,
    CUE,
    SYMBOLS,
    ledger,
    python_name,
    read_library,
    short_documents,
    write_jsonl,
)
from lrtrain.demo.summary import print_summary
from lrtrain.demo.tokenizer import train_tokenizer

TARGET = 2048
_LEDGERS, _SHORT = 420, 3000
_LIBRARY_BYTES = 3_000_000
_ROWS_PER_STEP = 8
_STEPS, _ANNEAL_STEPS = 120, 20


@dataclass(frozen=True)
class Folders:
    """Where everything of a demo is."""

    out: Path

    @property
    def corpus(self) -> Path:
        return self.out / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.out / "tokenizer"

    @property
    def base(self) -> Path:
        return self.out / "base"

    @property
    def shards(self) -> Path:
        return self.out / "shards"

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def eval(self) -> Path:
        return self.out / "eval"


@click.group(cls=Commands, invoke_without_command=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(out: Path, seed: int) -> None:
    """Teach a tiny model with a window of 256 tokens to retrieve from 2,048, in minutes."""
    if out.exists() and any(out.iterdir()):
        raise LongRecipeError(f"{out} is not empty; remove it or choose another --out")
    Demo(Folders(out), seed, Console(stderr=True)).show()


class Demo:
    """The steps of the demo, and how long each takes."""

    def __init__(self, folders: Folders, seed: int, console: Console) -> None:
        self.at, self.seed, self.console = folders, seed, console
        self.seconds: dict[str, float] = {}
        self._begun = time.monotonic()

    def show(self) -> None:
        self._title("1. A corpus", f"{python_name()}'s own library, and ledgers of codes")
        texts = self._write_corpus()
        self._timed("corpus and tokenizer")
        self._title(
            "2. A base model", f"with a window of {WINDOW} tokens, inside which it retrieves"
        )
        base_tokens = train_base(self.at.tokenizer, texts, self.at.base, self.seed)
        self._timed("base model")
        self._title("3. Data", f"rows of 30 % that span a window of {TARGET:,} tokens")
        self._build()
        self._timed("lrdata build")
        self._title("4. Training", "extend, anneal on replay, merge with the base")
        self._train()
        self._timed("lrtrain run")
        self._title("5. Proof", "what each model retrieves, and how well it predicts")
        self._evaluate()
        self._timed("lrtrain eval")
        print_summary(self.at.out, TARGET, base_tokens, self.seconds, self.console)

    def _write_corpus(self) -> list[str]:
        """Corpus files, tokenizer; returns the base model's texts."""
        library = read_library(_LIBRARY_BYTES)
        ledgers = [
            ledger(Draws(self.seed, "ledger", number), library.prose) for number in range(_LEDGERS)
        ]
        write_jsonl(self.at.corpus / "python.jsonl", library.sources)
        write_jsonl(self.at.corpus / "ledgers.jsonl", ledgers)
        write_jsonl(self.at.corpus / "heldout.jsonl", library.heldout)
        replay = short_documents(Draws(self.seed, "replay"), library, _SHORT)
        write_jsonl(self.at.corpus / "pretraining.jsonl", replay)
        sample = [*library.sources[::4], *library.prose, *ledgers[:20]]
        train_tokenizer(sample, self.at.tokenizer, WINDOW)
        return [*library.sources, *library.prose]

    def _build(self) -> None:
        at = self.at
        self._command(
            "lrdata",
            "build",
            at.corpus / "ledgers.jsonl",
            at.corpus / "python.jsonl",
            *("--tokenizer", at.base, "--target-len", TARGET, "--holdout", "2%"),
            *("--replay", at.corpus / "pretraining.jsonl", "--replay-ratio", "15%"),
            *("--seed", self.seed, "--out", at.shards),
        )
        self._command("lrdata", "inspect", at.shards, "--row", 1, "--tokenizer", at.base)

    def _train(self) -> None:
        self._command(
            "lrtrain",
            "run",
            self.at.shards,
            *("--model", self.at.base, "--out", self.at.run, "--dtype", "fp32"),
            *("--steps", _STEPS, "--rows-per-step", _ROWS_PER_STEP, "--micro-tokens", 8192),
            *("--lr", 2e-3, "--anneal-steps", _ANNEAL_STEPS, "--anneal-lr", 3e-4),
            *("--holdout-every", 40, "--device", "cpu", "--seed", self.seed),
        )

    def _evaluate(self) -> None:
        at = self.at
        symbols = ",".join(SYMBOLS)
        self._command(
            "lrtrain",
            "eval",
            *(f"base={at.base}", f"new theta={at.base}@target={TARGET}"),
            *(f"extended={at.run / 'extend'}", f"annealed={at.run / 'anneal'}"),
            f"merged={at.run / 'merged'}",
            *("--suite", "needle,ppl", "--lengths", f"{WINDOW},512,1k,2k"),
            *("--samples", 8, "--windows", 16),
            *("--haystack", at.corpus / "heldout.jsonl", "--text", at.corpus / "heldout.jsonl"),
            *("--needle", "Code:{name}{value}.", "--question", "Code:{name}"),
            *("--answer", "{value}", "--names", symbols, "--name-length", CUE),
            *("--values", symbols, "--value-length", ANSWER),
            *("--device", "cpu", "--seed", self.seed, "--out", at.eval),
        )

    def _command(self, program: str, *arguments: object) -> None:
        """Run one of our commands with this Python; the demo stops where it stops."""
        words = [str(argument) for argument in arguments]
        shown = " ".join(_quoted(word) for word in words)
        self.console.print(f"$ {program} {shown}", style="cyan", markup=False, highlight=False)
        done = subprocess.run([sys.executable, "-m", program, *words], check=False)
        if done.returncode:
            raise LongRecipeError(f"{program} {words[0]} stopped with exit code {done.returncode}")

    def _title(self, title: str, text: str) -> None:
        self.console.print(f"\n[bold]{title}[/]: {text}")

    def _timed(self, what: str) -> None:
        now = time.monotonic()
        self.seconds[what] = round(now - self._begun, 1)
        self._begun = now


def _quoted(word: str) -> str:
    if len(word) > 40 and "," in word:
        return '" a, b, ..., 9"'
    return f'"{word}"' if any(mark in word for mark in " {}") else word


if __name__ == "__main__":
    main()
