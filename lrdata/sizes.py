"""Sizes as people write them: 128k (= 131,072 tokens), 38400, 30%, 64MB; and 350GB a second."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import click

from lrdata.errors import LongRecipeError


def parse_count(text: str | int) -> int:
    """`128k` -> 131072, `38400` -> 38400, `64MB` -> 67108864. Else raises LongRecipeError."""
    return _parsed(text, 1024, "a size; write 131072, 128k or 64MB", "131072 or 128k")


def _parsed(text: str | int, thousand: int, what: str, whole: str) -> int:
    """`thousand`: what k stands for. The others say what it should have been."""
    written = str(text).strip().lower().replace("_", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmg])b?)?", written)
    if not match:
        raise LongRecipeError(f"{text!r} is not {what}")
    value = Fraction(match[1]) * thousand ** ("kmg".index(match[2]) + 1 if match[2] else 0)
    if value.denominator != 1:
        raise LongRecipeError(f"{text!r} is not a whole number; write {whole}")
    return int(value)


def parse_counts(text: str | list[int]) -> list[int]:
    """`8k,32k` -> [8192, 32768], a list as it is. Else raises LongRecipeError."""
    return text if isinstance(text, list) else [parse_count(part) for part in text.split(",")]


def parse_speed(text: str | int) -> int:
    """`350GB` -> 350,000,000,000, bytes a second as data sheets have them. Else LongRecipeError."""
    return _parsed(text, 1000, "a speed; write 350GB", "350GB")


def parse_share(text: str | float) -> float:
    """`30%` -> 0.3, `0.3` -> 0.3. Raises LongRecipeError unless the share is in [0, 1]."""
    try:
        written = str(text).strip()
        value = float(written[:-1]) / 100 if written.endswith("%") else float(written)
    except ValueError:
        raise LongRecipeError(f"{text!r} is not a share; write 10% or 0.1") from None
    if not 0 <= value <= 1:
        raise LongRecipeError(f"{text!r} is not between 0 and 100 %")
    return value


class _Parsed(click.ParamType):
    """A click type for a function that raises LongRecipeError; what is parsed already stays."""

    parse: Callable[[Any], Any]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parse(value)
        except LongRecipeError as problem:
            self.fail(str(problem), param, ctx)


class Count(_Parsed):
    """A click type for `parse_count`."""

    name, parse = "size", staticmethod(parse_count)


class Counts(_Parsed):
    """A click type for `parse_counts`."""

    name, parse = "sizes", staticmethod(parse_counts)


class Speed(_Parsed):
    """A click type for `parse_speed`."""

    name, parse = "speed", staticmethod(parse_speed)


class Share(_Parsed):
    """A click type for `parse_share`."""

    name, parse = "share", staticmethod(parse_share)


def format_tokens(count: int) -> str:
    """`32k`, `1,536`: a number of tokens as people write it."""
    return f"{count // 1024}k" if count and count % 1024 == 0 else f"{count:,}"


def format_bytes(count: int) -> str:
    """`512 bytes`, `3.4 MB`, `1.2 GB`: powers of 1,000, as disks are sold."""
    if count < 1000:
        return f"{count} bytes"
    for unit in ("kB", "MB", "GB"):
        count_in_unit = count / 1000 ** (1 + ("kB", "MB", "GB").index(unit))
        if count_in_unit < 999.5:
            return f"{count_in_unit:.1f} {unit}"
    return f"{count / 1e12:.1f} TB"
