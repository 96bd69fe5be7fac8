"""The tables of the small proof, from small.json alone.

python bench/proof/tables.py small.json
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from intervals import difference, over_seeds, over_spans, share, share_of_means
from measures import at_depth
from methods import FULL, Budget
from small import BUDGETS, CHOSEN, DEPTHS, TARGET, lengths
from training import MERGE_WEIGHTS

Found = dict[str, Any]
Values = Callable[[str], list[float]]
"""A measure's name -> its values, seed by seed."""

LENGTHS = lengths(TARGET)
_NEAR, _FAR = f"retrieval {LENGTHS[0]}", f"retrieval {TARGET}"
_TEXT_NEAR, _TEXT_FAR = f"nats/byte {LENGTHS[0]}", f"nats/byte {TARGET}"


@dataclass(frozen=True)
class Line:
    """A model in a table: its measures, those of full length, and its runs with full length's."""

    values: Values
    full: Values | None = None
    runs: Found | None = None
    full_runs: Found | None = None
    same_rate: Found | None = None
    """Runs of full length with the rate of these."""
    theta: Values | None = None
    """Of the untrained model with the new theta."""
    lexicon_flops: float = 0.0
    """What its lexicon took, once for all rows that are selected with it."""

    def mean(self, measure: str) -> str:
        return over_seeds(self.values(measure)).text()

    def less_full(self, measure: str) -> str:
        if self.full is None:
            return ""
        return difference(self.values(measure), self.full(measure)).text(sign=True)

    def of_full(self, measure: str) -> str:
        if self.full is None:
            return ""
        return share(self.values(measure), self.full(measure)).text()

    def more_than_untrained(self, measure: str) -> str:
        if self.theta is None:
            return ""
        return difference(self.values(measure), self.theta(measure)).text(sign=True)

    def of_full_at_its_rate(self, measure: str) -> str:
        if self.same_rate is None:
            return ""
        full = [one["measured"][measure] for one in self.same_rate.values()]
        return share(self.values(measure), full).text()

    def over_spans(self) -> str:
        """Its interval over spans of text instead, nearly the same ones for all seeds."""
        if self.same_rate is None or self.runs is None:
            return ""
        return f"± {over_spans(_span_nats(self.runs), _span_nats(self.same_rate)):.3f}"

    def price(self, what: str) -> str:
        if self.runs is None or self.full_runs is None:
            return ""
        return f"{_mean_of(self.runs, what) / _mean_of(self.full_runs, what):.3f}"

    def whole_price(self) -> str:
        """Operations with those of the lexicon, where there is one."""
        if not self.lexicon_flops or self.runs is None or self.full_runs is None:
            return ""
        own = _mean_of(self.runs, "flops") + self.lexicon_flops
        return f"{own / _mean_of(self.full_runs, 'flops'):.3f}"

    def run(self, what: str, form: str) -> str:
        return f"{_mean_of(self.runs, what):{form}}" if self.runs else ""


PAIRS = (
    ("LongRecipe, lexicon", "PoSE"),
    ("LongRecipe, lexicon", "RandPos"),
    ("LongRecipe, lexicon", "PoSE, lexicon"),
    ("LongRecipe, lexicon", "RandPos, lexicon"),
    ("LongRecipe, lexicon", "no gaps, lexicon"),
    ("LongRecipe, lexicon", "LongRecipe, digits"),
    ("LongRecipe, lexicon", "LongRecipe, random"),
    ("LongRecipe, none", "PoSE"),
    ("LongRecipe, none", "LongRecipe, random"),
    ("LongRecipe, lexicon, scale", "LongRecipe, lexicon"),
    ("LongRecipe, evidence, scale", "LongRecipe, evidence"),
    ("PoSE, scale", "PoSE"),
)
"""What the protocol asks about, beside full length."""

RETRIEVAL: dict[str, Callable[[Line], str]] = {
    **{
        f"{length:,}": lambda line, length=length: line.mean(f"retrieval {length}")
        for length in LENGTHS
    },
    "more than untrained": lambda line: line.more_than_untrained(_FAR),
    "less full length": lambda line: line.less_full(_FAR),
    "of full length": lambda line: line.of_full(_FAR),
}
BY_DEPTH: dict[str, Callable[[Line], str]] = {
    f"{depth:g}": lambda line, depth=depth: line.mean(at_depth(TARGET, depth)) for depth in DEPTHS
}
TEXT_AND_PRICE: dict[str, Callable[[Line], str]] = {
    "text 256": lambda line: line.mean(_TEXT_NEAR),
    "text 2,048": lambda line: line.mean(_TEXT_FAR),
    "of full length": lambda line: line.of_full(_TEXT_FAR),
    "of full length at its rate": lambda line: line.of_full_at_its_rate(_TEXT_FAR),
    "over spans": lambda line: line.over_spans(),
    "short text": lambda line: line.mean("short nats/byte"),
    "cloze": lambda line: line.mean("short cloze"),
    "KL": lambda line: line.mean("short kl"),
    "rate": lambda line: line.run("rate", "g"),
    "operations": lambda line: line.price("flops"),
    "with its lexicon": lambda line: line.whole_price(),
    "all pairs": lambda line: line.price("flops_all_pairs"),
}


def show(found: Found) -> None:
    """Print the tables as Markdown."""
    for budget in BUDGETS:
        lines = dict(_lines(found, budget))
        print(f"### {budget.title.capitalize()}\n")
        _print(lines, RETRIEVAL)
        print("By the depth of the code: 0 is the beginning of the text, 1 right before its end.\n")
        _print(lines, BY_DEPTH)
        _print(lines, TEXT_AND_PRICE)
        _print_pairs(found, budget)
    print("\n".join(_merge_lines(found)), end="\n\n")
    _print_price(found)
    _print_search(found)
    _print_text_at_one_rate(found)


def _print_pairs(found: Found, budget: Budget) -> None:
    """Differences between methods, seed by seed."""
    lines = dict(_lines(found, budget))
    print("| | less | rates | retrieval 2,048 | 256 | text 2,048, of its | short text, of its |")
    print("|---|---|---|---|---|---|---|")
    for one, other in PAIRS:
        if one in lines and other in lines:  # a smoke run has some of them
            a, b = lines[one].values, lines[other].values
            parts = [
                one,
                other,
                " and ".join(lines[name].run("rate", "g") for name in (one, other)),
                *(difference(a(what), b(what)).text(sign=True) for what in (_FAR, _NEAR)),
                *(share(a(what), b(what)).text() for what in (_TEXT_FAR, "short nats/byte")),
            ]
            print(f"| {' | '.join(parts)} |")
    print()


def _print_price(found: Found) -> None:
    """Of a row, beside one of full length."""
    full = found["price"][FULL.name]
    print("### The price of a row\n")
    print("| | tokens | operations | with all pairs | seconds |\n|---|---|---|---|---|")
    for name, one in found["price"].items():
        prices = (
            f"{one[what]:.3g} ({one[what] / full[what]:.3f})"
            for what in ("row_flops", "row_flops_all_pairs", "row_seconds")
        )
        print(f"| {name} | {one['row_tokens']:,} | {' | '.join(prices)} |")


def _print_search(found: Found) -> None:
    """Retrieval at the target / text there / short text, on the seed of the search."""
    rates = sorted({float(rate) for tried in found["search"].values() for rate in tried})
    print("\n### The search of learning rates\n")
    print(f"| | {' | '.join(f'{rate:g}' for rate in rates)} |")
    print(f"|---|{'---|' * len(rates)}")
    for name, tried in found["search"].items():
        cells = []
        for rate in (f"{rate:g}" for rate in rates):
            one = tried.get(rate)
            values = [one[what] for what in (_FAR, _TEXT_FAR, "short nats/byte")] if one else []
            taken = "**" if found["rates"][name] == float(rate) else ""
            cells.append(f"{taken}{' / '.join(f'{value:.3f}' for value in values)}{taken}")
        print(f"| {name} | {' | '.join(cells)} |")


def _print_text_at_one_rate(found: Found) -> None:
    """Text of full length's at the same rate, on the seed of the search."""
    full = dict(sorted(found["search"][FULL.name].items(), key=lambda each: float(each[0])))
    print("\nText at 2,048, of full length's at the same rate; one seed.\n")
    print(f"| | {' | '.join(full)} |\n|---|{'---|' * len(full)}")
    for name, tried in found["search"].items():
        shares = (
            f"{tried[rate][_TEXT_FAR] / one[_TEXT_FAR]:.3f}" if rate in tried else ""
            for rate, one in full.items()
        )
        print(f"| {name} | {' | '.join(shares)} |")


def _print(lines: dict[str, Line], columns: dict[str, Callable[[Line], str]]) -> None:
    said = {title: [column(line) for line in lines.values()] for title, column in columns.items()}
    said = {title: cells for title, cells in said.items() if any(cells)}
    print(f"| | {' | '.join(said)} |\n|---|{'---|' * len(said)}")
    for name, *cells in zip(lines, *said.values(), strict=True):
        print(f"| {name} | {' | '.join(cells)} |")
    print()


def _lines(found: Found, budget: Budget) -> Iterator[tuple[str, Line]]:
    theta = _values([one["new theta"] for one in found["base"].values()])
    for name in ("base", "new theta"):
        yield name, Line(_values([one[name] for one in found["base"].values()]))
    trained = found["trained"][budget.name]
    full_runs = trained[FULL.name]
    full = _values([one["measured"] for one in full_runs.values()])
    full_at = {f"{found['rates'][FULL.name]:g}": full_runs}
    if budget == BUDGETS[0]:
        full_at |= found["full_at"]
    for name, runs in trained.items():
        values = _values([one["measured"] for one in runs.values()])
        scoring = list(found.get("scoring_flops", {}).values()) if "lexicon" in name else []
        lexicon = sum(scoring) / len(scoring) if scoring else 0.0
        of_full = name != FULL.name
        yield (
            name,
            Line(
                values,
                full if of_full else None,
                runs,
                full_runs,
                full_at.get(f"{found['rates'][name]:g}") if of_full else None,
                theta,
                lexicon,
            ),
        )


def _values(measured: Sequence[Found]) -> Values:
    return lambda measure: [one[measure] for one in measured]


def _span_nats(runs: Found) -> np.ndarray:
    """float [spans], over all seeds."""
    return np.sum([one["measured"]["spans"]["nats"] for one in runs.values()], axis=0)


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
        "| | 256 | 1,024 | 2,048 | 256, of the base's | nats/byte, of the base's | cloze "
        "| cloze, of the base's | text 2,048 | KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, values in steps:
        parts = [
            name,
            *(over_seeds(values(f"retrieval {length}")).text() for length in LENGTHS),
            *(
                share(values(measure), base(measure)).text()
                for measure in (_NEAR, "short nats/byte")
            ),
            over_seeds(values("short cloze")).text(),
            share_of_means(values("short cloze"), base("short cloze")).text(),
            over_seeds(values(_TEXT_FAR)).text(),
            over_seeds(values("short kl")).text(),
        ]
        lines.append(f"| {' | '.join(parts)} |")
    return lines


if __name__ == "__main__":
    show(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
