"""LongRecipe, offline half: a text corpus to shards of compressed long-context rows.

    import lrdata

    if __name__ == "__main__":  # a build starts processes, which import this script
        recipe = lrdata.BuildRecipe(("books/",), tokenizer="./llama3-8b", target_len=131072)
        lrdata.build(recipe, "shards")
        row = lrdata.open_dataset("shards").read_row("extend", 0)

What is here is what the commands are made of, and stays; other modules may change.
"""

from typing import TYPE_CHECKING

from lrdata.public import late

if TYPE_CHECKING:
    from lrdata.building import build as build
    from lrdata.dataset import open_dataset as open_dataset
    from lrdata.errors import LongRecipeError as LongRecipeError
    from lrdata.exporting import export as export
    from lrdata.hub import pull as pull
    from lrdata.hub import push as push
    from lrdata.lexicon import make_lexicon as make_lexicon
    from lrdata.manifest import Manifest as Manifest
    from lrdata.plan import make_plan as make_plan
    from lrdata.rebuilding import Rebuilt as Rebuilt
    from lrdata.rebuilding import rebuild as rebuild
    from lrdata.recipe import BuildRecipe as BuildRecipe
    from lrdata.report.dataset import write_report as write_report
    from lrdata.retargeting import retarget as retarget
    from lrdata.scores import open_scores as open_scores
    from lrdata.shards import Row as Row
    from lrdata.shards import Shards as Shards
    from lrdata.verifying import verify as verify

    __version__: str

if not TYPE_CHECKING:  # a checker would take any name from __getattr__
    __getattr__, __dir__ = late(
        __name__,
        {
            "building": ("build",),
            "dataset": ("open_dataset",),
            "errors": ("LongRecipeError",),
            "exporting": ("export",),
            "hub": ("pull", "push"),
            "lexicon": ("make_lexicon",),
            "manifest": ("Manifest",),
            "plan": ("make_plan",),
            "rebuilding": ("Rebuilt", "rebuild"),
            "recipe": ("BuildRecipe",),
            "report.dataset": ("write_report",),
            "retargeting": ("retarget",),
            "scores": ("open_scores",),
            "shards": ("Row", "Shards"),
            "verifying": ("verify",),
        },
    )
