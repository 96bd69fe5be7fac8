"""The softmax scale that short rows are trained with."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata.errors import LongRecipeError
from lrtrain.attention_scale import parse_attention_scale, scale_in_training

LENGTHS = st.integers(2, 1 << 20)


@given(st.tuples(LENGTHS, LENGTHS).map(sorted))
def test_what_singles_out_one_of_l_keys_singles_out_one_of_t_without_the_factor(
    lengths: list[int],
) -> None:
    """A key whose logit is log L above all others' when scaled is log T above them unscaled."""
    train_len, target_len = lengths
    scale = scale_in_training("auto", train_len, target_len)
    assert 0 < scale <= 1
    assert math.log(train_len) / scale == pytest.approx(math.log(target_len))


def test_rows_of_the_whole_window_are_trained_as_ever() -> None:
    assert scale_in_training("auto", 2048, 2048) == 1.0
    assert scale_in_training(0.7, 2048, 2048) == 0.7


def test_by_hand() -> None:
    assert scale_in_training("auto", 608, 2048) == pytest.approx(0.84073, abs=1e-5)
    assert scale_in_training("auto", 39_312, 131_072) == pytest.approx(0.89780, abs=1e-5)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "log", ""])
def test_what_is_no_scale_is_refused(text: str) -> None:
    with pytest.raises(LongRecipeError, match="--attention-scale"):
        parse_attention_scale(text)
    assert parse_attention_scale(" auto ") == "auto"
    assert parse_attention_scale("0.7") == 0.7
