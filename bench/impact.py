"""What long context matters for, by a real model, and how much of it selections keep.

    python bench/impact.py --out /tmp/impact

SmolLM2-135M on two kinds of text, each in 25 windows of 8,192 tokens from as many documents:
scores (method lsd), lexicon with its figure, survival of selections; each lexicon is also judged on
the other kind. Then `lrdata build` with digits, a lexicon, returning tokens and evidence, in turns.
It runs the commands that a person would run, prints their results as Markdown, and goes on where it
was stopped: about 50 minutes on two cores, nearly all of it scoring.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from corpora import Corpus, default_corpora, fetch

from lrdata.scores import open_scores

TOKENS, WINDOW, SHORT = 200_000, 8192, 1024
CHECKED = 2
"""Windows whose log-probabilities are compared with transformers' own."""
WAYS = (
    ("random", "draw", False),
    ("digits", "draw", False),
    ("lexicon", "draw", False),
    ("lexicon", "top", False),
    ("returns", "top", False),
    ("random", "draw", True),
    ("lexicon", "top", True),
    ("returns", "top", True),
)


_PARTS = "Which parts. builds alone scores nothing: without a lexicon, unless one is there."


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
@click.option("--out", type=click.Path(path_type=Path), default=Path("/tmp/impact"))
@click.option("--tokens", type=int, default=TOKENS, show_default=True, help="Of each kind of text.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Of the builds.")
@click.option("--corpus-mb", type=int, default=200, show_default=True)
@click.option("--only", default="scores,survival,builds", show_default=True, help=_PARTS)
def main(out: Path, tokens: int, rounds: int, corpus_mb: int, only: str) -> None:
    parts = only.split(",")
    corpora = {corpus.name: corpus for corpus in default_corpora(corpus_mb)[:2]}
    model = fetch("smollm2")
    for name, corpus in corpora.items() if parts != ["builds"] else ():
        size = ("--window", WINDOW, "--short-context", SHORT, "--stride", SHORT)
        source = (corpus.path, "--model", model, "--tokens", tokens)
        _run("lrtrain", "score", *source, *size, "--out", out / name)
        _run("lrdata", "lexicon", out / name, "--out", out / f"{name}.parquet")
    for name in corpora if "survival" in parts else ():
        others = [out / f"{other}.parquet" for other in corpora if other != name]
        lexicons = [word for other in others for word in ("--lexicon", other)]
        _run("lrdata", "survival", out / name, *lexicons, "--out", out / f"survival-{name}")
    for name in corpora if "scores" in parts else ():
        _print_scores(out, name, model)
    for name in corpora if "survival" in parts else ():
        _print_survival(out, name)
    for name, corpus in corpora.items() if "builds" in parts else ():
        _print_builds(out, corpus, model, name, rounds)


def _run(program: str, *arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print("$", program, *words, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", program, *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _print_scores(out: Path, name: str, model: Path) -> None:
    scores = open_scores(out / name)
    manifest = scores.manifest
    keys = sum(int(window.keys.sum()) for window in scores)
    print(
        f"\n### {name}\n\n{manifest.tokens:,} tokens of {manifest.documents} documents, "
        f"{manifest.measured:,} measured, {keys:,} key tokens ({keys / manifest.measured:.2%}). "
        f"Largest difference of a log-probability from a plain forward of transformers, over "
        f"{CHECKED} windows: {_difference(scores, model):.1e}.\n"
    )
    tables = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    print(
        "| class | share of tokens | at the top | key tokens | mean gain |\n|---|---|---|---|---|"
    )
    for row in tables["classes"]:
        print(
            f"| {row['class']} | {row['share']:.1%} | {row['top_share']:.3f} | "
            f"{row['key_share']:.2%} | {row['mean_gain']:+.3f} |"
        )


def _difference(scores: Any, model: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    worst = 0.0
    for index in range(CHECKED):
        window = scores.read(index)
        ids = torch.from_numpy(window.ids.astype(np.int64))[None]
        with torch.inference_mode():
            logits = plain(input_ids=ids).logits[0, :-1]
            own = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()
        worst = max(worst, float(np.abs(own - window.log_prob[1:]).max()))
    return worst


def _print_survival(out: Path, name: str) -> None:
    outcomes = json.loads((out / f"survival-{name}" / "survival.json").read_text(encoding="utf-8"))
    print(f"\n### {name}: what survives at 30 %\n")
    print("| impact, select | key tokens | with their evidence | copied tokens with theirs |")
    print("|---|---|---|---|")
    for outcome in outcomes:
        if outcome["budget"] == 0.3:
            cells = " | ".join(_cell(outcome, count) for count in ("keys", "pairs", "copies"))
            print(f"| {_name(outcome)} | {cells} |")
    print(f"\n{name}, by budget: key tokens kept / kept with their evidence\n")
    budgets = sorted({outcome["budget"] for outcome in outcomes})
    print("| impact, select |" + "".join(f" {budget:.0%} |" for budget in budgets))
    print("|---|" + "---|" * len(budgets))
    for way in WAYS:
        found = [o for o in outcomes if (o["impact"], o["select"], o["evidence"]) == way]
        cells = [f"{_value(o['keys'])} / {_value(o['pairs'])}" for o in found]
        if any(o["keys"] for o in found):
            print(f"| {_name(found[0])} | {' | '.join(cells)} |")


def _name(outcome: dict[str, Any]) -> str:
    return f"{outcome['impact']}, {outcome['select']}" + (", evidence" * outcome["evidence"])


def _cell(outcome: dict[str, Any], count: str) -> str:
    found, over = outcome[count], outcome[f"{count}_over_random"]
    if found is None:
        return ""
    value, low, high = found
    times = f", x {over[0]:.2f} ({over[1]:.2f}-{over[2]:.2f})" if over else ""
    return f"{value:.3f} ({low:.3f}-{high:.3f}){times}"


def _value(found: list[float] | None) -> str:
    return f"{found[0]:.2f}" if found else ""


def _print_builds(out: Path, corpus: Corpus, model: Path, name: str, rounds: int) -> None:
    """Scorers in turns, each build in a fresh process; a pair is two of one round."""
    lexicon = out / f"{name}.parquet"  # that the part `scores` leaves
    impacts: dict[str, tuple[str, ...]] = {
        "digits": ("digits",),
        **({"lexicon": (f"lexicon:{lexicon}",)} if lexicon.exists() else {}),
        "returns": ("returns", "--evidence", "0"),
        "returns, evidence": ("returns",),
    }
    seconds: dict[str, list[float]] = {impact: [] for impact in impacts}
    for _ in range(rounds + 1):  # the first round warms up
        for impact, words in impacts.items():
            profile = out / "profile.json"
            _run(
                *("lrdata", "build", corpus.path, "--tokenizer", model, "--target-len", "128k"),
                *("--impact", *words, "--out", out / "shards", "--overwrite"),
                *("--profile", profile),
            )
            seconds[impact].append(json.loads(profile.read_text())["build_seconds"])
    digits = seconds.pop("digits")[1:]
    print(
        f"\n{name}: `lrdata build` with digits takes {statistics.median(digits):.2f} s; times that:"
    )
    for impact, found in seconds.items():
        ratios = [other / one for one, other in zip(digits, found[1:], strict=True)]
        print(
            f"- {impact}: {statistics.median(ratios):.3f} (median of {rounds} pairs, "
            f"{min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
