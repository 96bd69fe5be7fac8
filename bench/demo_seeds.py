"""What the demo shows, over several seeds: `python bench/demo_seeds.py --seeds 0,1 --out /tmp/x`.

For each seed it runs the whole demo in a fresh folder and prints, from its eval.json, retrieval at
the target window beside the untrained model with the new theta, retrieval at the base's own length
beside the base, and the seconds that the demo took.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def shares(folder: Path) -> dict[tuple[str, int], float]:
    """(model, length) -> share of symbols retrieved."""
    found: dict[str, Any] = json.loads((folder / "eval" / "eval.json").read_text())
    return {(c["model"], c["length"]): c["share"][0] for c in found["needle"]["by_length"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    print("| seed | model | at 2,048 | over new theta | at 256 | share of the base's | seconds |")
    print("|---|---|---|---|---|---|---|")
    for seed in given.seeds.split(","):
        folder = given.out / f"seed-{seed}"
        started = time.monotonic()
        command = [sys.executable, "-m", "lrtrain.demo", "--out", str(folder), "--seed", seed]
        subprocess.run(command, check=True, stdout=sys.stderr)  # what it says is no table
        seconds = time.monotonic() - started
        found = shares(folder)
        short, long = min(n for _, n in found), max(n for _, n in found)
        for model in ("extended", "annealed", "merged"):
            print(
                f"| {seed} | {model} | {found[model, long]:.3f} "
                f"| {found[model, long] - found['new theta', long]:+.3f} "
                f"| {found[model, short]:.3f} "
                f"| {found[model, short] / found['base', short]:.3f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
