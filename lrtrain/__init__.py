"""LongRecipe, training half: shards to an extended, annealed and merged model.

    import lrtrain

    recipe = lrtrain.TrainRecipe(checkpointing=True, moments="8bit", offload=("optimizer",))
    models = lrtrain.run("shards", "./llama3-8b", "runs/128k", recipe)
    lrtrain.evaluate([models[-1]], lengths=[8192, 131072], out="eval")

What is here is what the commands are made of, and stays; other modules may change.
"""

from typing import TYPE_CHECKING

from lrdata.public import late

if TYPE_CHECKING:
    from lrtrain.doctor import examine as examine
    from lrtrain.evaluation import NeedleTemplate as NeedleTemplate
    from lrtrain.evaluation import evaluate as evaluate
    from lrtrain.merge import merge_models as merge_models
    from lrtrain.plan import make_plan as make_plan
    from lrtrain.recipe import TrainRecipe as TrainRecipe
    from lrtrain.scoring import ScoreRecipe as ScoreRecipe
    from lrtrain.scoring import score as score
    from lrtrain.stages import run as run

    __version__: str

if not TYPE_CHECKING:  # a checker would take any name from __getattr__
    __getattr__, __dir__ = late(
        __name__,
        {
            "doctor": ("examine",),
            "evaluation": ("NeedleTemplate", "evaluate"),
            "merge": ("merge_models",),
            "plan": ("make_plan",),
            "recipe": ("TrainRecipe",),
            "scoring": ("ScoreRecipe", "score"),
            "stages": ("run",),
        },
    )
