"""The attention scale: which power of log L / log T should short rows be trained with?

Rows of *LongRecipe, evidence* for several targets and shares L / T, equal tokens, the bases of the
small proof. For each, the softmax scale in training is (log L / log T)^k: k = 0 is none, k = 1 what
`--attention-scale auto` takes. All models are measured at scale 1.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cells import Cell, Study
from intervals import Interval, difference, over_seeds, share
from measures import values_of
from methods import FULL, Budget, Method, evidence
from small import SMOKE, TARGET, Codes, Sizes, lengths, make_bases, prepare, setting_of
from training import Setting, Training, train

from lrtrain.attention_scale import scale_in_training
from lrtrain.demo.base import WINDOW

SHARES = {TARGET: (0.1, 0.2, 0.3, 0.5), TARGET // 2: (0.3,), 2 * TARGET: (0.1, 0.3)}
"""Of each target, which shares of it rows have."""
POWERS = (0, 1, 2, 3)
RATE = 1e-3
_STEP_TOKENS, _STEPS = 12_288, 60


def method_of(target: int, share: float, power: int) -> Method:
    """Rows of a share of the target, trained at a power of log L / log T."""
    plain = Method(f"{share:g}, power {power}", evidence(WINDOW), share=share)
    scale = scale_in_training("auto", plain.train_len(target), target) ** power
    return Method(plain.name, plain.build, round(scale, 4), share)


def run(study: Study, seeds: Sequence[int], smoke: bool) -> dict[str, Any]:
    """Lists of what was found: `base` and `trained`, an entry for each target, method and seed;
    `scales`: the methods."""
    sizes, steps = (SMOKE, 1) if smoke else (Sizes(), _STEPS)
    shares = {TARGET: SHARES[TARGET][:1]} if smoke else SHARES
    methods = {
        target: [
            FULL,
            *(method_of(target, share, power) for share in shares[target] for power in POWERS),
        ]
        for target in shares
    }
    make_bases(study, seeds, sizes)
    settings = {
        (target, seed): replace(setting_of(study.out, seed, target).with_base(), lexicon=None)
        for target in shares
        for seed in seeds
    }
    prepared = study.results(
        "rows",
        {
            (target, seed): Cell(
                f"scale/rows-{target}-{seed}",
                prepare,
                (setting, tuple(methods[target]), sizes),
            )
            for (target, seed), setting in settings.items()
        },
    )
    trained = study.results(
        "scales",
        {
            (target, method.name, seed): Cell(
                f"scale/{target}-{method.key}-{seed}",
                train,
                (_training(setting, method, steps), Codes(sizes)),
            )
            for (target, seed), setting in settings.items()
            for method in methods[target]
        },
    )
    return {
        "base": [{"target": t, "seed": seed, **found} for (t, seed), found in prepared.items()],
        "trained": [
            {"target": t, "method": name, "seed": seed, **found}
            for (t, name, seed), found in trained.items()
        ],
        "scales": [
            {"target": t, "method": method.name, "share": method.share, "scale": method.scale}
            for t in shares
            for method in methods[t]
        ],
    }


def _training(setting: Setting, method: Method, steps: int) -> Training:
    rows = round(_STEP_TOKENS / method.train_len(setting.target))
    return Training(setting, method, Budget("scale", "equal tokens", rows, rows, steps), RATE)


def show(found: dict[str, Any]) -> None:
    """A table for each target: what each power gives, and what it costs."""
    for target in dict.fromkeys(one["target"] for one in found["scales"]):
        print(f"### To {target:,}\n")
        near, _, far = (f"{length:,}" for length in lengths(target))
        print(f"| rows | power | scale | {near} | **{far}** | more than power 0 ", end="")
        print(f"| text {near} | text {far} | short text, of power 0 | cloze |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for one in found["scales"]:
            if one["target"] == target:
                print(_line(found, target, one))
        print()


def _line(found: dict[str, Any], target: int, one: dict[str, Any]) -> str:
    far, short = f"retrieval {target}", "short nats/byte"
    rows, _, power = one["method"].partition(", power ")
    changed = power not in ("", "0")

    def values(measure: str) -> list[float]:
        return values_of(found, target, one["method"], measure)

    def plain(measure: str) -> list[float]:
        return values_of(found, target, f"{rows}, power 0", measure)

    def mean(measure: str) -> Interval:
        return over_seeds(values(measure))

    parts = [
        f"{float(rows):.0%}" if power else rows,
        power,
        f"{one['scale']:.3f}",
        mean(f"retrieval {WINDOW}").text(),
        mean(far).text(),
        difference(values(far), plain(far)).text(sign=True) if changed else "",
        mean(f"nats/byte {WINDOW}").text(),
        mean(f"nats/byte {target}").text(),
        share(values(short), plain(short)).text() if changed else "",
        mean("short cloze").text(),
    ]
    return f"| {' | '.join(parts)} |"
