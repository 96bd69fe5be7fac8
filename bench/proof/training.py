"""One training of one method: rows, a run, and what is measured of the model that comes out.

    FOLDER/shards/KEY   the rows of a method      FOLDER/runs/NAME   its run, while it is needed

Everything goes through the functions behind the commands `lrdata build`, `lrtrain run` and
`lrtrain merge`. A folder that is there is done.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from cells import code_digest
from methods import Budget, Method

from lrdata import evidence, impact, positions, replay, replay_sample, rows, select, windows
from lrdata.building import build
from lrdata.dataset import open_dataset
from lrdata.impact import digits, lexicon, none, random, returns, scorer
from lrdata.recipe import BuildRecipe
from lrdata.sentences import ends
from lrdata.shards import file_sha256
from lrtrain.flops import training_flops
from lrtrain.merge import merge_models
from lrtrain.metrics import METRICS, read_metrics
from lrtrain.model import load_config, model_fingerprint
from lrtrain.recipe import TrainRecipe
from lrtrain.stages import run

MERGE_WEIGHTS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the trained model; 0 is the base with its new theta, 1 what was annealed."""


_ROWS_BY = code_digest(
    *(windows, ends, impact, scorer, digits, lexicon, none, random, returns, select, evidence),
    *(positions, rows, replay, replay_sample),
)


@dataclass(frozen=True)
class Setting:
    """What all methods share. Its repr says what figures depend on, wherever the files are."""

    folder: Path = field(repr=False)
    base: str = field(repr=False)
    """A model folder."""
    unseen: Path = field(repr=False)
    """A folder with texts that nobody trains on."""
    corpora: tuple[str, ...] = field(repr=False)
    target: int
    seed: int
    options: Mapping[str, Any] = field(hash=False)
    """Of every run: fields of a TrainRecipe."""
    fingerprint: str = ""
    """Of the base: machines that round otherwise train others, whose figures are not mixed."""
    texts: str = ""
    """Of what is trained on and measured: with other texts, nothing found here is kept."""
    rows_by: str = _ROWS_BY
    """Of the code that makes rows of texts."""
    replay: tuple[str, ...] = field(default=(), repr=False)
    lexicon: Path | None = field(default=None, repr=False)

    def with_base(self, texts: str | None = None) -> "Setting":
        """The same, once the base and the texts are there. texts: their digest, where they are
        elsewhere."""
        texts = self.digest() if texts is None else texts
        return replace(self, fingerprint=model_fingerprint(self.base), texts=texts)

    def digest(self) -> str:
        """Of all texts."""
        unseen = sorted(self.unseen.iterdir()) if self.unseen.is_dir() else [self.unseen]
        files = (*map(Path, (*self.corpora, *self.replay)), *unseen)
        whole = hashlib.sha256("".join(map(file_sha256, dict.fromkeys(files))).encode())
        return whole.hexdigest()[:16]

    def shards(self, method: Method, rows: int | None = None) -> Path:
        """The rows of a method, at most so many, built where they are not there.

        Replay rows are in all of them. Where they are, the corpora need not be.
        """
        name = method.rows_key(self.target)
        if method.build.get("impact") == "lexicon" and self.lexicon is not None:
            name += f"-{file_sha256(self.lexicon)[:8]}"  # the code that made it is not in `rows_by`
        out = self.folder / "shards" / self.rows_by / name
        with _one_at_a_time(self.folder / "shards"):  # two cells may need the same ones
            if not (out / "manifest.json").exists():
                self._build(method, rows, out)
        return out

    def _build(self, method: Method, rows: int | None, out: Path) -> None:
        options = dict(method.build)
        if options.get("impact") == "lexicon":
            options["impact"] = f"lexicon:{self.lexicon}"
        recipe = BuildRecipe(
            corpora=self.corpora,
            tokenizer=self.base,
            target_len=self.target,
            train_len=0 if method.is_full else method.train_len(self.target),
            replay=self.replay,
            replay_ratio=0.1,
            max_rows=rows,
            seed=self.seed,
            **options,
        )
        build(recipe, out, workers=1)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Other processes wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def quiet(line: str) -> None:
    """Commands say what they do; here they do it hundreds of times."""


Measure = Callable[[Setting, str, Path], dict[str, Any]]
"""(setting, model as written for `lrtrain eval`, folder for its report) -> measures by name."""


@dataclass(frozen=True)
class Training:
    """A method trained in a setting."""

    setting: Setting
    method: Method
    budget: Budget
    rate: float

    @property
    def out(self) -> Path:
        name = f"{self.setting.target}-{self.budget.name}-{self.method.key}-{self.rate:g}"
        return self.setting.folder / "runs" / name

    def run(self, stage: str) -> Path:
        """The model folder of a stage."""
        setting = self.setting
        recipe = TrainRecipe(
            stages=(stage,),
            rows_per_step=self.budget.rows(self.method),
            steps=self.budget.steps,
            lr=self.rate,
            attention_scale=self.method.scale,
            seed=setting.seed + self.budget.first_seed,
            **{"checkpoint_every": 0, **setting.options},
        )
        return run(setting.shards(self.method), setting.base, self.out, recipe, say=quiet)[0]


def train(training: Training, measure: Measure, keep: bool = False) -> dict[str, Any]:
    """Extend the base by a method, and measure what comes out; `keep` its run for `finish`.

    A training with checkpoints goes on from the last one.
    """
    setting, budget, method = training.setting, training.budget, training.method
    if not setting.options.get("checkpoint_every"):
        shutil.rmtree(training.out, ignore_errors=True)
    extended = training.run("extend")
    steps = read_metrics(training.out / METRICS)
    row = open_dataset(setting.shards(method)).train_len
    config = load_config(setting.base)
    rows = budget.rows(method) * budget.steps
    found = {
        "rate": training.rate,
        "rows": rows,
        "row_tokens": row,
        # Beside whatever else there was; the first step is slower than the others.
        "seconds": median(step["seconds"] for step in steps) * len(steps),
        "flops": rows * training_flops(config, [row]),
        "flops_all_pairs": rows * training_flops(config, [row], causal=False),
        "loss": steps[-1]["loss"],
        "measured": measure(setting, str(extended), training.out / "eval"),
    }
    if not keep:
        shutil.rmtree(training.out)
    return found


def finish(training: Training, measure: Measure) -> dict[str, Any]:
    """Anneal what `train` kept, merge it with the base at every weight, and measure all of them."""
    setting = training.setting
    annealed = training.run("anneal")
    found = {"annealed": measure(setting, str(annealed), training.out / "eval-anneal")}
    for weight in MERGE_WEIGHTS:
        merged = training.out / f"merged-{weight:g}"
        shutil.rmtree(merged, ignore_errors=True)
        merge_models(setting.base, str(annealed), merged, weight)
        found[f"merged {weight:g}"] = measure(setting, str(merged), merged / "eval")
    return found
