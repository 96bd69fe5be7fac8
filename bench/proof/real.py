"""The real proof: SmolLM2-135M-Instruct, whose window is 8,192 tokens, taken further.

Each cell trains and measures one method in one process and leaves JSON: with `--seconds` nothing is
begun that late, and the same command goes on. `prepare` needs the package index and a few CPUs, no
GPU. For a machine that takes files of 60 MB at most, `pack` cuts what `run` needs into parts, and
`unpack` puts them together there.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # where nothing can be installed

from cells import Cell, Study
from measures import read_measures, read_samples
from methods import FULL, Budget, Method, as_published, evidence
from training import Setting, Training, train

from bench.corpora import default_corpora
from lrdata.atomic import write_text
from lrdata.dataset import open_dataset
from lrdata.errors import LongRecipeError
from lrtrain.demo.corpus import is_new, long_lines
from lrtrain.evaluation import evaluate
from lrtrain.model import TORCH_DTYPES, choose_device, load_model, save_model
from tests.fetch import fetch

_PART_BYTES = 48 * 1024**2
_TEXTS = "texts.sha256"
"""The digest of the corpus and of what is held out: the corpus stays where it was prepared."""


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
    checkpointing: bool = True
    """Or layers are kept, which gives the same numbers: a row of 16k takes about 16 GB then."""
    checkpoint_every: int = 0
    """Steps: a cell that is cut goes on from there."""
    seeds: tuple[int, ...] = (0,)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Full length last: it takes longest."""
        far = evidence(self.target // 32)  # where `--impact returns` begins by itself
        return (
            Method("LongRecipe, evidence, scale", far, scale="auto"),
            Method("LongRecipe, evidence", far),
            Method("no gaps, evidence", {"positions": "contiguous", **far}),
            *map(as_published, ("PoSE", "RandPos")),
            FULL,
        )


_TASKS = ("niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "vt")
PLANS = {
    "16k": Plan(
        target=16_384,
        budget=Budget("tokens", "equal tokens", full_rows=3, short_rows=10, steps=6),
        rate=3e-4,
        lengths=(8192, 16_384),
        tasks=(),
        samples=3,
        windows=8,
        dtype="bf16",
        megabytes=20,
        checkpointing=False,
        checkpoint_every=1,
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
        megabytes=80,
        checkpoint_every=10,
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
        checkpoint_every=2,
    ),
}
"""16k: on two cores whose bf16 is fast (AMX), in hours. 32k and 128k: on one GPU."""


@dataclass(frozen=True)
class Skills:
    """Measures pass keys, RULER tasks and perplexity by length, and short skills."""

    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    samples: int
    windows: int
    dtype: str
    texts: str
    """sha256 of what is held out of the corpus: with other texts, nothing found here is kept."""

    def __call__(self, setting: Setting, model: str, out: Path) -> dict[str, Any]:
        shared: dict[str, Any] = {
            "text": setting.unseen,
            "windows": self.windows,
            "seed": setting.seed,
            "dtype": {"bf16": "bfloat16", "fp32": "float32"}[self.dtype],
            "device": setting.options["device"],
            "plots": False,
        }
        evaluate(
            [f"model={model}"],
            suites=("needle", "ppl", *(["ruler"] if self.tasks else [])),
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
        reports = (out, out / "short")
        return {**read_measures(*reports), "samples": read_samples(*reports)}


def skills_of(out: Path, plan: Plan) -> Skills:
    texts = hashlib.sha256((out / "unseen.jsonl").read_bytes()).hexdigest()
    return Skills(plan.lengths, plan.tasks, plan.samples, plan.windows, plan.dtype, texts)


def setting_of(out: Path, plan: Plan, seed: int) -> Setting:
    """The same model and texts for all seeds; rows and their order are drawn anew."""
    return Setting(
        folder=out / str(plan.target) / f"seed-{seed}",
        base=str(out / f"smollm2-{plan.dtype}"),
        unseen=out / "unseen.jsonl",
        corpora=(str(out / "corpus.jsonl"),),
        target=plan.target,
        seed=seed,
        options={
            "dtype": plan.dtype,
            "device": choose_device("auto").type,  # others round otherwise
            "checkpointing": plan.checkpointing,
            "checkpoint_every": plan.checkpoint_every,
            "micro_tokens": 0,
        },
    )


def prepare(out: Path, plan: Plan) -> None:
    """The base model, the corpus and what is held out of it, and the rows that methods take.

    Raises LongRecipeError where `out` has a corpus of another size.
    """
    base = out / f"smollm2-{plan.dtype}"
    if not base.exists():
        _write_base(base, plan.dtype)
    said, size = out / "corpus.txt", f"{plan.megabytes} MB of each kind, every 20th held out"
    if said.exists() and said.read_text() != size:
        raise LongRecipeError(
            f"{out} has a corpus of {said.read_text()}, not {size}; choose another --out"
        )
    if not said.exists():
        _write_corpus(out, plan.megabytes)
        write_text(said, size)
    write_text(out / _TEXTS, setting_of(out, plan, seed=0).digest())
    for seed in plan.seeds:
        setting = setting_of(out, plan, seed)
        for method in plan.methods:
            asked = plan.budget.rows(method) * plan.budget.steps
            shards = setting.shards(method, rows=asked)
            if (rows := open_dataset(shards).rows("extend")) < asked:
                raise LongRecipeError(
                    f"{shards} has {rows:,} rows of the {asked:,} that {method.name} trains on; "
                    "it needs a larger corpus, and another --out"
                )


def _write_base(out: Path, dtype: str) -> None:
    """SmolLM2 in the dtype that it is trained in: half of it travels in bf16."""
    source = str(fetch("smollm2"))
    model = load_model(source, dtype=TORCH_DTYPES[dtype])
    save_model(model, source, out, target_len=None, card="# SmolLM2-135M-Instruct\n")


def _write_corpus(out: Path, megabytes: int) -> None:
    """English and code in turns; every 20th of each is held out, unless its lines are elsewhere.

    English has the docstrings of the sources that are the code, and sources have each other's.
    """
    kinds = [
        corpus.path.read_text(encoding="utf-8").split("\n")
        for corpus in default_corpora(megabytes)
        if corpus.name in ("english", "code")
    ]
    held_out = _in_turns([documents[19::20] for documents in kinds])
    for documents in kinds:
        del documents[19::20]
    documents = _in_turns(kinds)
    known = {line for document in documents for line in long_lines(_text(document))}
    unseen = [document for document in held_out if is_new(_text(document), known)]
    write_text(out / "unseen.jsonl", "".join(f"{document}\n" for document in unseen))
    write_text(out / "corpus.jsonl", "".join(f"{document}\n" for document in documents))


def _in_turns(kinds: Sequence[Sequence[str]]) -> list[str]:
    return [line for turn in zip_longest(*kinds) for line in turn if line]


def _text(document: str) -> str:
    return str(json.loads(document)["text"])


def run(study: Study, plan: Plan) -> dict[str, Any]:
    """The base as it is and with its new theta, and every method: what was measured of each.

    The base with the texts and prompts of every seed, as the methods are.
    """
    # On a CPU the C library would keep freed blocks: a row of full length to 16k takes 15 GB, and
    # took more than 24 so.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1048576")
    skills = skills_of(study.out, plan)
    texts = (study.out / _TEXTS).read_text(encoding="utf-8")
    settings = {seed: setting_of(study.out, plan, seed).with_base(texts) for seed in plan.seeds}
    base = study.results(
        "base model",
        {
            (name, seed): Cell(
                f"{plan.target}/{name.replace(' ', '-')}-{seed}",
                measured,
                (settings[seed], name, skills),
            )
            for name in ("base", "new theta")
            for seed in plan.seeds
        },
    )
    cells = {}
    for method in plan.methods:
        for seed in plan.seeds:
            training = Training(settings[seed], method, plan.budget, plan.rate)
            name = f"{plan.target}/{method.key}-{seed}"
            cells[method.name, seed] = Cell(name, train, (training, skills))
    trained = study.results("methods", cells)
    return {
        "target": plan.target,
        "budget": plan.budget.title,
        "base": [
            {"method": name, "seed": seed, "measured": found}
            for (name, seed), found in base.items()
        ],
        "trained": [
            {"method": name, "seed": seed, **found} for (name, seed), found in trained.items()
        ],
    }


def measured(setting: Setting, name: str, skills: Skills) -> dict[str, Any]:
    """The base, untrained: as it is, or with the theta that training starts from."""
    model = setting.base if name == "base" else f"{setting.base}@target={setting.target}"
    return skills(setting, model, setting.folder / f"eval-{name.replace(' ', '-')}")


def pack(out: Path) -> list[Path]:
    """Everything but the corpus and results as files of at most 48 MB in OUT/parts, with a list."""
    parts = out / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    folders = (*out.glob("smollm2-*"), *out.glob("*/seed-*/shards"))
    wanted = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    listed = list[dict[str, Any]]()
    for path in (*wanted, out / "unseen.jsonl", out / _TEXTS):
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
