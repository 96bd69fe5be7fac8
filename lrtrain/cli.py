"""The `lrtrain` command: options and help; the work is elsewhere."""

import os
from pathlib import Path
from typing import Any

import click

from lrdata.commands import Commands
from lrdata.sizes import Count, Counts
from lrtrain.cli_next import eval_command
from lrtrain.cli_run import doctor, plan, run
from lrtrain.cli_score import score


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: lrtrain run shards/ --model MODEL --out runs/first",
)
@click.version_option(package_name="longrecipe", message="%(package)s %(version)s")
def main() -> None:
    """Train a model for a longer window on shards made by `lrdata build`, and see that it works.

    Sizes are written 128k (= 131,072), 2M or 80GB, by powers of 1,024; speeds (350GB) are in powers
    of 1,000, and so are the GB that are printed.

    Needs the extra `train`: pip install 'longrecipe[train]'. Add --debug to any command to see
    the traceback of an error.
    """
    # Gradients are made between activations of other sizes, for which segments of torch's allocator
    # that cannot grow leave gaps (torchtitan does the same). It is read when torch is imported.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


for command in (run, plan, doctor, score):
    main.add_command(command)


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
    click.echo(f"{out} is complete; measure it with: {eval_command(base, out)}")


@main.command("eval")
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("eval"),
    show_default=True,
    help="Folder for eval.json and the figures; the same command goes on from what it holds, and "
    "may name more models.",
)
@click.option(
    "--suite",
    default="needle,ppl,short",
    show_default=True,
    help="needle: find a pass key in a long text; ruler: RULER's synthetic tasks, answers written; "
    "ppl: perplexity by context length; short: what is left of short skills; longppl: perplexity "
    "of the tokens that need long context, with --keys.",
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
    help="Needles for each length, depth and seed; prompts for each of RULER's tasks, length and "
    "seed.",
)
@click.option(
    "--windows",
    type=Count(),
    default=32,
    show_default=True,
    help="Windows for perplexity and for short skills.",
)
@click.option(
    "--short-tokens",
    type=Count(),
    help="Tokens of a short window.  [default: the shortest length, at most 512]",
)
@click.option(
    "--base",
    help="The model that the others are compared with; it comes first.  [default: the first]",
)
@click.option(
    "--haystack",
    type=click.Path(path_type=Path),
    help="File or folder of text around the needles.  [default: Python's documentation]",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="File or folder of text for perplexity and short skills.  "
    "[default: Python's documentation]",
)
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    help="Measure perplexity and short skills on a dataset's holdout rows instead; with --keys, "
    "say if both are of the same files.",
)
@click.option(
    "--eot",
    help="End-of-text token of MODELS.  [default: each one's; of rows, that of --shards]",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="What `lrtrain score` wrote, without --long-model, of text that MODELS were not trained "
    "on: windows and key tokens of longppl.",
)
@click.option(
    "--needle", help="What is hidden.  [default: 'The pass key is {value}. Remember it.']"
)
@click.option("--question", help="What stands before the answer; may hold {name}.")
@click.option("--answer", help="The answer, with {value}.  [default: ' {value}']")
@click.option("--values", help="Characters of values, or words with commas.  [default: digits]")
@click.option("--value-length", type=Count(), help="How many of them.  [default: 5]")
@click.option("--names", help="Characters or words of names.  [default: small letters]")
@click.option("--name-length", type=Count(), help="How many of them.  [default: 6]")
@click.option(
    "--prompt",
    type=click.Choice(["base", "chat"]),
    default="base",
    show_default=True,
    help="chat: prompts are a user's message of the model's own chat template, and what stands "
    "behind their question begins the assistant's turn.",
)
@click.option(
    "--tasks",
    default="all",
    show_default=True,
    help="Of the suite ruler: niah_single_1 to 3, niah_multikey_1 to 3, niah_multivalue, "
    "niah_multiquery, vt, cwe, fwe.",
)
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    help="float32, bfloat16, float16; auto: bfloat16 on a GPU, else float32. On CPUs with AMX "
    "bfloat16 is 2 to 3 times as fast.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--seeds",
    type=Count(),
    default=1,
    show_default=True,
    help="Draw prompts with so many seeds, --seed and those that follow it.",
)
@click.option("--no-plots", is_flag=True, help="Only eval.json and the table.")
@click.option("--overwrite", is_flag=True, help="Measure anew what OUT holds already.")
def evaluate(models: tuple[str, ...], no_plots: bool, **options: Any) -> None:
    """Needle retrieval, RULER, perplexity by length, short skills and LongPPL of MODELS.

    \b
    A model is a folder or hub id, with a name or another RoPE if you like:
      lrtrain eval base=./llama3-8b ./llama3-8b@target=128k runs/128k/merged --lengths 8k,32k,128k
    `@target=128k` is the untrained model with the theta that training would start from.

    \b
    RULER asks in eleven ways, and answers are written token by token: --samples 5 of all tasks at
    two lengths are 110 of them for each model.
      lrtrain eval base=./llama3-8b runs/128k/merged --suite ruler --lengths 8k,128k --out ruler

    \b
    LongPPL asks all of them for the tokens that one model needed long context for, in text that
    none of them was trained on: not the corpus of the shards.
      lrtrain score unseen/ --model ./judge-128k --out keys
      lrtrain eval base=./llama3-8b runs/128k/merged --suite longppl --keys keys --out longppl
    """
    from lrtrain.evaluation import NeedleTemplate, print_report
    from lrtrain.evaluation import evaluate as run_evaluation

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
        tasks=[name.strip() for name in options.pop("tasks").split(",")],
        needle=NeedleTemplate(
            **{name: value for name, value in given.items() if value is not None}
        ),
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
