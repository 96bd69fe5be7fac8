"""The commands from Python: a page to copy from, on what `make demo` has left.

    python -m lrtrain.demo.from_python demo/corpus/python.jsonl demo/base example

Every name here is of the public API, `dir(lrdata)` and `dir(lrtrain)`, which stays. What a command
makes is set by the fields of a recipe; how it does so, and `eval`, by arguments.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import lrdata
import lrtrain


def main(corpus: str, model: str, out: str, target_len: int = 2048, steps: int = 10) -> None:
    """Build rows of `corpus` for `model`, train a few steps on a CPU, and measure."""
    folder = Path(out)

    # lrdata build CORPUS --tokenizer MODEL --target-len 2k --impact returns:256 --holdout 5% \
    #     --out OUT/shards
    recipe = lrdata.BuildRecipe(
        corpora=(corpus,),
        tokenizer=model,
        target_len=target_len,
        impact=f"returns:{target_len // 8}",
        holdout=0.05,
    )
    manifest = lrdata.build(recipe, folder / "shards")
    print(f"{manifest.ledger.rows:,} rows; {manifest.ledger.kept:,} tokens kept of", end=" ")
    print(f"{manifest.ledger.kept + manifest.ledger.dropped:,}")

    # lrdata inspect: a row is arrays. Positions jump between segments, and nowhere else.
    row = lrdata.open_dataset(folder / "shards").read_row("extend", 0)
    gaps = np.diff(row.position_ids) - 1
    print(f"row 0: {len(row.input_ids):,} tokens span {row.position_ids[-1] + 1:,} positions,")
    print(f"       {np.count_nonzero(gaps):,} gaps, the largest of {gaps.max():,} tokens")

    # lrtrain run SHARDS --model MODEL --stages extend --steps 10 ...
    training = lrtrain.TrainRecipe(
        stages=("extend",),
        steps=steps,
        rows_per_step=4,
        lr=1e-3,
        attention_scale="auto",
        dtype="fp32",
        device="cpu",
    )
    (extended,) = lrtrain.run(folder / "shards", model, folder / "run", training)

    # lrtrain eval base=MODEL@target=2k extended=RUN/extend --suite ppl --lengths 256,2k \
    #     --shards OUT/shards --windows 8 --device cpu --out OUT/eval
    lrtrain.evaluate(
        [f"base={model}@target={target_len}", f"extended={extended}"],
        suites=["ppl"],
        lengths=[target_len // 8, target_len],
        shards=folder / "shards",
        windows=8,
        device="cpu",
        plots=False,
        out=folder / "eval",
    )
    found = json.loads((folder / "eval" / "eval.json").read_text(encoding="utf-8"))
    for cell in found["perplexity"]["cells"]:
        value, low, high = cell["nats_per_byte"]
        print(f"{cell['model']:8} after {cell['length']:5,} tokens:", end=" ")
        print(f"{value:.3f} nats a byte ({low:.3f} to {high:.3f})")


def run(arguments: Sequence[str]) -> None:
    if len(arguments) != 3:
        sys.exit(f"{(__doc__ or '').partition('Every')[0]}")
    corpus, model, out = arguments
    main(corpus, model, out)


if __name__ == "__main__":  # a build starts processes, which import this file
    run(sys.argv[1:])
