"""Whether a value that JSON held is of a type as Python writes it.

fits([1, 2], list[int])     # True
fits(True, int)             # False: to Python a bool is an int, but to nobody else
"""

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

LONGEST_TEXT = 4096
"""Characters of a text: no path or name of ours is longer."""

Scalar = str | int | float | bool | None
FLAT = Scalar | list[Scalar] | dict[str, Scalar]
"""What an option may be, known or not."""


def fits(value: Any, kind: Any) -> bool:
    """Numbers fit 64 bits and texts are no longer than LONGEST_TEXT, whatever the type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:  # a later version may have more of them
        return any(fits(value, type(each)) for each in inner)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, inner[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(
            fits(key, inner[0]) and fits(item, inner[1]) for key, item in value.items()
        )
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, float) or fits(value, int)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT
    return isinstance(value, kind)
