"""Values of JSON against types."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from lrdata.typed_json import FLAT, LONGEST_TEXT, fits


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((1, int), (-(2**63) + 1, int), (1, float), (1.5, float), ("a", str), (True, bool)),
        *((None, str | None), ("a", str | None), ([1, 2], list[int]), ([], tuple[str, ...])),
        *((["a"], tuple[str, ...]), ({"a": 1}, Mapping[str, float]), ({}, dict[str, str])),
        *(("b", Literal["a"]), ([1, "a", None], FLAT), ({"a": False}, FLAT), (object(), Any)),
    ],
)
def test_what_fits(value: object, kind: Any) -> None:
    assert fits(value, kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((True, int), (True, float), (2**63, int), ("1", int), (None, str), (1, bool), (1, str)),
        *(("x" * (LONGEST_TEXT + 1), str), ([1, "2"], list[int]), (5, tuple[str, ...])),
        *(("ab", tuple[str, ...]), ({"a": "b"}, Mapping[str, float]), ([], dict[str, str])),
        *((1, Literal["a"]), ([[1]], FLAT), ({"a": [1]}, FLAT), ([2**70], FLAT)),
    ],
)
def test_what_does_not_fit(value: object, kind: Any) -> None:
    assert not fits(value, kind)
