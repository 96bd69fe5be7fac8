"""The tables and figures of the small proof, from OUT/results.json alone.

python bench/proof/tables.py /tmp/proof
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from intervals import difference, over_seeds, share
from methods import FULL, Budget
from small import BUDGETS, CHOSEN, METHODS, TARGET, lengths
from training import MERGE_WEIGHTS

Found = dict[str, Any]
Values = Callable[[str], list[float]]
"""A measure's name -> its values, seed by seed."""

LENGTHS = lengths(TARGET)
_FAR = f"retrieval {TARGET}"


def show(found: Found) -> None:
    """Print the tables as Markdown."""
    for lines in (*(_budget_lines(found, budget) for budget in BUDGETS), _merge_lines(found)):
        print("\n".join(lines), end="\n\n")


def _values(measured: Sequence[Found]) -> Values:
    return lambda measure: [one[measure] for one in measured]


def _budget_lines(found: Found, budget: Budget) -> list[str]:
    trained = found["trained"][budget.name]
    full = _values([one["measured"] for one in trained[FULL.name].values()])
    price = _mean_of(trained[FULL.name], "flops")
    lines = [
        f"### {budget.title.capitalize()}",
        "",
        "| | rate | 256 | 1,024 | **2,048** | less full length | of full length | text 256 "
        "| text 2,048 | cloze | KL | operations | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("base", "new theta"):
        base = _values([one[name] for one in found["base"].values()])
        lines.append(_line(name, "", base, None, "", ""))
    for method in METHODS:
        runs = trained.get(method.name)
        if runs is None:  # a smoke run has some of them
            continue
        values = _values([one["measured"] for one in runs.values()])
        lines.append(
            _line(
                method.name,
                f"{found['rates'][method.name]:g}",
                values,
                None if method == FULL else full,
                f"{_mean_of(runs, 'flops') / price:.3f}",
                f"{_mean_of(runs, 'seconds'):.0f}",
            )
        )
    return lines


def _line(
    name: str, rate: str, values: Values, full: Values | None, flops: str, seconds: str
) -> str:
    parts = [
        name,
        rate,
        *(over_seeds(values(f"retrieval {length}")).text() for length in LENGTHS),
        difference(values(_FAR), full(_FAR)).text(sign=True) if full else "",
        share(values(_FAR), full(_FAR)).text(2) if full else "",
        *(over_seeds(values(f"nats/byte {length}")).text() for length in (LENGTHS[0], TARGET)),
        over_seeds(values("short cloze")).text(),
        over_seeds(values("short kl")).text(),
        flops,
        seconds,
    ]
    return f"| {' | '.join(parts)} |"


def _mean_of(runs: Found, what: str) -> float:
    return over_seeds([one[what] for one in runs.values()]).mean


def _merge_lines(found: Found) -> list[str]:
    finished = list(found["finished"].values())
    base = _values([one["base"] for one in found["base"].values()])
    theta = _values([one["new theta"] for one in found["base"].values()])
    extended = [one["measured"] for one in found["trained"][BUDGETS[0].name][CHOSEN.name].values()]
    steps: list[tuple[str, Values]] = [
        ("base", base),
        ("base, new theta (weight 0)", theta),
        *(
            (f"merged, weight {weight:g}", _values([one[f"merged {weight:g}"] for one in finished]))
            for weight in MERGE_WEIGHTS
        ),
        ("annealed (weight 1)", _values([one["annealed"] for one in finished])),
        ("extended, before annealing", _values(extended)),
    ]
    lines = [
        f"### Anneal and merge: {CHOSEN.name}, {BUDGETS[0].title}",
        "",
        "| | 256 | 1,024 | 2,048 | 256, of the base's | cloze, of the base's "
        "| nats/byte, of the base's | text 2,048 | KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, values in steps:
        parts = [
            name,
            *(over_seeds(values(f"retrieval {length}")).text() for length in LENGTHS),
            *(
                share(values(measure), base(measure)).text()
                for measure in (f"retrieval {LENGTHS[0]}", "short cloze", "short nats/byte")
            ),
            over_seeds(values(f"nats/byte {TARGET}")).text(),
            over_seeds(values("short kl")).text(),
        ]
        lines.append(f"| {' | '.join(parts)} |")
    return lines


if __name__ == "__main__":
    show(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
