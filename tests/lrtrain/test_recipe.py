"""A recipe refuses what cannot be trained with, by the name of the option."""

import json

import pytest

from lrdata.errors import LongRecipeError
from lrtrain.loop import CHECKPOINT_SECONDS
from lrtrain.recipe import TrainRecipe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stages": ()}, "--stages"),
        ({"stages": ("extend", "extend")}, "order"),
        ({"schedule": "step"}, "--schedule step"),
        ({"dtype": "fp16"}, "--dtype fp16"),
        ({"token_weights": "digits"}, "--token-weights digits is unknown; choose one of none, "),
        ({"rows_per_step": 0}, "--rows-per-step 0"),
        ({"steps": 0}, "--steps 0"),
        ({"lr": -1.0}, "--lr -1.0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"attention_scale": 0.0}, "--attention-scale"),
        ({"warmup": 1.5}, "--warmup 1.5"),
        ({"merge_weight": -0.1}, "--merge-weight"),
        ({"holdout_every": -1}, "--holdout-every -1"),
        ({"checkpoint_every": -1}, "--checkpoint-every -1"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints 0"),
        ({"micro_tokens": -1}, "--micro-tokens -1"),
        ({"clip": -1.0}, "--clip -1.0"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0"),
        ({"beta2": 1.0}, "--beta2 1.0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(LongRecipeError) as problem:
        TrainRecipe(**change)  # type: ignore[arg-type]
    assert named in str(problem.value)
    assert "\n" not in str(problem.value)


def test_the_defaults_are_the_papers() -> None:
    recipe = TrainRecipe()
    assert (recipe.rows_per_step, recipe.lr, recipe.anneal_lr) == (96, 5e-5, 5e-6)
    assert recipe.merge_weight == 0.5
    assert recipe.attention_scale == 1.0
    assert recipe.token_weights == "none"


def test_a_run_can_go_on_unless_told_otherwise() -> None:
    """20 minutes are lost; 0 is allowed, for a run that is stopped by signals alone."""
    recipe = TrainRecipe()
    assert (recipe.checkpoint_every, recipe.keep_checkpoints) == (None, 1)
    assert CHECKPOINT_SECONDS == 20 * 60
    assert TrainRecipe(checkpoint_every=0).checkpoint_every == 0


def test_it_is_plain_json() -> None:
    values = TrainRecipe(stages=("extend",)).as_json()
    assert json.loads(json.dumps(values)) == values
