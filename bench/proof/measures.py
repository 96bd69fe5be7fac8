"""What is read off a model's eval.json: measures by name, one number each."""

import json
from pathlib import Path
from typing import Any


def read_measures(*folders: Path) -> dict[str, float]:
    """The measures of the model called `model` in the reports of these folders."""
    measures: dict[str, float] = {}
    for folder in folders:
        report = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
        for found in report["needle"]["by_length"]:
            measures[f"retrieval {found['length']}"] = found["share"][0]
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


def values_of(found: dict[str, Any], target: int, method: str, measure: str) -> list[float]:
    """What the scale study found of a method, seed by seed."""
    return [
        one["measured"][measure]
        for one in found["trained"]
        if (one["target"], one["method"]) == (target, method)
    ]
