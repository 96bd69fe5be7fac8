"""The `lrtrain` command: options and help; the work is elsewhere."""

from pathlib import Path
from typing import Any

import click

from lrdata.errors import Commands, LongRecipeError
from lrdata.sizes import Count, Counts, parse_count


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: lrtrain run shards/ --model MODEL --out runs/first",
)
def main() -> None:
    """Train a model for a longer window on shards made by `lrdata build`, and see that it works.

    Needs the extra `train`: pip install 'longrecipe[train]'. Add --debug to any command to see
    the traceback of an error.
    """


@main.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model to extend: a folder or a hub id.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option(
    "--stages", default="extend,anneal,merge", show_default=True, help="Which stages, in order."
)
@click.option("--steps", type=Count(), help="Steps of the extend stage.  [default: one epoch]")
@click.option("--anneal-steps", type=Count(), help="Steps on replay.  [default: one epoch]")
@click.option(
    "--rows-per-step",
    type=Count(),
    default=96,
    show_default=True,
    help="Rows of one optimizer step.",
)
@click.option(
    "--micro-tokens",
    type=Count(),
    default=0,
    show_default=True,
    help="Join rows to batches of so many tokens; 0: a row at a time.",
)
@click.option("--lr", type=float, default=5e-5, show_default=True, help="Peak of the extend stage.")
@click.option(
    "--anneal-lr",
    type=float,
    default=5e-6,
    show_default=True,
    help="Start of the anneal stage, which ends at exactly 0.",
)
@click.option(
    "--warmup", type=float, default=0.05, show_default=True, help="Share of the extend steps."
)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "linear", "constant"]),
    default="cosine",
    show_default=True,
    help="Of the extend stage; ends at a tenth of the peak, or stays.",
)
@click.option("--weight-decay", type=float, default=0.0, show_default=True)
@click.option("--beta1", type=float, default=0.9, show_default=True)
@click.option("--beta2", type=float, default=0.95, show_default=True)
@click.option(
    "--clip", type=float, default=1.0, show_default=True, help="Largest gradient norm; 0: any."
)
@click.option(
    "--rope",
    default="auto",
    show_default=True,
    help="auto: the paper's theta for the new window; theta=8e6; yarn; none: keep the model's.",
)
@click.option(
    "--attention-scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Factor on the softmax scale, for extend rows only. Below 1 teaches sharper attention.",
)
@click.option(
    "--token-weights",
    type=click.Choice(["none", "impact", "longce", "ukp"]),
    default="none",
    show_default=True,
    help="In the loss of extend rows. impact: impactful tokens count twice; longce, ukp: by what "
    "long context gains, in shards built with --impact scores:DIR.",
)
@click.option(
    "--attention",
    default="auto",
    show_default=True,
    help="Backend: auto, sdpa, or dense (the definition, for checks on short rows).",
)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp32"]),
    default="bf16",
    show_default=True,
    help="Of the parameters; with bf16, master weights and gradients are kept in fp32.",
)
@click.option(
    "--merge-weight",
    type=float,
    default=0.5,
    show_default=True,
    help="Share of the trained model in the merged one.",
)
@click.option("--checkpointing", is_flag=True, help="Recompute layers: less memory, more time.")
@click.option(
    "--chunk-tokens",
    type=Count(),
    default=1024,
    show_default=True,
    help="Rows of logits in memory at once.",
)
@click.option(
    "--holdout-every",
    type=int,
    default=0,
    show_default=True,
    help="Steps between losses on holdout windows; 0: after the last.",
)
@click.option("--holdout-rows", type=Count(), default=4, show_default=True)
@click.option(
    "--checkpoint-every",
    type=int,
    default=10,
    show_default=True,
    help="Steps between checkpoints; 0: only when a signal stops the run.",
)
@click.option(
    "--keep-checkpoints",
    type=Count(),
    default=1,
    show_default=True,
    help="How many of the last ones stay: three times the fp32 model each.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@click.option("--seed", type=int, default=0, show_default=True)
def run(shards: Path, model: str, out: Path, stages: str, **options: Any) -> None:
    """Extend MODEL on SHARDS, anneal on their replay rows, merge with the original.

    \b
    OUT/extend, OUT/anneal, OUT/merged   plain Hugging Face models
    OUT/metrics.jsonl, OUT/loss.png      loss by step, on training rows and holdout windows
    OUT/recipe.json                      what was asked for
    A stage whose folder is there is not done again, and one that was stopped goes on from its last
    checkpoint: run the same command.

    \b
    Examples:
      lrtrain run shards/ --model ./llama3-8b --out runs/128k --checkpointing
      lrtrain run shards/ --model ./llama3-8b --out runs/128k --stages anneal,merge
    """
    from lrtrain.recipe import TrainRecipe
    from lrtrain.stages import run as run_stages

    recipe = TrainRecipe(stages=tuple(name.strip() for name in stages.split(",")), **options)
    made = run_stages(shards, model, out, recipe, click.echo)
    click.echo(f"made {', '.join(map(str, made))}")
    click.echo(f"see what it retrieves with: lrtrain eval {model} {made[-1]}")


@main.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model to extend: a folder or a hub id.")
@click.option("--gpu-memory", type=Count(), help="Of the card: 80GB.  [default: the one here]")
@click.option("--gpu", help="Its name, for the time: H100, A100, ...  [default: the one here]")
@click.option("--steps", type=Count(), help="As for `lrtrain run`.")
@click.option("--rows-per-step", type=Count(), default=96, show_default=True)
@click.option("--micro-tokens", type=Count(), default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--checkpointing", is_flag=True, help="Recompute layers: less memory, more time.")
@click.option("--chunk-tokens", type=Count(), default=1024, show_default=True)
def plan(shards: Path, model: str, gpu_memory: int | None, gpu: str | None, **options: Any) -> None:
    """Say what `lrtrain run` would take, before paying: memory on the card, time a step.

    A step of the real code runs on tensors without data, in seconds and on any machine. The table
    shows what each option saves, and what rows of full length would take.

    \b
    Example:
      lrtrain plan shards/ --model ./llama3-8b --gpu-memory 80GB --gpu H100
    """
    from lrtrain.plan import make_plan, print_plan
    from lrtrain.recipe import TrainRecipe

    recipe = TrainRecipe(**options)
    print_plan(make_plan(shards, model, recipe, memory=gpu_memory, device_name=gpu))


@main.command()
@click.argument("shards", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model to extend: a folder or a hub id.")
@click.option("--rope", default="auto", show_default=True, help="As for `lrtrain run`.")
@click.option("--attention", default="auto", show_default=True, help="As for `lrtrain run`.")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
def doctor(shards: Path, model: str, **options: Any) -> None:
    """Say whether `lrtrain run` would train what it should, with MODEL and SHARDS, on this machine.

    Attention crosses gaps and stops at documents; rotary frequencies after loading and saving;
    tokenizer; shards; the loss in chunks. A line each, with what to do where one fails.
    """
    from lrtrain.doctor import examine
    from lrtrain.recipe import TrainRecipe

    failed = 0
    for finding in examine(shards, model, TrainRecipe(**options)):
        click.echo(str(finding))
        failed += not finding.ok
    if failed:
        raise LongRecipeError(f"{failed} of the checks failed; each line says what to do")
    click.echo(f"train with: lrtrain run {shards} --model {model} --out RUN")


@main.command()
@click.argument("base")
@click.argument("tuned")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The merged model.")
@click.option(
    "--weight", type=float, default=0.5, show_default=True, help="Share of TUNED: 0 to 1."
)
def merge(base: str, tuned: str, out: Path, weight: float) -> None:
    """Write (1 - weight) x BASE + weight x TUNED, tensor by tensor, in constant memory.

    Config, tokenizer and RoPE are those of TUNED.
    """
    from lrtrain.merge import merge_models

    merge_models(base, tuned, out, weight)
    click.echo(f"{out} is complete; measure it with: lrtrain eval {out}")


@main.command("score")
@click.argument("corpora", nargs=-1, required=True)
@click.option("--model", required=True, help="The model: a folder, a hub id, or PATH@target=128k.")
@click.option(
    "--long-model",
    help="A model after long-context training: score what it gained over --model instead.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The folder for scores."
)
@click.option("--window", type=Count(), default=0, help="Long context.  [default: the model's]")
@click.option(
    "--short-context",
    type=Count(),
    default=0,
    help="K: the last tokens that are all of a short context.  [default: 1/8 of it, up to 4k]",
)
@click.option(
    "--stride",
    type=Count(),
    default=0,
    help="So many tokens share the start of a short context.  [default: K, up to 1k]",
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
    help="Rows of logits in memory at once.",
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
      lrtrain eval MODEL --suite longppl --keys OUT

    \b
    Examples:
      lrtrain score books/ --model ./llama3-8b --out scores --tokens 10M
      lrtrain score books/ --model ./llama3-8b@target=128k --long-model runs/128k/extend --out gain
    """
    from lrtrain.score import ScoreRecipe
    from lrtrain.score import score as run_score

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


@main.command("eval")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("eval"),
    show_default=True,
    help="Folder for eval.json and the figures.",
)
@click.option(
    "--suite",
    default="needle,ppl",
    show_default=True,
    help="needle: find a pass key in a long text; ppl: perplexity by context length; longppl: "
    "perplexity of the tokens that need long context, with --keys.",
)
@click.option("--lengths", type=Counts(), default="1k,2k,4k,8k", show_default=True)
@click.option(
    "--depths",
    default="0,0.25,0.5,0.75,1",
    show_default=True,
    help="Where the needle is: 0 beginning, 1 end.",
)
@click.option(
    "--samples",
    type=Count(),
    default=5,
    show_default=True,
    help="Needles for each length and depth.",
)
@click.option(
    "--windows", type=Count(), default=32, show_default=True, help="Windows for perplexity."
)
@click.option(
    "--haystack",
    type=click.Path(path_type=Path),
    help="File or folder of text around the needles.  [default: Python's documentation]",
)
@click.option("--text", type=click.Path(path_type=Path), help="Text for perplexity, likewise.")
@click.option(
    "--shards", type=click.Path(path_type=Path), help="Use a dataset's holdout rows for it instead."
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="What `lrtrain score` wrote, without --long-model: windows and key tokens of longppl.",
)
@click.option("--needle", help="What is hidden.  ['The pass key is {value}. ...']")
@click.option("--question", help="What stands before the answer; may hold {name}.")
@click.option("--answer", help="The answer, with {value}.  [default: ' {value}']")
@click.option("--values", help="Characters of values, or words with commas.  [default: digits]")
@click.option("--value-length", type=Count(), help="How many of them.  [default: 5]")
@click.option("--names", help="Characters or words of names.  [default: small letters]")
@click.option("--name-length", type=Count(), help="How many of them.  [default: 6]")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16, float16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--no-plots", is_flag=True, help="Only eval.json and the table.")
def evaluate(models: tuple[str, ...], no_plots: bool, **options: Any) -> None:
    """Needle retrieval, perplexity by context length and LongPPL of MODELS, side by side.

    \b
    A model is a folder or hub id, with a name or another RoPE if you like:
      lrtrain eval base=./llama3-8b ./llama3-8b@target=128k runs/128k/merged --lengths 8k,32k,128k
    `@target=128k` is the untrained model with the theta that training would start from.

    \b
    LongPPL asks all of them for the tokens that one model needed long context for:
      lrtrain score books/ --model ./judge-8b --out scores
      lrtrain eval base=./llama3-8b runs/128k/merged --suite longppl --keys scores
    """
    from lrtrain.evaluate import NeedleTemplate, print_report
    from lrtrain.evaluate import evaluate as run_evaluation

    given = {
        "needle": options.pop("needle"),
        "question": options.pop("question"),
        "answer": options.pop("answer"),
        "value_alphabet": _alphabet(options.pop("values")),
        "value_length": options.pop("value_length"),
        "name_alphabet": _alphabet(options.pop("names")),
        "name_length": options.pop("name_length"),
    }
    report = run_evaluation(
        models,
        suites=[name.strip() for name in options.pop("suite").split(",")],
        depths=_depths(options.pop("depths")),
        needle=NeedleTemplate(**{name: value for name, value in given.items() if value}),
        plots=not no_plots,
        **options,
    )
    print_report(report)
    click.echo(f"{options['out']} holds eval.json" + ("" if no_plots else " and the figures"))


def _depths(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"--depths {text}: write numbers from 0 to 1: 0,0.5,1") from None


def _alphabet(text: str | None) -> str | list[str] | None:
    """Characters, or words with commas between them."""
    return text.split(",") if text and "," in text else text
