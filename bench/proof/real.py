"""The real proof: SmolLM2-135M-Instruct, whose window is 8,192 tokens, taken further.

Each cell trains and measures one method in one process and leaves JSON: with `--seconds` nothing is
begun that late, and the same command goes on. `prepare` needs the package index and a few CPUs, no
GPU. For a machine that takes files of 60 MB at most, `pack` cuts what `run` needs into parts, and
`unpack` puts them together there.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import Cell, Study
from measures import read_measures
from methods import FULL, Budget, Method, as_published, evidence
from training import Setting, Training, train

sys.path.append(str(Path(__file__).parents[2]))

from bench.corpora import default_corpora
from lrdata.errors import LongRecipeError
from lrtrain.evaluate import evaluate
from tests.fetch import fetch

WINDOW = 8192
_PART_BYTES = 48 * 1024**2


@dataclass(frozen=True)
class Plan:
    """How far, how long, and how much is measured."""

    target: int
    budget: Budget
    rate: float
    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    samples: int
    windows: int
    dtype: str
    megabytes: int
    """Of each corpus."""
    seeds: tuple[int, ...] = (0,)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Full length last: it takes longest."""
        back = self.target // 8
        return (
            Method("LongRecipe, evidence, scale", evidence(back), scale="auto"),
            Method("LongRecipe, evidence", evidence(back)),
            *map(as_published, ("PoSE", "RandPos")),
            FULL,
        )


_TASKS = ("niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "vt")
PLANS = {
    "16k": Plan(
        target=16_384,
        budget=Budget("tokens", "equal tokens", full_rows=1, short_rows=3, steps=8),
        rate=1e-4,
        lengths=(4096, 8192, 16_384),
        tasks=_TASKS[:2],
        samples=1,
        windows=4,
        dtype="fp32",
        megabytes=20,
    ),
    "32k": Plan(
        target=32_768,
        budget=Budget("tokens", "equal tokens", full_rows=8, short_rows=27, steps=40),
        rate=1e-4,
        lengths=(8192, 16_384, 32_768),
        tasks=_TASKS,
        samples=10,
        windows=32,
        dtype="bf16",
        megabytes=60,
        seeds=(0, 1),
    ),
    "128k": Plan(
        target=131_072,
        budget=Budget("rows", "equal rows and steps", full_rows=8, short_rows=8, steps=20),
        rate=1e-4,
        lengths=(8192, 32_768, 131_072),
        tasks=_TASKS,
        samples=5,
        windows=16,
        dtype="bf16",
        megabytes=100,
    ),
}
"""16k: on two cores, overnight. 32k and 128k: on one GPU."""


@dataclass(frozen=True)
class Skills:
    """Measures pass keys, RULER tasks and perplexity by length, and short skills."""

    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    samples: int
    windows: int
    dtype: str

    def __call__(self, setting: Setting, model: str, out: Path) -> dict[str, Any]:
        shared: dict[str, Any] = {
            "text": setting.folder.parent / "held-out.jsonl",
            "windows": self.windows,
            "dtype": {"bf16": "bfloat16", "fp32": "float32"}[self.dtype],
            "device": "auto",
            "plots": False,
        }
        evaluate(
            [f"model={model}"],
            suites=("needle", "ruler", "ppl"),
            lengths=self.lengths,
            samples=self.samples,
            tasks=self.tasks,
            haystack=shared["text"],
            out=out,
            **shared,
        )
        evaluate(
            [f"base={setting.base}", f"model={model}"],
            suites=("short",),
            lengths=self.lengths[:1],
            out=out / "short",
            **shared,
        )
        return read_measures(out, out / "short")


def skills_of(plan: Plan) -> Skills:
    return Skills(plan.lengths, plan.tasks, plan.samples, plan.windows, plan.dtype)


def setting_of(out: Path, plan: Plan, seed: int) -> Setting:
    folder = out / str(plan.target)
    corpora = tuple(str(out / f"{name}.jsonl") for name in ("english", "code"))
    options = {
        "dtype": plan.dtype,
        "device": "auto",
        "checkpointing": True,
        "micro_tokens": 0,
    }
    return Setting(folder, str(out / "smollm2"), corpora, corpora, plan.target, seed, options)


def prepare(out: Path, plan: Plan) -> None:
    """The base model, corpora without what is held out, and every method's rows."""
    if not (out / "smollm2").exists():
        shutil.copytree(fetch("smollm2"), out / "smollm2")
    if not (out / "held-out.jsonl").exists():
        _write_corpora(out, plan.megabytes)
    for seed in plan.seeds:
        setting = setting_of(out, plan, seed)
        for method in plan.methods:
            setting.shards(method)


def _write_corpora(out: Path, megabytes: int) -> None:
    """Every 20th document of both is held out, whole."""
    held_out = list[str]()
    for corpus in default_corpora(megabytes):
        if corpus.name not in ("english", "code"):
            continue
        kept = list[str]()
        for number, line in enumerate(corpus.path.read_text(encoding="utf-8").splitlines()):
            (held_out if number % 20 == 19 else kept).append(line)
        (out / f"{corpus.name}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (out / "held-out.jsonl").write_text("\n".join(held_out) + "\n", encoding="utf-8")


def run(study: Study, plan: Plan) -> dict[str, Any]:
    """The base as it is and with its new theta, and every method: what was measured of each."""
    skills = skills_of(plan)
    setting = setting_of(study.out, plan, plan.seeds[0])
    base = study.found(
        "base model",
        {
            name: Cell(f"{plan.target}/{name.replace(' ', '-')}", measured, (setting, name, skills))
            for name in ("base", "new theta")
        },
    )
    cells = {}
    for method in plan.methods:
        for seed in plan.seeds:
            training = Training(setting_of(study.out, plan, seed), method, plan.budget, plan.rate)
            name = f"{plan.target}/{method.key}-{seed}"
            cells[method.name, seed] = Cell(name, train, (training, skills))
    trained = study.found("methods", cells)
    return {
        "target": plan.target,
        "budget": plan.budget.title,
        "base": base,
        "trained": [
            {"method": name, "seed": seed, **found} for (name, seed), found in trained.items()
        ],
    }


def measured(setting: Setting, name: str, skills: Skills) -> dict[str, Any]:
    """The base, untrained: as it is, or with the theta that training starts from."""
    model = setting.base if name == "base" else f"{setting.base}@target={setting.target}"
    return skills(setting, model, setting.folder / f"eval-{name.replace(' ', '-')}")


def pack(out: Path) -> list[Path]:
    """Everything but corpora and results as files of at most 48 MB in OUT/parts, with a list."""
    parts = out / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    wanted = [
        path
        for folder in (out / "smollm2", *out.glob("*/shards"))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    wanted.append(out / "held-out.jsonl")
    listed = []
    for path in wanted:
        with open(path, "rb") as stream:
            pieces = list[str]()
            while (piece := stream.read(_PART_BYTES)) or not pieces:
                name = f"{len(listed):04}-{len(pieces)}"
                (parts / name).write_bytes(piece)
                pieces.append(name)
                if len(piece) < _PART_BYTES:
                    break
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        listed.append({"path": str(path.relative_to(out)), "parts": pieces, "sha256": digest})
    (parts / "list.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")
    return sorted(parts.iterdir())


def unpack(out: Path) -> None:
    """Put together what `pack` cut. Raises LongRecipeError for a part that is not whole."""
    for entry in json.loads((out / "parts" / "list.json").read_text(encoding="utf-8")):
        path = out / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = b"".join((out / "parts" / name).read_bytes() for name in entry["parts"])
        if hashlib.sha256(whole).hexdigest() != entry["sha256"]:
            raise LongRecipeError(f"{path} is not what was packed; copy the parts again")
        path.write_bytes(whole)


def show(found: dict[str, Any]) -> None:
    """A table: every measure of every model, means over seeds."""
    methods = dict.fromkeys(one["method"] for one in found["trained"])
    columns = {
        **found["base"],
        **{
            name: _mean([one["measured"] for one in found["trained"] if one["method"] == name])
            for name in methods
        },
    }
    print(f"### To {found['target']:,} tokens, {found['budget']}\n")
    print(f"| | {' | '.join(columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    for measure in found["base"]["base"]:
        values = [f"{values[measure]:.3f}" for values in columns.values()]
        print(f"| {measure} | {' | '.join(values)} |")
    for what in ("row_tokens", "rows", "flops", "flops_all_pairs", "seconds"):
        values = [
            f"{_mean([one for one in found['trained'] if one['method'] == name])[what]:,.6g}"
            for name in methods
        ]
        print(f"| {what} | | | {' | '.join(values)} |")


def _mean(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    numbers = [name for name, value in found[0].items() if isinstance(value, int | float)]
    return {name: sum(float(one[name]) for one in found) / len(found) for name in numbers}
