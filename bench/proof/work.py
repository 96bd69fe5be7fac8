"""The work of the small proof: a seed's inputs, and cells. A cell trains one model and measures it.

    OUT/seed-0/corpus, tokenizer, base, scores, lexicon.parquet    inputs of a seed
    OUT/seed-0/shards/KEY                                          rows of a method
    OUT/seed-0/runs/CELL                                           models, for annealing and merging

Everything goes through the functions behind the commands `lrdata build`, `lrtrain score`,
`lrtrain run` and `lrtrain eval`, in one process with one thread. A folder that is there is done.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corpus import CODES, write_corpus
from methods import (
    ANNEAL_RATE,
    ANNEAL_STEPS,
    LENGTHS,
    MERGE_WEIGHTS,
    ROW_SHARE,
    TARGET,
    Budget,
    Method,
)

from lrdata.build import build
from lrdata.lexicon import make_lexicon, write_lexicon
from lrdata.recipe import BuildRecipe
from lrdata.shards import open_shards
from lrtrain.demo.base import PHASES, WINDOW, Phase, train_base
from lrtrain.evaluate import evaluate
from lrtrain.flops import training_flops
from lrtrain.merge import merge_models
from lrtrain.metrics import METRICS, read_metrics
from lrtrain.model import load_config
from lrtrain.recipe import TrainRecipe
from lrtrain.score import ScoreRecipe, score
from lrtrain.stages import run


@dataclass(frozen=True)
class Sizes:
    """How much of everything: `small` is the proof, `smoke` only shows that it runs."""

    records: int = 1500
    lexicon_tokens: int = 200_000
    samples: int = 8
    windows: int = 16
    base_steps: int | None = None
    """Of each phase of the base model; None: all of them."""


@dataclass(frozen=True)
class Seed:
    """The folders of one seed."""

    out: Path = field(repr=False)
    number: int
    sizes: Sizes

    @property
    def folder(self) -> Path:
        return self.out / f"seed-{self.number}"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def lexicon(self) -> Path:
        return self.folder / "lexicon.parquet"

    def corpus(self, *names: str) -> tuple[str, ...]:
        return tuple(str(self.folder / "corpus" / f"{name}.jsonl") for name in names)


def prepare(seed: Seed, methods: Sequence[Method]) -> dict[str, Any]:
    """Corpus, tokenizer, base model, lexicon and all rows of a seed; measures the base as it is and
    with its new theta.
    """
    at = seed.folder
    if not seed.base.exists():
        shutil.rmtree(at, ignore_errors=True)
        texts = write_corpus(
            at / "corpus", at / "tokenizer", seed.number, WINDOW, seed.sizes.records
        )
        train_base(at / "tokenizer", texts, at / "base", seed.number, _phases(seed.sizes))
    if not seed.lexicon.exists():
        recipe = ScoreRecipe(
            seed.corpus("records", "python"),
            model=f"{seed.base}@target={TARGET}",
            short_context=WINDOW,
            tokens=seed.sizes.lexicon_tokens,
            device="cpu",
        )
        scores = score(recipe, at / "scores", say=_quiet)
        write_lexicon(seed.lexicon, make_lexicon([scores]))
    for method in methods:
        shards_of(seed, method)
    return {
        "base": measure(seed, str(seed.base), at / "eval-base"),
        "new theta": measure(seed, f"{seed.base}@target={TARGET}", at / "eval-theta"),
    }


def _phases(sizes: Sizes) -> Sequence[Phase]:
    if sizes.base_steps is None:
        return PHASES
    return [Phase(phase.length, sizes.base_steps, phase.drills, phase.planted) for phase in PHASES]


def shards_of(seed: Seed, method: Method) -> Path:
    """The rows of a method, built where they are not there yet; replay rows are in all of them."""
    out = seed.folder / "shards" / method.rows_key
    options = dict(method.build)
    if options.get("impact") == "lexicon":
        options["impact"] = f"lexicon:{seed.lexicon}"
    recipe = BuildRecipe(
        corpora=seed.corpus("records", "python"),
        tokenizer=str(seed.base),
        target_len=TARGET,
        train_len=0 if method.is_full else int(ROW_SHARE * TARGET) // 16 * 16,
        replay=seed.corpus("pretraining"),
        replay_ratio=0.15,
        seed=seed.number,
        **options,
    )
    build(recipe, out, workers=1)
    return out


@dataclass(frozen=True)
class Training:
    """One training of one method."""

    seed: Seed
    method: Method
    budget: Budget
    rate: float

    @property
    def out(self) -> Path:
        name = f"{self.budget.name}-{self.method.key}-{self.rate:g}"
        return self.seed.folder / "runs" / name

    def run(self, stage: str) -> Path:
        """The model folder of a stage."""
        shards = open_shards(shards_of(self.seed, self.method))
        recipe = TrainRecipe(
            stages=(stage,),
            rows_per_step=self.budget.rows(self.method),
            micro_tokens=8192,
            steps=self.budget.steps,
            lr=self.rate,
            anneal_steps=ANNEAL_STEPS,
            anneal_lr=ANNEAL_RATE,
            dtype="fp32",
            attention_scale=self.method.attention_scale(shards.train_len),
            device="cpu",
            checkpoint_every=0,
            seed=self.seed.number + self.budget.first_seed,
        )
        return run(shards.folder, str(self.seed.base), self.out, recipe, say=_quiet)[0]


def train(training: Training, keep: bool) -> dict[str, Any]:
    """Extend the base of a seed by a method, and measure what comes out."""
    seed, budget, method = training.seed, training.budget, training.method
    shutil.rmtree(training.out, ignore_errors=True)
    extended = training.run("extend")
    steps = read_metrics(training.out / METRICS)
    row = open_shards(shards_of(seed, method)).train_len
    config = load_config(str(seed.base))
    rows = budget.rows(method) * budget.steps
    found = {
        "rate": training.rate,
        "rows": rows,
        "row_tokens": row,
        "seconds": sum(step["seconds"] for step in steps),
        "flops": rows * training_flops(config, [row]),
        "flops_all_pairs": rows * training_flops(config, [row], causal=False),
        "loss": steps[-1]["loss"],
        "measured": measure(seed, str(extended), training.out / "eval"),
    }
    if not keep:
        shutil.rmtree(training.out)
    return found


def finish(training: Training) -> dict[str, Any]:
    """Anneal what `train` kept, merge it with the base at every weight, and measure all of them."""
    seed = training.seed
    annealed = training.run("anneal")
    found = {"annealed": measure(seed, str(annealed), training.out / "eval-anneal")}
    for weight in MERGE_WEIGHTS:
        merged = training.out / f"merged-{weight:g}"
        shutil.rmtree(merged, ignore_errors=True)
        merge_models(str(seed.base), str(annealed), merged, weight)
        found[f"merged {weight:g}"] = measure(seed, str(merged), merged / "eval")
    return found


def measure(seed: Seed, model: str, out: Path) -> dict[str, Any]:
    """Retrieval and perplexity by length, and short skills, with what each sample gave.

    Codes are hidden among other codes; the text is of sources that nobody trained on.
    """
    sizes = seed.sizes
    shared: dict[str, Any] = {"device": "cpu", "plots": False, "windows": sizes.windows}
    text = Path(*seed.corpus("text"))
    evaluate(
        [f"model={model}"],
        suites=("needle", "ppl"),
        lengths=LENGTHS,
        samples=sizes.samples,
        haystack=Path(*seed.corpus("needles")),
        text=text,
        needle=CODES,
        out=out,
        **shared,
    )
    evaluate(
        [f"base={seed.base}", f"model={model}"],
        suites=("short",),
        lengths=LENGTHS[:1],
        short_tokens=LENGTHS[0],
        text=text,
        out=out / "short",
        **shared,
    )
    report = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    short = json.loads((out / "short" / "eval.json").read_text(encoding="utf-8"))
    retrieval = {cell["length"]: cell["share"][0] for cell in report["needle"]["by_length"]}
    perplexity = {
        cell["length"]: cell["nats_per_byte"][0] for cell in report["perplexity"]["cells"]
    }
    skills = next(cell for cell in short["short"]["cells"] if cell["model"] == "model")
    return {
        **{f"retrieval {length}": value for length, value in retrieval.items()},
        **{f"nats/byte {length}": value for length, value in perplexity.items()},
        "short nats/byte": skills["nats_per_byte"][0],
        "short cloze": skills["cloze"][0],
        "short kl": skills["kl"][0],
    }


def _quiet(line: str) -> None:
    """Commands say what they do; here they do it hundreds of times."""
