"""Does it extend the window, and at what price? A tiny model, every method, equal conditions.

    python bench/proof --out /tmp/proof            # 90 minutes on two cores; resumes
    python bench/proof --out /tmp/smoke --smoke    # shows in two minutes that it runs

The protocol is bench/proof/README.md. Everything that is found is a JSON file in --out; the same
command goes on where it was stopped, and at the end prints the tables and writes OUT/results.json
and the figures.
"""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from cells import Cell, results
from methods import BUDGETS, CHOSEN, FULL, METHODS, RATES, TARGET, Budget, Method
from tables import show
from work import Seed, Sizes, Training, finish, prepare, train

from lrdata.atomic import write_json

SMOKE = Sizes(records=60, lexicon_tokens=8192, samples=1, windows=2, base_steps=2)
TUNING_SEED = 100


@dataclass(frozen=True)
class Proof:
    """What is run, and where."""

    out: Path
    seeds: tuple[Seed, ...]
    tuning: Seed
    methods: tuple[Method, ...]
    budgets: tuple[Budget, ...]
    rates: tuple[float, ...]
    workers: int

    def run(self) -> dict[str, Any]:
        seeds = [*self.seeds, self.tuning]
        prepared = self._found(
            "base models",
            {seed: Cell(f"base/{seed.number}", prepare, (seed, self.methods)) for seed in seeds},
        )
        rates = self._rates()
        trained = self._found(
            "methods",
            {
                (budget, method, seed): self._training(
                    seed, method, budget, rates[method], keep=method == CHOSEN
                )
                for budget in self.budgets
                for method in self.methods
                for seed in self.seeds
            },
        )
        budget = self.budgets[0]
        finished = self._found(
            "anneal and merge",
            {
                seed: Cell(
                    f"finish/{seed.number}",
                    finish,
                    (Training(seed, CHOSEN, budget, rates[CHOSEN]),),
                )
                for seed in self.seeds
            },
        )
        return {
            "settings": {"rates": self.rates, **asdict(self.tuning.sizes)},
            "base": {seed.number: prepared[seed] for seed in self.seeds},
            "rates": {method.name: rate for method, rate in rates.items()},
            "trained": _nested(
                {(b.name, m.name, s.number): found for (b, m, s), found in trained.items()}
            ),
            "finished": {seed.number: found for seed, found in finished.items()},
        }

    def _rates(self) -> dict[Method, float]:
        """For each method the learning rate that retrieves most at the target length."""
        searched = self._found(
            "learning rates",
            {
                (method, rate): self._training(self.tuning, method, self.budgets[0], rate)
                for method in self.methods
                for rate in self.rates
            },
        )

        def retrieved(key: tuple[Method, float]) -> float:
            return float(searched[key]["measured"][f"retrieval {TARGET}"])

        return dict(sorted(searched, key=retrieved))  # the last of a method stays: its best

    def _training(
        self, seed: Seed, method: Method, budget: Budget, rate: float, keep: bool = False
    ) -> Cell:
        name = f"{budget.name}/{method.key}/seed-{seed.number}-rate-{rate:g}"
        return Cell(name, train, (Training(seed, method, budget, rate), keep))

    def _found(self, what: str, cells: dict[Any, Cell]) -> dict[Any, dict[str, Any]]:
        done = results(what, list(cells.values()), self.out, self.workers)
        return dict(zip(cells, done, strict=True))


def _nested(flat: dict[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """{(a, b): x} as {a: {b: x}}."""
    nested: dict[Any, Any] = {}
    for (*outer, last), value in flat.items():
        place = nested
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--seeds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one a core]")
@click.option("--smoke", is_flag=True, help="Two seeds and a few steps: figures mean nothing.")
def main(out: Path, seeds: int, workers: int | None, smoke: bool) -> None:
    sizes = SMOKE if smoke else Sizes()
    proof = Proof(
        out=out,
        seeds=tuple(Seed(out, number, sizes) for number in range(2 if smoke else seeds)),
        tuning=Seed(out, TUNING_SEED, sizes),
        methods=(FULL, *METHODS[-3:]) if smoke else METHODS,
        budgets=tuple(replace(budget, steps=1) for budget in BUDGETS) if smoke else BUDGETS,
        rates=RATES[:1] if smoke else RATES,
        workers=workers or os.cpu_count() or 1,
    )
    found = proof.run()
    write_json(out / "results.json", found)
    show(found, out)


if __name__ == "__main__":
    main()
