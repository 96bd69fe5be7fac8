"""What is read off a model's eval.json: measures by name, one number each."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any


def at_depth(length: int, depth: float) -> str:
    """The name of the retrieval of codes at one depth; `retrieval LENGTH` is that of all depths."""
    return f"retrieval {length} at {depth:g}"


def read_measures(*folders: Path) -> dict[str, float]:
    """The measures of the model called `model` in the reports of these folders."""
    measures: dict[str, float] = {}
    for folder in folders:
        report = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        for found in report["needle"]["by_length"]:
            measures[f"retrieval {found['length']}"] = found["share"][0]
        for found in report["needle"]["cells"]:
            measures[at_depth(found["length"], found["depth"])] = fmean(found["share_samples"])
        for found in report.get("ruler", {}).get("by_length", []):
            measures[f"RULER {found['length']}"] = found["score"][0]
        for found in report["perplexity"]["cells"]:
            measures[f"nats/byte {found['length']}"] = found["nats_per_byte"][0]
        for found in report["short"]["cells"]:
            if found["model"] == "model":
                measures["short nats/byte"] = found["nats_per_byte"][0]
                measures["short cloze"] = found["cloze"][0]
                measures["short kl"] = found["kl"][0]
    return measures


def read_spans(folder: Path, length: int) -> dict[str, list[float]]:
    """The text that `nats/byte LENGTH` is the mean of: nats and bytes, span by span."""
    report = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    (cell,) = (one for one in report["perplexity"]["cells"] if one["length"] == length)
    return {"nats": cell["span_nats"], "bytes": cell["span_bytes"]}


def read_samples(*folders: Path) -> dict[str, dict[str, list[float]]]:
    """The samples of these measures: values, and weights that their sum is divided by."""
    samples: dict[str, dict[str, list[float]]] = {}

    def add(measure: str, values: list[float], weights: list[float] | None = None) -> None:
        kept = samples.setdefault(measure, {"values": [], "weights": []})
        kept["values"] += values
        kept["weights"] += weights or [1.0] * len(values)

    for folder in folders:
        report = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        for found in report["needle"]["cells"]:
            add(f"retrieval {found['length']}", found["share_samples"])
        for found in report["ruler"]["cells"]:
            add(f"RULER {found['length']}", found["score_samples"])
        for found in report["perplexity"]["cells"]:
            add(f"nats/byte {found['length']}", found["span_nats"], found["span_bytes"])
        for found in report["short"]["cells"]:
            if found["model"] == "model":
                add("short nats/byte", found["window_nats"], found["window_bytes"])
                add("short cloze", found["window_right"], found["window_words"])
                add("short kl", found["window_kl"], found["window_positions"])
    return samples


def values_of(found: dict[str, Any], target: int, method: str, measure: str) -> list[float]:
    """What the scale study found of a method, seed by seed."""
    return [
        one["measured"][measure]
        for one in found["trained"]
        if (one["target"], one["method"]) == (target, method)
    ]
