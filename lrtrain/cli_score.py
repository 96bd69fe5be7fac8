"""`lrtrain score`: options and help; the work is elsewhere."""

from pathlib import Path
from typing import Any

import click

from lrdata.sizes import Count, parse_count


@click.command("score")
@click.argument("corpora", nargs=-1, required=True)
@click.option("--model", required=True, help="The model: a folder, a hub id, or PATH@target=128k.")
@click.option(
    "--long-model",
    help="A model after long-context training: score what it gained over --model instead.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The folder for scores."
)
@click.option(
    "--window",
    type=Count(),
    default=0,
    help="The long context.  [default: the model's window, up to 128k]",
)
@click.option(
    "--short-context",
    type=Count(),
    default=0,
    help="K, the tokens of a short context.  [default: 1/8 of the window, up to 4k]",
)
@click.option(
    "--stride",
    type=Count(),
    default=0,
    help="Tokens scored per short reading: each sees the last K to K + stride - 1 tokens.  "
    "[default: K, up to 1k]",
)
@click.option("--tokens", default="1M", show_default=True, help="How many to score, or all.")
@click.option(
    "--per-document",
    default="1",
    show_default=True,
    help="Windows of a document, or all.",
)
@click.option(
    "--min-doc-tokens",
    type=Count(),
    default=0,
    help="Leave shorter documents out.  [default: those that fill no window]",
)
@click.option("--text-field", default="text", show_default=True, help="Field of the text.")
@click.option("--id-field", help="Field of the document id.  [default: file and record]")
@click.option("--eot", help="End-of-text token.  [default: the tokenizer's]")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto: bf16 on a GPU, else fp32.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@click.option(
    "--batch-tokens",
    type=Count(),
    default="8k",
    show_default=True,
    help="Short contexts are read together, up to so many tokens.",
)
@click.option(
    "--chunk-tokens",
    type=Count(),
    default=512,
    show_default=True,
    help="Tokens whose logits are in memory at once.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample.")
def score(
    corpora: tuple[str, ...], out: Path, tokens: str, per_document: str, **options: Any
) -> None:
    """Find out for which tokens of CORPORA long context matters to a model.

    With --model alone (lsd): log P(token | all before it) - log P(token | the last K tokens). With
    --long-model (contrast): what the long model's log P gained over the base's, same context.

    \b
    OUT/scores.parquet   document, offset, token, scores: a row a token
    The same command goes on after an interruption. Next:
      lrdata lexicon OUT --out lexicon.parquet     which types of tokens these are
      lrdata survival OUT                          how many of them a selection keeps
      lrtrain eval MODELS --suite longppl --keys OUT   if none of them was trained on CORPORA

    \b
    Examples:
      lrtrain score books/ --model ./llama3-8b --out scores --tokens 10M
      lrtrain score books/ --model ./llama3-8b@target=128k --long-model runs/128k/extend --out gain
    """
    from lrtrain.scoring import ScoreRecipe
    from lrtrain.scoring import score as run_score

    recipe = ScoreRecipe(
        corpora=corpora,
        tokens=_count_or_all(tokens),
        per_document=_count_or_all(per_document),
        **options,
    )
    scores = run_score(recipe, out, click.echo)
    manifest = scores.manifest
    click.echo(
        f"{out} is complete: {manifest.tokens:,} tokens of {manifest.documents:,} documents, "
        f"{manifest.measured:,} measured"
    )
    click.echo(f"see which types they are with: lrdata lexicon {out} --out lexicon.parquet")


def _count_or_all(text: str) -> int | None:
    return None if text == "all" else parse_count(text)
