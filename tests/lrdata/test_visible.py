"""What a terminal or a browser would obey, or not show, is a sign; all other text is as it was."""

import sys
import unicodedata

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lrdata.commands import Commands
from lrdata.errors import LongRecipeError
from lrdata.visible import visible


def test_what_does_something_is_a_sign() -> None:
    assert visible("a\x1b[31m\0\r\n\t\x7f\x9b") == "a␛[31m␀␍␊␉␡�"
    assert visible("two\n\tlines\r", keep="\n\t") == "two\n\tlines␍"
    assert visible("\u202egnp.exe\u2066 \ud800") == "�gnp.exe� �"


@pytest.mark.parametrize(
    "char", ["\u200b", "\u2060", "\u206a", "\u206f", "\ufeff", "\ufff9", "\ufffb", "\U000e0041"]
)
def test_what_hides_in_a_name_is_a_sign(char: str) -> None:
    assert visible(f"ad{char}min") == "ad�min"


@pytest.mark.parametrize("text", ["naïve 的 “x” — ½", "👩‍🔬 🤷🏽", "می‌خواهم", "क्‍ष", "a\u00a0b"])
def test_letters_marks_and_their_joiners_stay(text: str) -> None:
    assert visible(text) == text


@given(st.text(st.characters()))
def test_a_sign_is_one_character_for_one_and_nothing_is_left_to_do(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    assert visible(shown) == shown
    assert shown.encode().decode() == shown
    for before, after in zip(text, shown, strict=True):
        if before.isprintable():
            assert after == before


def test_no_control_character_is_left() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    left = {unicodedata.category(char) for char in visible(every)}
    assert not left & {"Cc", "Cs"}


@pytest.mark.parametrize("problem", [LongRecipeError, click.ClickException, ValueError])
def test_an_error_of_any_command_is_shown_so(problem: type[Exception]) -> None:
    def work() -> None:
        raise problem("the name \x1b]8;;http://evil\x07\u202e\ud800 is\nodd")

    group = Commands("tool")
    group.command("work")(work)
    done = CliRunner().invoke(group, ["work"])
    assert done.exit_code == 1
    assert "the name ␛]8;;http://evil␇�� is odd" in done.stderr
