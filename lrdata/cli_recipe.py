"""The options of a recipe on the command line: what `lrdata build` and `lrdata plan` share."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from lrdata.cli_config import config_option, is_stored
from lrdata.errors import LongRecipeError
from lrdata.manifest import shortened
from lrdata.recipe import POSITIONS, WRITTEN, BuildRecipe, leads_elsewhere
from lrdata.sizes import Count, Share, parse_count, parse_share
from lrdata.visible import visible

_RECIPE = (
    click.argument("corpora", nargs=-1, required=True),
    click.option("--tokenizer", required=True, help="A folder with tokenizer.json, or a hub id."),
    click.option(
        "--target-len", type=Count(), required=True, help="The window to extend to: 128k."
    ),
    click.option("--train-len", help="Tokens of a row: 38400 or 30%.  [default: 30%]"),
    click.option(
        "--positions",
        default="longrecipe",
        show_default=True,
        help=f"Position scheme: {', '.join(POSITIONS)}.",
    ),
    click.option(
        "--segment-tokens",
        type=Count(),
        default=88,
        show_default=True,
        help="About how many tokens keep consecutive positions.",
    ),
    click.option(
        "--impact",
        default="returns",
        show_default=True,
        help="What makes a token impactful: returns (its type came before, but not in the last "
        "1/32 of the window; returns:4k: not in the last 4k tokens); lexicon:FILE (see `lrdata "
        "lexicon`); scores:DIR (see `lrtrain score`); digits (the rule of the paper's released "
        "code); random; or none (keep the start, or what cream and endprompt place, or the two "
        "chunks that pose takes).",
    ),
    click.option(
        "--select",
        default="auto",
        show_default=True,
        help="draw: sentences with impactful tokens, at random; top: by mean score; auto: draw for "
        "digits and random, top for the others.",
    ),
    click.option(
        "--evidence",
        type=Count(),
        metavar="TOKENS",
        help="Keep sentences with impactful tokens together with what these may be copied from: "
        "the same rare words, at least so far back (4k); 0: do not.  [default: as far back as "
        "`returns` looks; 0 with other scorers]",
    ),
    click.option(
        "--join",
        default="attend",
        show_default=True,
        help="Whether documents joined in a window attend to each other: attend, mask.",
    ),
    click.option(
        "--replay",
        multiple=True,
        help="Short texts for the annealing stage: a file, folder or glob, of all of which a fair "
        "sample is drawn, for which it is read twice; repeatable.",
    ),
    click.option(
        "--replay-ratio",
        type=Share(),
        default="10%",
        show_default=True,
        help="Replay tokens as a share of the extend tokens.",
    ),
    click.option(
        "--prompt-field", help="Replay records: the prompt; only the response is learned."
    ),
    click.option("--response-field", help="Replay records: the response."),
    click.option(
        "--chat-template", is_flag=True, help="Write prompts in the tokenizer's template."
    ),
    click.option(
        "--holdout",
        type=Share(),
        default="0%",
        show_default=True,
        help="Share of documents that are kept out of training and joined to whole windows, unit "
        "by unit: too small a share fills none. Replay of the same file leaves them out too.",
    ),
    click.option("--max-rows", type=Count(), help="Stop after so many rows, in corpus order."),
    click.option(
        "--min-doc-tokens",
        type=Count(),
        default=1,
        show_default=True,
        help="Set shorter documents aside.",
    ),
    click.option(
        "--weight",
        multiple=True,
        metavar="SOURCE=W",
        help="Use a source's documents W times (2) or a share of them (0.5), but not in replay, "
        "which is drawn by size; repeatable.",
    ),
    click.option(
        "--license",
        "licence",
        multiple=True,
        metavar="SOURCE=ID",
        help="A source's licence, for the dataset card. The same command with it adds it to a "
        "finished dataset; earlier ones stay. Repeatable.",
    ),
    click.option("--text-field", default="text", show_default=True, help="Field of the text."),
    click.option("--id-field", help="Field of the document id.  [default: file and record]"),
    click.option(
        "--source-field",
        help="Field of the source: a label of documents. Windows mix them; a row has the label of "
        "its first.  [default: the folder or file]",
    ),
    click.option("--eot", help="End-of-text token.  [default: the tokenizer's]"),
    click.option(
        "--encoder",
        type=click.Choice(["auto", "fastokens", "tokenizers"]),
        default="auto",
        show_default=True,
        help="Which library encodes; the ids are the same.",
    ),
    click.option("--seed", type=int, default=0, show_default=True),
    # Only for what a stored recipe may hold: units fit the corpus by themselves.
    click.option("--unit-bytes", type=Count(), default=0, hidden=True),
    config_option(lambda: [option.name for option in fields(BuildRecipe)]),
)
"""What is built: the arguments of `build` and `plan`, the fields of a BuildRecipe, and --config."""


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a recipe to a command, in their order."""
    for option in reversed(_RECIPE):
        command = option(command)
    return command


def recipe_of(options: dict[str, Any]) -> BuildRecipe:
    """The recipe that command line options spell."""
    options["licences"] = _pairs("--license", options.pop("licence"))
    options["weights"] = {
        source: _number("--weight", value)
        for source, value in _pairs("--weight", options.pop("weight")).items()
    }
    options["train_len"] = _train_len(options.pop("train_len"), options["target_len"])
    if options["evidence"] is None:
        del options["evidence"]  # the recipe derives it
    recipe = BuildRecipe(**options)
    _refuse_places(recipe)
    return recipe


def _refuse_places(recipe: BuildRecipe) -> None:
    """A manifest stores names: one that leads anywhere else may be a stranger's, who wants a file
    of this machine in a dataset, or something sent for. Raises LongRecipeError."""
    context = click.get_current_context()
    for name in ("corpora", "replay", "tokenizer", "impact"):
        value = getattr(recipe, name)
        for place in [value] if isinstance(value, str) else value:
            path = place.partition(":")[2] if name == "impact" else place
            if is_stored(context, name) and leads_elsewhere(path):
                raise LongRecipeError(
                    f"{name} of --config is {shortened(place)}, which is not in this folder; write "
                    "it on the command line, if you want it"
                )


def without_foreign_sources(recipe: BuildRecipe) -> BuildRecipe:
    """Without the weights and licences that a manifest, given as --config, has of sources that this
    corpus has not: they are of what it was built from. Says which. What a person wrote stays, for
    the build to refuse."""
    context = click.get_current_context()
    stored = {
        option: getattr(recipe, option)
        for option, parameter in (("weights", "weight"), ("licences", "licence"))
        if is_stored(context, parameter)
    }
    if not any(stored.values()):
        return recipe
    from lrdata.corpus import find_files

    found = find_files(recipe.corpora), find_files(recipe.replay)
    left = recipe.without_unknown_sources(list(stored), *found)
    for option, said in stored.items():
        for source in sorted(said.keys() - getattr(left, option).keys()):
            what = visible(f"--{WRITTEN[option]} {source}={said[source]}")
            click.echo(f"left out of --config: {what}: there is no source of that name", err=True)
    return left


def _pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        source, equals, given = value.rpartition("=")
        if not equals or not source or not given:
            raise click.BadParameter(f"{option} {value}: write SOURCE=VALUE")
        pairs[source] = given
    return pairs


def _number(option: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{option} {value}: not a number") from None


def _train_len(text: str | None, target_len: int) -> int:
    """0 (the default share) without the option; a share is floored to a multiple of 16."""
    if text is None:
        return 0
    if text.strip().endswith("%"):
        return int(parse_share(text) * target_len) // 16 * 16
    return parse_count(text)
