"""The tables of the real proof, from its JSON alone, or from the cells that are there so far.

python bench/proof/real_tables.py real-16k.json
"""

import json
import re
import sys
from collections.abc import Sequence
from itertools import chain
from operator import gt
from pathlib import Path
from typing import Any

from real import PLANS

from lrdata.errors import LongRecipeError
from lrtrain.evaluation.report.statistics import Samples, difference, share

_SCALED, _PLAIN, _NO_GAPS, _POSE, _RANDPOS, _FULL = (method.name for method in PLANS["16k"].methods)
PAIRS = (
    (_SCALED, _PLAIN),
    *((one, _NO_GAPS) for one in (_SCALED, _PLAIN, _POSE, _RANDPOS)),
    *((one, _FULL) for one in (_SCALED, _PLAIN, _NO_GAPS, _POSE, _RANDPOS)),
    *((one, other) for one in (_SCALED, _PLAIN) for other in (_POSE, _RANDPOS)),
    *(
        (trained, untrained)
        for untrained in ("new theta", "base")
        for trained in (_SCALED, _PLAIN, _NO_GAPS, _POSE, _RANDPOS, _FULL)
    ),
    ("new theta", "base"),
)
"""Models that are compared sample by sample."""

_DIGESTS = re.compile(r"(?:fingerprint|texts|rows_by)='(\w+)'")
"""Of the base, the texts and the code that makes rows, as a cell's `asked` names them."""


def so_far(cells: dict[str, Any]) -> dict[str, Any]:
    """What `run` would find, from what `Study.gather` wrote: TARGET/NAME-SEED -> what is kept.

    Raises LongRecipeError where cells are of other texts than each other, as machines have others.
    """
    if len({tuple(_DIGESTS.findall(cell["asked"])) for cell in cells.values()}) > 1:
        raise LongRecipeError(
            "these cells are of several bases, texts or ways to make rows: remove the older ones"
        )
    target = int(next(iter(cells)).partition("/")[0])
    plan = next(plan for plan in PLANS.values() if plan.target == target)
    found: dict[str, Any] = {"target": target, "budget": plan.budget.title}
    for kind, keys in (
        ("base", {"base": "base", "new-theta": "new theta"}),
        ("trained", {method.key: method.name for method in plan.methods}),
    ):
        found[kind] = [
            {"method": name, "seed": seed, **({"measured": kept} if kind == "base" else kept)}
            for key, name in keys.items()
            for seed in plan.seeds
            if (kept := cells.get(f"{target}/{key}-{seed}", {}).get("found"))
        ]
    return found


def show(found: dict[str, Any]) -> None:
    """Tables: every measure of every model, means over seeds; and what differs between models."""
    models = [_with_whole_keys(one) for one in (*found["base"], *found["trained"])]
    _show_measures(found, models)
    _show_pairs(models)


def _with_whole_keys(model: dict[str, Any]) -> dict[str, Any]:
    """With the share of keys that are right to the last digit, behind that of digits.

    A digit is asked for after the right ones before it, so most of a key may be right by its start.
    """
    numbers, samples = dict[str, Any](), dict[str, Any]()
    measured = model["measured"]
    for name in _numbers(measured):
        numbers[name] = measured[name]
        if (kept := measured["samples"].get(name)) is None:
            continue
        samples[name] = kept
        if name.startswith("retrieval"):
            whole = name.replace("retrieval", "whole keys")
            right = [float(share == 1) for share in kept["values"]]
            samples[whole] = {"values": right, "weights": kept["weights"]}
            numbers[whole] = sum(right) / len(right)
    return {**model, "measured": {**numbers, "samples": samples}}


def _show_measures(found: dict[str, Any], models: list[dict[str, Any]]) -> None:
    methods = dict.fromkeys(one["method"] for one in found["trained"])
    columns = {
        name: _mean([one["measured"] for one in models if one["method"] == name])
        for name in dict.fromkeys(one["method"] for one in models)
    }
    print(f"### To {found['target']:,} tokens, {found['budget']}\n")
    print(f"| | {' | '.join(columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    for measure in _numbers(models[0]["measured"]):
        values = [f"{values[measure]:.3f}" for values in columns.values()]
        print(f"| {measure} | {' | '.join(values)} |")
    for what in ("row_tokens", "rows", "flops", "flops_all_pairs", "seconds"):
        values = [
            f"{_mean([one for one in found['trained'] if one['method'] == name])[what]:,.6g}"
            for name in methods
        ]
        print(f"| {what} |{' |' * (len(columns) - len(methods))} {' | '.join(values)} |")


def _show_pairs(models: list[dict[str, Any]]) -> None:
    """Differences of what is right, shares of nats, with 95 % bootstrap intervals over samples.

    They tell models apart, not methods: how another run of a method would come out is not in them.
    """
    names = [one["method"] for one in models]
    measures = list(models[0]["measured"]["samples"])
    print(
        "\nDifferences, of nats shares, with 95 % intervals over samples: of these models. How "
        "another training of the same method would come out is not in them.\n"
    )
    print(f"| | less or of | {' | '.join(measures)} |")
    print(f"|---|---|{'---|' * len(measures)}")
    for one, other in PAIRS:
        if {one, other} <= set(names):
            compared = [_compared(models, one, other, measure) for measure in measures]
            print(f"| {one} | {other} | {' | '.join(compared)} |")


def _compared(models: list[dict[str, Any]], one: str, other: str, measure: str) -> str:
    """The same samples of two models: nats as a share, everything else as a difference; of whole
    keys how many only one of them has, too, as a bootstrap of few prompts is sure too soon."""
    pair = [_samples(models, name, measure) for name in (one, other)]
    if "nats/byte" in measure:
        found = share(*pair)
        return "" if found is None else f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"
    found = difference(*pair)
    if found is None:
        return ""
    shown = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    if not measure.startswith("whole keys"):
        return shown
    mine, others = (samples.values for samples in pair)
    won, lost = sum(map(gt, mine, others)), sum(map(gt, others, mine))
    return f"{shown}, {won} won, {lost} lost"


def _samples(models: list[dict[str, Any]], name: str, measure: str) -> Samples:
    """Of all seeds. Spans of text are the same for all of them, and so samples of which there are
    as many as of one seed."""
    kept = [one["measured"]["samples"][measure] for one in models if one["method"] == name]
    parts = ([one[part] for one in kept] for part in ("values", "weights"))
    if measure.startswith("nats/byte"):
        return Samples(*([sum(of_seeds) for of_seeds in zip(*one, strict=True)] for one in parts))
    return Samples(*(list(chain(*one)) for one in parts))


def _mean(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        name: sum(float(one[name]) for one in found) / len(found) for name in _numbers(found[0])
    }


def _numbers(found: dict[str, Any]) -> list[str]:
    return [name for name, value in found.items() if isinstance(value, int | float)]


if __name__ == "__main__":
    read = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        show(read if "trained" in read else so_far(read))
    except LongRecipeError as problem:
        sys.exit(f"error: {problem}")
