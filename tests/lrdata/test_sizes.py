import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lrdata.errors import LongRecipeError
from lrdata.sizes import Count, Counts, Share, Speed, parse_count, parse_share, parse_speed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("128k", 131_072),
        ("128K", 131_072),
        ("38400", 38_400),
        ("38_400", 38_400),
        (38_400, 38_400),
        ("1.5k", 1_536),
        ("1m", 1_048_576),
        ("64MB", 67_108_864),
        ("64 mb", 67_108_864),
        (" 2g ", 2 * 1024**3),
        ("0", 0),
        ("9007199254740993", 9_007_199_254_740_993),  # not a float
    ],
)
def test_sizes_as_people_write_them(text: str | int, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5", "0.1k", "12x", "1e3", "128 k b", "∞"])
def test_what_is_not_a_size_is_one_clear_line(text: str) -> None:
    with pytest.raises(LongRecipeError, match=r"is not a (size|whole number); write 131072"):
        parse_count(text)


def test_a_size_too_large_for_a_float_is_still_a_size() -> None:
    assert parse_count("9" * 400) == int("9" * 400)


@given(st.integers(0, 10**30), st.sampled_from([("", 1), ("k", 1024), ("MB", 1024**2)]))
def test_every_count_comes_back(number: int, unit: tuple[str, int]) -> None:
    assert parse_count(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize(
    ("text", "value"),
    [("30%", 0.3), ("0.3", 0.3), (0.3, 0.3), ("0", 0.0), ("100%", 1.0), (" 0.5 % ", 0.005)],
)
def test_shares(text: str | float, value: float) -> None:
    assert parse_share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "ten", "nan", "inf", "-1%", "101%", "1.01", "10%%"])
def test_what_is_not_a_share(text: str) -> None:
    with pytest.raises(LongRecipeError, match=r"not (a share|between)"):
        parse_share(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("350GB", 350e9), ("40 g", 40e9), ("1.5k", 1500), ("25000000000", 25e9), (7, 7)],
)
def test_speeds_as_data_sheets_have_them(text: str | int, value: float) -> None:
    assert parse_speed(text) == value


@pytest.mark.parametrize("text", ["", "fast", "350GB/s", "-1g", "0.0001k"])
def test_what_is_not_a_speed_is_one_clear_line(text: str) -> None:
    with pytest.raises(LongRecipeError, match=r"is not a (speed|whole number); write 350GB"):
        parse_speed(text)


@click.command()
@click.option("--length", type=Count(), default="1k")
@click.option("--lengths", type=Counts(), default="8k,32k")
@click.option("--ratio", type=Share(), default="10%")
@click.option("--link", type=Speed(), default="1k")
def command(length: int, lengths: list[int], ratio: float, link: int) -> None:
    click.echo(f"{length} {lengths} {ratio} {link}")


def test_click_options_have_defaults_and_values() -> None:
    assert CliRunner().invoke(command, []).output == "1024 [8192, 32768] 0.1 1000\n"
    given_all = ["--length", "2k", "--lengths", "16, 1k", "--ratio", "0.5", "--link", "2k"]
    assert CliRunner().invoke(command, given_all).output == "2048 [16, 1024] 0.5 2000\n"


@pytest.mark.parametrize(
    "arguments",
    [["--length", "x"], ["--lengths", "8k,,1k"], ["--ratio", "200%"], ["--link", "1 Gbit"]],
)
def test_a_wrong_option_is_bad_usage_that_names_the_option(arguments: list[str]) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.output
