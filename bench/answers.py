"""Seconds of a prompt and its answer: `lrtrain eval`'s generation against transformers' own.

    python bench/answers.py                  # SmolLM2-135M, prompts of 8,064 tokens, answers of 128
    python bench/answers.py --tokens 2000 --dtype float32

The limit is reading the prompts alone, one at a time, without writing anything. All in turns, the
best of each.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))


def contestants(model: Any, ids: Any, most: int) -> dict[str, Callable[[], object]]:
    import torch

    from lrtrain.evaluation.generate import generate

    def theirs(rows: int) -> None:
        for part in ids.split(rows):
            mask, ends = torch.ones_like(part), {"eos_token_id": None, "pad_token_id": 0}
            model.generate(part, attention_mask=mask, max_new_tokens=most, do_sample=False, **ends)

    def read() -> None:
        with torch.inference_mode():
            for part in ids.split(1):
                model(input_ids=part, use_cache=False, logits_to_keep=1)

    return {
        "lrtrain eval": lambda: generate(model, ids, most, set()),
        "model.generate, one prompt": lambda: theirs(1),
        f"model.generate, {len(ids)} prompts": lambda: theirs(len(ids)),
        "reading alone": read,
    }


@click.command(help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    "))
@click.option("--tokens", default=8064, show_default=True, help="Of a prompt.")
@click.option("--answer", default=128, show_default=True, help="Tokens of an answer.")
@click.option("--prompts", default=4, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--rounds", default=2, show_default=True)
def main(tokens: int, answer: int, prompts: int, dtype: str, rounds: int) -> None:
    import torch

    from lrtrain.evaluation.models import open_model
    from lrtrain.model_spec import ModelSpec
    from tests.fetch import fetch

    spec = ModelSpec("smollm2", str(fetch("smollm2")))
    model = open_model(spec, dtype=dtype, device="cpu").load().model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (prompts, tokens), generator=generator)
    best = dict[str, float]()
    for _ in range(rounds):
        for name, work in contestants(model, ids, answer).items():
            started = time.perf_counter()
            work()
            seconds = (time.perf_counter() - started) / prompts
            best[name] = min(best.get(name, seconds), seconds)
    limit = best["reading alone"]
    print("| | s a prompt | of the limit |\n|---|---|---|")
    for name, seconds in best.items():
        print(f"| {name} | {seconds:.1f} | {seconds / limit:.2f} |")


if __name__ == "__main__":
    main()
