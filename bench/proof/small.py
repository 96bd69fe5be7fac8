"""The small proof: a tiny model that retrieves inside 256 tokens, taken to 2,048."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import corpus as texts_of_small
from cells import Cell, Study, code_digest
from corpus import CODES, write_corpus
from measures import read_measures, read_spans
from methods import FULL, Budget, Method, as_published, evidence
from price import price, scoring_flops
from rates import best_rate, beyond
from training import Setting, Training, finish, quiet, train

import lrtrain.demo.base
import lrtrain.demo.corpus
import lrtrain.demo.tokenizer
from lrdata.atomic import write_text
from lrdata.lexicon import make_lexicon, write_lexicon
from lrtrain.demo.base import PHASES, WINDOW, train_base
from lrtrain.evaluation import evaluate
from lrtrain.model import load_config
from lrtrain.scoring import ScoreRecipe, score

TARGET = 2048
_LEXICON = {"impact": "lexicon"}
METHODS = (
    FULL,
    # As published: a piece of the document, other positions.
    *map(as_published, ("RandPos", "PoSE", "CREAM", "EndPrompt")),
    # LongRecipe's positions, with what chooses the sentences.
    Method("LongRecipe, none", {"impact": "none"}),
    Method("LongRecipe, random", {"impact": "random"}),
    Method("LongRecipe, digits", {"impact": "digits"}),
    Method("LongRecipe, evidence", evidence(WINDOW)),
    Method("LongRecipe, lexicon", _LEXICON),
    # The same sentences as the last one, other positions: what is left are the positions.
    Method("RandPos, lexicon", {"positions": "randpos", **_LEXICON}),
    Method("PoSE, lexicon", {"positions": "pose", **_LEXICON}),
    # And none: positions that do not span the window.
    Method("no gaps, lexicon", {"positions": "contiguous", **_LEXICON}),
    # And a smaller softmax scale while training.
    Method("LongRecipe, evidence, scale", evidence(WINDOW), scale="auto"),
    Method("PoSE, scale", {"positions": "pose", "impact": "none"}, scale="auto"),
    Method("LongRecipe, lexicon, scale", _LEXICON, scale="auto"),
)
"""In the order of the tables."""

CHOSEN = METHODS[-1]
"""The one that is annealed and merged; fixed before the runs."""

TEXT_RATES = tuple(
    one for one in METHODS if one.name.startswith(("LongRecipe, evidence", "LongRecipe, lexicon"))
)
"""Methods at whose rates full length is trained too: what text costs is compared at one rate, as
twice the rate learns more of the texts' kind, whatever the method."""

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where codes are hidden: those of `lrtrain eval`."""

BUDGETS = (
    Budget("tokens", "equal tokens", full_rows=3, short_rows=10, steps=120),
    Budget("rows", "equal rows and steps", full_rows=3, short_rows=3, steps=120, first_seed=1000),
)
RATES, MORE_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3), 4
"""Every method is trained with each of them on the tuning seed, with equal tokens; while the best
is the least or the greatest, half or twice of it is tried too, so many times at most."""
SEEDS, TUNING_SEED = tuple(range(10, 15)), 200
"""Others than those of the pilot."""

_TRAINING = {
    "micro_tokens": 8192,
    "anneal_steps": 20,
    "anneal_lr": 3e-4,
    "dtype": "fp32",
    "device": "cpu",
}


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `SMOKE` only shows that it runs."""

    records: int = 1500
    lexicon_tokens: int = 200_000
    samples: int = 8
    windows: int = 32
    base_steps: int | None = None
    """Of each phase of the base model; None: all of them."""


SMOKE = Sizes(records=60, lexicon_tokens=8192, samples=1, windows=2, base_steps=2)


def setting_of(out: Path, seed: int, target: int = TARGET) -> Setting:
    """Base, corpora and rows of a seed, wherever they are made."""
    folder = out / f"seed-{seed}"
    corpus = folder / "corpus"
    return Setting(
        folder=folder,
        base=str(folder / "base"),
        unseen=corpus,
        corpora=(str(corpus / "records.jsonl"), str(corpus / "python.jsonl")),
        target=target,
        seed=seed,
        options=_TRAINING,
        replay=(str(corpus / "pretraining.jsonl"),),
        lexicon=folder / "lexicon.parquet",
    )


def make_base(setting: Setting, sizes: Sizes, sources: str) -> dict[str, Any]:
    """Corpus, tokenizer, base model and lexicon of a seed, anew where the sizes were others, or
    the code that makes them: `sources` is its digest."""
    at, base, lexicon = setting.folder, Path(setting.base), setting.lexicon
    said, asked = at / "sizes.txt", repr((setting.seed, sizes, sources))
    if not said.exists() or said.read_text() != asked:
        shutil.rmtree(at, ignore_errors=True)
        corpus, tokenizer = at / "corpus", at / "tokenizer"
        texts = write_corpus(corpus, tokenizer, setting.seed, WINDOW, sizes.records)
        tokens = train_base(tokenizer, texts, base, setting.seed, _phases(sizes))
        write_text(said, asked)
    else:
        tokens = 0
    assert lexicon is not None, "small settings have one"
    recipe = ScoreRecipe(
        setting.corpora,
        model=f"{base}@target={setting.target}",
        short_context=WINDOW,
        stride=WINDOW,
        tokens=sizes.lexicon_tokens,
        device="cpu",
    )
    scores = score(recipe, at / "scores", say=quiet)
    write_lexicon(lexicon, make_lexicon([scores]))
    flops = scoring_flops(scores, load_config(setting.base), WINDOW, WINDOW)
    return {"tokens": tokens, "scoring_flops": flops}


def make_bases(study: Study, seeds: Sequence[int], sizes: Sizes) -> dict[int, dict[str, Any]]:
    """The base models of seeds, and what else `make_base` makes; anew if the code for it is."""
    modules = (texts_of_small, lrtrain.demo.corpus, lrtrain.demo.tokenizer, lrtrain.demo.base)
    sources = code_digest(*modules)
    cells = {
        seed: Cell(f"base/{seed}", make_base, (setting_of(study.out, seed), sizes, sources))
        for seed in seeds
    }
    return study.results("base models", cells)


def prepare(setting: Setting, methods: Sequence[Method], sizes: Sizes) -> dict[str, Any]:
    """The rows of all methods; measures the base as it is and with its new theta."""
    for method in methods:
        setting.shards(method)
    measure, at = Codes(sizes), setting.folder / f"eval-{setting.target}"
    return {
        "base": measure(setting, setting.base, at / "base"),
        "new theta": measure(setting, f"{setting.base}@target={setting.target}", at / "new-theta"),
    }


def _phases(sizes: Sizes) -> Any:
    if sizes.base_steps is None:
        return PHASES
    steps = sizes.base_steps
    return [replace(phase, steps=steps, copied=None, retrieved=None) for phase in PHASES]


def lengths(target: int) -> tuple[int, ...]:
    """At which a model is measured: the base's window, half the target, the target."""
    return tuple(sorted({WINDOW, target // 2, target}))


@dataclass(frozen=True)
class Codes:
    """Measures retrieval and perplexity by length, and short skills.

    Codes are hidden among other codes; the text is of sources that nobody trained on.
    """

    sizes: Sizes

    def __call__(self, setting: Setting, model: str, out: Path) -> dict[str, Any]:
        text = setting.unseen / "text.jsonl"
        shared: dict[str, Any] = {
            "windows": self.sizes.windows,
            "seed": setting.seed,
            "device": "cpu",
            "plots": False,
            "overwrite": True,
        }
        evaluate(
            [f"model={model}"],
            suites=("needle", "ppl"),
            lengths=lengths(setting.target),
            depths=DEPTHS,
            samples=self.sizes.samples,
            haystack=setting.unseen / "needles.jsonl",
            text=text,
            needle=CODES,
            out=out,
            **shared,
        )
        evaluate(
            [f"base={setting.base}", f"model={model}"],
            suites=("short",),
            lengths=(WINDOW,),
            short_tokens=WINDOW,
            text=text,
            out=out / "short",
            **shared,
        )
        return {**read_measures(out, out / "short"), "spans": read_spans(out, setting.target)}


@dataclass(frozen=True)
class SmallProof:
    """The whole comparison, or a smoke run of a few methods."""

    study: Study
    seeds: tuple[int, ...] = SEEDS
    tuning_seed: int = TUNING_SEED
    methods: tuple[Method, ...] = METHODS
    budgets: tuple[Budget, ...] = BUDGETS
    rates: tuple[float, ...] = RATES
    sizes: Sizes = Sizes()

    @classmethod
    def smoke(cls, study: Study) -> "SmallProof":
        """Two seeds, two methods, a step each."""
        budgets = tuple(replace(budget, steps=1) for budget in BUDGETS)
        return cls(study, (0, 1), 2, (FULL, CHOSEN), budgets, RATES[:1], SMOKE)

    def run(self) -> dict[str, Any]:
        """Everything that the tables are made of."""
        every = (*self.seeds, self.tuning_seed)
        bases = make_bases(self.study, every, self.sizes)
        prepared = self.study.results(
            "rows",
            {
                seed: Cell(f"rows/{seed}", prepare, (self._setting(seed), self.methods, self.sizes))
                for seed in every
            },
        )
        rates = self._rates()
        trained = self.study.results(
            "methods",
            {
                (budget.name, method.name, seed): self.cell(
                    seed, method, budget, rates[method], keep=method == CHOSEN
                )
                for budget in self.budgets
                for method in self.methods
                for seed in self.seeds
            },
        )
        finished = self.study.results("anneal and merge", dict(self._finishing(rates[CHOSEN])))
        full_at = self.study.results("full length at other rates", dict(self._full_at(rates)))
        priced = (self._setting(self.seeds[0]), (FULL, CHOSEN), self.budgets[0])
        prices = self.study.results("price", {None: Cell("price", price, priced)})[None]
        return {
            "base": {seed: prepared[seed] for seed in self.seeds},
            "rates": {method.name: rate for method, rate in rates.items()},
            "search": {
                method.name: {f"{rate:g}": one["measured"] for rate, one in tried.items()}
                for method, tried in self._searched.items()
            },
            "trained": {
                budget.name: {
                    method.name: {
                        seed: trained[budget.name, method.name, seed] for seed in self.seeds
                    }
                    for method in self.methods
                }
                for budget in self.budgets
            },
            "full_at": {
                f"{rate:g}": {seed: full_at[rate, seed] for seed in self.seeds}
                for rate in dict.fromkeys(rate for rate, _ in full_at)
            },
            "finished": finished,
            "price": prices,
            "scoring_flops": {seed: bases[seed]["scoring_flops"] for seed in self.seeds},
        }

    def _rates(self) -> dict[Method, float]:
        """For each method the learning rate that retrieves most at the target length."""
        return {method: best_rate(_retrieved(found)) for method, found in self._searched.items()}

    @cached_property
    def _searched(self) -> dict[Method, dict[float, dict[str, Any]]]:
        """What was found of the tuning seed by every method with every rate that was tried."""
        tried = dict.fromkeys((method, rate) for method in self.methods for rate in self.rates)
        for _ in range(MORE_RATES + 1):
            found = self._search(list(tried))
            for method, rates in found.items():
                more = beyond(_retrieved(rates)) if len(self.rates) > 1 else None
                if more is not None:
                    tried[method, more] = None
        return found

    def _search(
        self, tried: Sequence[tuple[Method, float]]
    ) -> dict[Method, dict[float, dict[str, Any]]]:
        found = self.study.results(
            "learning rates",
            {
                (method, rate): self.cell(self.tuning_seed, method, self.budgets[0], rate)
                for method, rate in tried
            },
        )
        by_method: dict[Method, dict[float, dict[str, Any]]] = {}
        for (method, rate), one in found.items():
            by_method.setdefault(method, {})[rate] = one
        return by_method

    def cell(
        self, seed: int, method: Method, budget: Budget, rate: float, keep: bool = False
    ) -> Cell:
        """One training; the same one wherever it is asked for."""
        training = Training(self._setting(seed), method, budget, rate)
        name = f"{budget.name}/{method.key}/seed-{seed}-rate-{rate:g}"
        return Cell(name, train, (training, Codes(self.sizes), keep))

    def _finishing(self, rate: float) -> Any:
        for seed in self.seeds:
            training = Training(self._setting(seed), CHOSEN, self.budgets[0], rate)
            yield seed, Cell(f"finish/{seed}", finish, (training, Codes(self.sizes)))

    def _full_at(self, rates: Mapping[Method, float]) -> Any:
        """Full length at the rates of others, with equal tokens; its own is in the tables."""
        others = {rates[one] for one in TEXT_RATES if one in rates} - {rates[FULL]}
        for rate, seed in product(sorted(others), self.seeds):
            yield (rate, seed), self.cell(seed, FULL, self.budgets[0], rate)

    def _setting(self, seed: int) -> Setting:
        return setting_of(self.study.out, seed).with_base()


def _retrieved(found: Mapping[float, dict[str, Any]]) -> dict[float, float]:
    """Rate -> retrieval at the target, by which a rate is chosen."""
    return {rate: one["measured"][f"retrieval {TARGET}"] for rate, one in found.items()}
