"""`lrtrain run`, `plan` and `doctor`: options and help; the work is elsewhere."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import click

from lrdata.cli_config import config_option
from lrdata.cli_json import json_option, print_json
from lrdata.errors import LongRecipeError
from lrdata.sizes import Count, Speed
from lrtrain.attention_scale import AttentionScale, parse_attention_scale
from lrtrain.cli_next import eval_command, run_command
from lrtrain.interrupt import end_after_the_first, speaks


class Names(click.ParamType[tuple[str, ...]]):
    """Words with commas between them, as a tuple."""

    name = "names"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        return tuple(name.strip() for name in value.split(",") if name.strip())


class Dataset(click.ParamType[Path | str]):
    """A folder, or an address."""

    name = "folder or address"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path | str:
        return value if "://" in str(value) else Path(value)


class Scale(click.ParamType[AttentionScale]):
    """auto, or a number above 0."""

    name = "auto or number"

    def convert(self, value: Any, param: Any, ctx: Any) -> AttentionScale:
        return parse_attention_scale(str(value))


def _once(make: Callable[[], Any]) -> Any:
    """What `make` gives. Where it fails it does on all ranks of a host that torchrun started: the
    first of them says so."""
    try:
        return make()
    except (click.ClickException, LongRecipeError):
        if not speaks("LOCAL_RANK"):
            end_after_the_first()
        raise


class OfRanks(click.Command):
    """A command that torchrun may start many times: what is wrong with its options is said once."""

    def make_context(self, *given: Any, **options: Any) -> click.Context:
        made: click.Context = _once(partial(super().make_context, *given, **options))
        return made


_MEMORY_OPTIONS = (
    click.option(
        "--masters",
        type=click.Choice(["fp32", "none"]),
        default="fp32",
        show_default=True,
        help="fp32: master weights in fp32 precision beside bf16 parameters; none: update bf16 "
        "with stochastic rounding, 2 bytes a parameter less.",
    ),
    click.option(
        "--gradients",
        type=click.Choice(["fp32", "bf16"]),
        default="fp32",
        show_default=True,
        help="What they are added up in; bf16 with stochastic rounding.",
    ),
    click.option(
        "--moments",
        type=click.Choice(["fp32", "8bit"]),
        default="fp32",
        show_default=True,
        help="AdamW's running averages; 8bit needs the extra gpu.",
    ),
    click.option(
        "--offload",
        type=Names(),
        default="",
        help="To host memory: optimizer, activations (with --checkpointing), or both with a comma.",
    ),
    click.option("--checkpointing", is_flag=True, help="Recompute layers: less memory, more time."),
    click.option(
        "--mlp-tokens",
        type=Count(),
        default=0,
        help="MLPs so many tokens at once, for very long rows.  [default: all]",
    ),
)


def memory_options(command: Any) -> Any:
    """The options that save memory, which `run` takes and `plan` weighs."""
    for option in reversed(_MEMORY_OPTIONS):
        command = option(command)
    return command


def _names_of_recipe() -> list[str]:
    """What a run's recipe.json says of the next run."""
    from lrtrain.recipe import TrainRecipe

    return ["model", *(option.name for option in fields(TrainRecipe))]


@click.command(cls=OfRanks)
@click.argument("shards", type=Dataset())
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
    type=Scale(),
    default="1",
    show_default=True,
    help="Factor on the softmax scale, for extend rows only; below 1 teaches sharper attention. "
    "auto: log L / log T for rows of L tokens of a window of T; worth it where they are 20 % or "
    "more.",
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
    help="Backend: auto (the fastest here that is right), sdpa, cudnn, varlen, flash2, flash3, "
    "flash4, or dense (the definition, for checks on short rows); cudnn+flash2: the first for rows "
    "of one document, the second for rows of several.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp32"]),
    default="bf16",
    show_default=True,
    help="Of the parameters.",
)
@click.option(
    "--merge-weight",
    type=float,
    default=0.5,
    show_default=True,
    help="Share of the trained model in the merged one.",
)
@memory_options
@click.option(
    "--chunk-tokens",
    type=Count(),
    default=1024,
    show_default=True,
    help="Tokens whose logits are in memory at once.",
)
@click.option(
    "--holdout-every",
    type=int,
    default=0,
    show_default=True,
    help="Steps between losses on holdout windows; 0: after the last.",
)
@click.option(
    "--holdout-rows",
    type=Count(),
    default=4,
    show_default=True,
    help="Holdout windows that are measured, whole ones; 0: none.",
)
@click.option(
    "--checkpoint-every",
    type=int,
    help="Steps between checkpoints; 0: only when a signal stops the run or a model cannot be "
    "saved.  [default: when 20 minutes have passed]",
)
@click.option(
    "--keep-checkpoints",
    type=Count(),
    default=1,
    show_default=True,
    help="How many of the last ones stay; each has 4 to 12 bytes a parameter.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@click.option("--compile", is_flag=True, help="Fuse kernels of MLPs and norms: torch.compile.")
@click.option("--tensorboard", is_flag=True, help="Write to OUT/tensorboard too.")
@click.option(
    "--context-parallel",
    type=Count(),
    default=1,
    show_default=True,
    help="Under torchrun: ranks that a row is split over.",
)
@click.option(
    "--data-parallel",
    type=Count(),
    help="Under torchrun: how many ranks, or groups of --context-parallel ranks, get different "
    "rows.  [default: all]",
)
@click.option(
    "--rank-timeout",
    type=Count(),
    default=600,
    show_default=True,
    help="Seconds after which a rank that does not answer ends the run.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@config_option(_names_of_recipe)
def run(shards: Path | str, model: str, out: Path, stages: str, **options: Any) -> None:
    """Extend MODEL on SHARDS, anneal on their replay rows, merge with the original.

    SHARDS is a folder, or hf://datasets/owner/name[@revision]: then a shard is fetched when its
    first row is read.

    \b
    OUT/extend, OUT/anneal, OUT/merged   plain Hugging Face models
    OUT/metrics.jsonl, OUT/loss.png      loss by step, on training rows and holdout windows
    OUT/recipe.json                      what was asked for
    A stage whose folder is there is not done again, and one that was stopped goes on from its last
    checkpoint: run the same command.

    \b
    Examples:
      lrtrain plan shards/ --model ./llama3-8b --gpu-memory 80GB --host-memory 64GB
      lrtrain run shards/ --model ./llama3-8b --out runs/128k --checkpointing --moments 8bit \\
          --offload optimizer,activations
      lrtrain run shards/ --model ./llama3-8b --out runs/128k --stages anneal,merge
      torchrun --nproc-per-node 8 -m lrtrain run shards/ --model ./llama3-8b --out runs/128k \\
          --checkpointing --context-parallel 2
    """
    from lrtrain.recipe import TrainRecipe
    from lrtrain.stages import run as run_stages

    names = tuple(name.strip() for name in stages.split(","))
    recipe = _once(lambda: TrainRecipe(stages=names, **options))
    made = run_stages(shards, model, out, recipe, click.echo)
    if made:  # of many ranks the first says so
        click.echo(f"made {', '.join(map(str, made))}")
        from lrdata.dataset import open_dataset

        eot = None
        with suppress(LongRecipeError):  # an address that answers no more undoes no run
            eot = open_dataset(shards).manifest.recipe.get("eot")
        command = eval_command(model, made[-1], eot)
        click.echo(f"see what it retrieves with: {command}")


@click.command()
@click.argument("shards", type=Dataset())
@click.option("--model", required=True, help="The model to extend: a folder or a hub id.")
@click.option("--gpu-memory", type=Count(), help="Of the card: 80GB.  [default: the one here]")
@click.option("--host-memory", type=Count(), help="Beside it: 64GB.  [default: what is here]")
@click.option("--gpu", help="Its name, for the time: H100, A100, ...  [default: the one here]")
@click.option("--gpus", type=Count(), default=1, show_default=True, help="How many.")
@click.option("--gpus-per-host", type=Count(), default=8, show_default=True)
@click.option(
    "--link", type=Speed(), help="Bytes a second among GPUs of a host.  [default: 350GB, NVLink]"
)
@click.option(
    "--network",
    type=Speed(),
    help="The same to other hosts, for each.  [default: 40GB, 400 Gbit/s]",
)
@click.option(
    "--mfu",
    type=float,
    default=0.4,
    show_default=True,
    help="Share of the peak that one GPU does: `mfu` in the metrics of a run of yours.",
)
@click.option("--context-parallel", type=Count(), default=1, show_default=True)
@click.option("--steps", type=Count(), help="As for `lrtrain run`.")
@click.option("--rows-per-step", type=Count(), default=96, show_default=True)
@click.option("--micro-tokens", type=Count(), default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@memory_options
@click.option("--chunk-tokens", type=Count(), default=1024, show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu: plan for no GPU.")
@json_option
def plan(
    shards: Path | str,
    model: str,
    gpu_memory: int | None,
    host_memory: int | None,
    gpu: str | None,
    gpus: int,
    gpus_per_host: int,
    link: int | None,
    network: int | None,
    mfu: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what `lrtrain run` would take, before paying: memory on the card, time a step.

    A step of the real code runs on tensors without data, in a minute or two on any machine. The
    table shows what each option saves, and what rows of full length would take. With --gpus, all
    figures are those of one rank of so many, and a second table has every mix of rows dealt out
    and split.

    \b
    Examples:
      lrtrain plan shards/ --model ./llama3-8b --gpu-memory 80GB --host-memory 64GB --gpu H100
      lrtrain plan shards/ --model ./llama3-8b --gpu-memory 80GB --gpu H100 --gpus 16
    """
    from lrtrain.plan import make_plan
    from lrtrain.plan_print import print_plan
    from lrtrain.plan_ranks import LINK, NETWORK, Cluster
    from lrtrain.recipe import TrainRecipe

    found = make_plan(
        shards,
        model,
        TrainRecipe(**options),
        memory=gpu_memory,
        host_memory=host_memory,
        device_name=gpu,
        cluster=Cluster(gpus, gpus_per_host, link or LINK, network or NETWORK),
        mfu=mfu,
    )
    if as_json:
        print_json(found.as_json())
    else:
        print_plan(found)


@click.command()
@click.argument("shards", type=Dataset())
@click.option("--model", required=True, help="The model to extend: a folder or a hub id.")
@click.option("--rope", default="auto", show_default=True, help="As for `lrtrain run`.")
@click.option("--attention", default="auto", show_default=True, help="As for `lrtrain run`.")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--micro-tokens", type=Count(), default=0, show_default=True)
@memory_options
@click.option("--chunk-tokens", type=Count(), default=1024, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:0.")
@json_option
def doctor(shards: Path | str, model: str, as_json: bool, **options: Any) -> None:
    """Say whether `lrtrain run` would train what it should, with MODEL and SHARDS, on this machine.

    Attention crosses gaps and stops at documents; rotary frequencies after loading and saving;
    tokenizer; weights; shards; the loss in chunks; memory, with the options of your run. A line
    each, with what to do where one fails.
    """
    from lrtrain.doctor import examine
    from lrtrain.recipe import TrainRecipe

    findings, recipe = [], TrainRecipe(**options)
    for finding in examine(shards, model, recipe):
        findings.append(finding)
        if not as_json:
            click.echo(str(finding))
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    failed = sum(not finding.ok for finding in findings)
    if failed:
        raise LongRecipeError(f"{failed} of the checks failed; each line says what to do")
    if not as_json:
        click.echo(f"train with: {run_command(shards, model, recipe)}")
