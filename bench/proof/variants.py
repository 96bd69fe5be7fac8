"""What else rows of LongRecipe could be: one thing changed at a time, beside the small proof's own.

Equal tokens, the bases and corpora of the small proof, so many of its seeds, one rate. Changed: how
long segments are, by which law the unused positions are spread over the gaps, the share of the
window that is kept, theta, and the softmax scale in training. And positions without gaps, PoSE's,
and full length, at the same rate as all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cells import Cell, Study
from gaps import spread_by
from intervals import difference, over_seeds, share
from methods import FULL, Budget, Method
from small import RATES, TARGET, Codes, SmallProof, make_bases, setting_of
from training import Setting, Training, train

from lrtrain.attention_scale import scale_in_training
from lrtrain.demo.base import WINDOW
from lrtrain.model import load_config
from lrtrain.rope import extended_theta, head_dim_of

PLAIN = "LongRecipe, lexicon"
RATE = 4e-3
"""Of *LongRecipe, lexicon* in the second run of the small proof; in the tables now it is half."""


@dataclass(frozen=True)
class Variant:
    """`law`: of the gaps, see LAWS. theta: times the one of the paper's formula. rate: times that
    of all."""

    name: str
    build: tuple[tuple[str, Any], ...] = ()
    share: float = 0.3
    power: int = 0
    law: str = "uniform"
    theta: float = 1.0
    rate: float = 1.0


VARIANTS = (
    Variant("segments of 22 tokens", (("segment_tokens", 22),)),
    Variant("segments of 44 tokens", (("segment_tokens", 44),)),
    Variant("segments of 176 tokens", (("segment_tokens", 176),)),
    Variant("segments of 304 tokens", (("segment_tokens", 304),)),
    Variant("each token at its own place", (("positions", "source"),)),
    Variant("no gaps", (("positions", "contiguous"),)),
    Variant("PoSE's positions", (("positions", "pose"),)),
    Variant("a quarter of the rate", rate=0.25),
    Variant("no gaps, a quarter of the rate", (("positions", "contiguous"),), rate=0.25),
    Variant("heavy-tailed gaps", law="heavy"),
    Variant("one large jump and small gaps", law="jump"),
    Variant("rows of 20 %", share=0.2),
    Variant("rows of 50 %", share=0.5),
    Variant("theta, a quarter of it", theta=0.25),
    Variant("theta, four times", theta=4.0),
    Variant("scale, log L / log T", power=1),
    Variant("scale, its square", power=2),
    Variant("scale, its cube", power=3),
)


def train_variant(
    setting: Setting, variant: Variant, rate: float, budget: Budget, measure: Codes
) -> dict[str, Any]:
    """Build the variant's rows where there are none, train on them, measure."""
    folder = setting.folder / "variants" / variant.law
    config = load_config(setting.base)
    theta = config.rope_parameters["rope_theta"]
    theta = extended_theta(theta, WINDOW, setting.target, head_dim_of(config)) * variant.theta
    options = {**setting.options, "rope": f"theta={theta!r}"} if variant.theta != 1 else {}
    setting = replace(setting, folder=folder, options=options or setting.options)
    method = method_of(variant, setting.target)
    rows = round(budget.rows(method) * 0.3 / variant.share)
    with spread_by(variant.law):
        setting.shards(method)
    budget, rate = replace(budget, short_rows=rows), rate * variant.rate
    return train(Training(setting, method, budget, rate), measure)


def method_of(variant: Variant, target: int) -> Method:
    """Its rows, and the scale that it is trained with."""
    build = {"impact": "lexicon", **dict(variant.build)}
    name = ", ".join(filter(None, (PLAIN, variant.name)))
    plain = Method(name, build, share=variant.share)
    scale = scale_in_training("auto", plain.train_len(target), target) ** variant.power
    return Method(name, build, round(scale, 4) if variant.power else 1.0, variant.share)


def run(study: Study, seeds: Sequence[int], smoke: bool) -> dict[str, Any]:
    """{rate, trained: {variant: {seed: what was found}}}; the first is the small proof's own."""
    proof = SmallProof.smoke(study) if smoke else SmallProof(study)
    sizes, budget = proof.sizes, proof.budgets[0]
    rate = RATES[0] if smoke else RATE
    make_bases(study, seeds, sizes)
    plain = method_of(Variant(""), TARGET)
    cells = {("as it is", seed): proof.cell(seed, plain, budget, rate) for seed in seeds}
    cells |= {("full length", seed): proof.cell(seed, FULL, budget, rate) for seed in seeds}
    for variant in VARIANTS[8:10] if smoke else VARIANTS:
        for seed in seeds:
            name = re.sub("[^a-z0-9]+", "-", variant.name.lower())
            setting = setting_of(study.out, seed).with_base()
            asked = (setting, variant, rate, budget, Codes(sizes))
            cells[variant.name, seed] = Cell(f"variants/{name}/seed-{seed}", train_variant, asked)
    trained: dict[str, dict[int, Any]] = {}
    for (name, seed), found in study.results("variants", cells).items():
        trained.setdefault(name, {})[seed] = found
    return {"rate": rate, "trained": trained}


def show(found: dict[str, Any]) -> None:
    """A line for each variant, beside the plain one, seed by seed."""
    print(f"### {PLAIN}, one thing changed at a time\n")
    print("| | 256 | **2,048** | more than as it is | text 2,048 | of as it is | short text |")
    print("|---|---|---|---|---|---|---|")
    runs = found["trained"]

    def values(name: str, measure: str) -> list[float]:
        return [run["measured"][measure] for run in runs[name].values()]

    first, *_ = runs
    far, text = f"retrieval {TARGET}", f"nats/byte {TARGET}"
    for name in runs:
        changed = name != first
        parts = [
            name,
            over_seeds(values(name, f"retrieval {WINDOW}")).text(),
            over_seeds(values(name, far)).text(),
            difference(values(name, far), values(first, far)).text(sign=True) if changed else "",
            over_seeds(values(name, text)).text(),
            share(values(name, text), values(first, text)).text() if changed else "",
            over_seeds(values(name, "short nats/byte")).text(),
        ]
        print(f"| {' | '.join(parts)} |")
