"""One run of a contestant on a corpus: started in a fresh process, timed, its memory watched."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpora import Corpus, deal, first
from memory import PeakMemory


class Failed(Exception):
    """A contestant that did not finish, and the last line that it said."""


@dataclass(frozen=True)
class Run:
    """What a run came to. Tokens are those of the texts, without special tokens."""

    seconds: float
    """Of the work alone, without start-up: imports and loading the tokenizer."""
    whole_seconds: float | None
    """With start-up, where that is a fair question."""
    tokens: int
    documents: int
    peak_bytes: int = 0
    """Peak PSS of all its processes; 0 where it was not watched."""
    tokens_of_first: dict[int, int] = field(default_factory=dict)
    """Of the first n documents."""
    stages: dict[str, float] = field(default_factory=dict)
    """CPU seconds by stage; empty where the contestant does not tell."""


@dataclass(frozen=True)
class Contestant:
    """`run(watched)` does it once; `corpus` is what it gets, perhaps the first part of a corpus."""

    name: str
    label: str
    corpus: Corpus
    run: Callable[[bool], Run]
    workers: int | None = None
    """Of `lrdata build`; None for the others."""


@dataclass(frozen=True)
class Measured:
    """A contestant and its timed runs. All figures are of the run with the median seconds."""

    contestant: Contestant
    runs: list[Run]
    peak_bytes: int

    @property
    def run(self) -> Run:
        """With an even number of runs, the faster of the two in the middle."""
        return sorted(self.runs, key=lambda run: run.seconds)[(len(self.runs) - 1) // 2]

    @property
    def rate(self) -> float:
        """Tokens a second, without start-up."""
        return self.run.tokens / self.run.seconds

    @property
    def whole_rate(self) -> float | None:
        """Tokens a second of the whole command."""
        whole = self.run.whole_seconds
        return self.run.tokens / whole if whole else None


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    tokenizer: Path
    """tokenizer.json."""
    eot: str
    target_len: int
    impact: str
    """What scores tokens; `returns`, the default of a build, with its evidence."""
    workers: tuple[int, ...]
    tokenizers_mb: float
    datatrove_mb: float
    datatrove_python: str
    scratch: Path

    @property
    def cores(self) -> set[int]:
        """Each contestant may use as many cores as there are workers at most."""
        return set(sorted(os.sched_getaffinity(0))[: max(self.workers)])


def contestants(bench: Bench, corpus: Corpus, only: set[str]) -> list[Contestant]:
    """Those of `only`: raw, tokenizers, datatrove, ours."""
    cores = len(bench.cores)
    few = first(corpus, bench.tokenizers_mb, bench.scratch)
    fewer = first(corpus, bench.datatrove_mb, bench.scratch)
    job = {
        "tokenizer": str(bench.tokenizer),
        "corpus": str(corpus.path),
        "threads": cores,
        "eot": bench.eot,
        "scratch": str(bench.scratch),
        "firsts": [few.documents, fewer.documents],
    }

    def rival(name: str, label: str, part: Corpus, **changes: str) -> Contestant:
        changed = {"corpus": str(part.path), **changes}
        return Contestant(
            name,
            label,
            part,
            lambda watched: _run_rival(bench, name, {**job, **changed}, watched),
        )

    found = []
    if "raw" in only:
        found.append(rival("fastokens", "fastokens, as it comes", corpus))
        found.append(rival("fastokens_threads", f"fastokens, {cores} callers", corpus))
    if "tokenizers" in only:
        found.append(rival("tokenizers", "tokenizers", few))
    if "datatrove" in only:
        dealt = deal(fewer, cores, bench.scratch / f"{corpus.name}-dealt")
        found.append(rival("datatrove", "datatrove", fewer, corpus=str(dealt)))
    if "ours" in only:
        found += [ours(bench, corpus, workers) for workers in bench.workers]
    return found


def ours(bench: Bench, corpus: Corpus, workers: int) -> Contestant:
    """The real command, JSONL on disk to shards on disk."""
    label = f"lrdata build, {workers} worker" + "s" * (workers > 1)
    return Contestant(
        f"ours_{workers}",
        label,
        corpus,
        lambda watched: _run_ours(bench, corpus, workers, watched),
        workers,
    )


def _run_rival(bench: Bench, name: str, job: dict[str, Any], watched: bool) -> Run:
    python = bench.datatrove_python if name == "datatrove" else sys.executable
    script = str(Path(__file__).parent / "contestants.py")
    environment = {"FASTOKENS_BPE_THREADS": "1"} if name == "fastokens_threads" else {}
    command = [python, "-P", script, name, json.dumps(job)]
    _, peak, output = _start(bench, command, environment, watched)
    told = json.loads(output.splitlines()[-1])
    return Run(
        seconds=told["seconds"],
        whole_seconds=told.get("whole_seconds"),
        tokens=told["tokens"],
        documents=told["documents"],
        peak_bytes=peak,
        tokens_of_first={int(n): t for n, t in told.get("tokens_of_first", {}).items()},
    )


def _run_ours(bench: Bench, corpus: Corpus, workers: int, watched: bool) -> Run:
    with tempfile.TemporaryDirectory(dir=bench.scratch) as scratch:
        profile, out = Path(scratch, "profile.json"), Path(scratch, "shards")
        command = _build_command(bench, corpus, workers, bench.target_len, out)
        whole, peak, _ = _start(bench, [*command, "--profile", str(profile)], {}, watched)
        told = json.loads(profile.read_text())
        ledger = json.loads((out / "manifest.json").read_text())["ledger"]
    return Run(
        seconds=told["build_seconds"],
        whole_seconds=whole,
        tokens=ledger["encoded"],
        documents=ledger["records_built"],
        peak_bytes=peak,
        stages=told["stage_seconds"],
    )


def _build_command(
    bench: Bench, corpus: Corpus, workers: int, target_len: int, out: Path
) -> list[str]:
    options = {
        "--tokenizer": bench.tokenizer.parent,
        "--target-len": target_len,
        "--impact": bench.impact,
        "--workers": workers,
        "--out": out,
    }
    arguments = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "lrdata", "build", str(corpus.path), *arguments]


def _start(
    bench: Bench, command: list[str], environment: dict[str, str], watched: bool
) -> tuple[float, int, str]:
    """Wall seconds, peak PSS in bytes, and what it printed. Raises Failed."""
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        os.sched_setaffinity(process.pid, bench.cores)
        with PeakMemory(process.pid) if watched else nullcontext() as peak:
            output, _ = process.communicate()
        seconds = time.perf_counter() - started
        if process.returncode:
            errors.seek(0)
            said = errors.read().strip().splitlines() or ["nothing"]
            raise Failed(f"exit code {process.returncode}: {said[-1]}")
    return seconds, peak.bytes if peak else 0, output
