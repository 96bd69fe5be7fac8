"""Thrift's compact protocol, as far as the headers and footers of Parquet need it: writing only.

    struct({1: i32(7), 3: binary(b"name")})      # fields by their number in parquet.thrift

A value is its type and its bytes. Integers are varints of 7 bits a byte, zigzagged so that small
negative numbers are short; a field says its number as the difference to the one before.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_TRUE, _FALSE, _I16, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 2, 4, 5, 6, 8, 9, 12


class Value(NamedTuple):
    """A Thrift value: its type in the compact protocol, and its bytes."""

    kind: int
    data: bytes


def varint(number: int) -> bytes:
    """A number >= 0, seven bits a byte, the lowest first."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def zigzag(number: int) -> int:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    return 2 * number if number >= 0 else -2 * number - 1


def boolean(value: bool) -> Value:
    return Value(_TRUE if value else _FALSE, b"")


def i16(value: int) -> Value:
    return Value(_I16, varint(zigzag(value)))


def i32(value: int) -> Value:
    return Value(_I32, varint(zigzag(value)))


def i64(value: int) -> Value:
    return Value(_I64, varint(zigzag(value)))


def binary(value: bytes) -> Value:
    return Value(_BINARY, varint(len(value)) + value)


def struct(fields: Mapping[int, Value | None]) -> Value:
    """A struct or union of fields in the order of their numbers; None leaves one out."""
    data, before = bytearray(), 0
    for number, value in fields.items():
        if value is None:
            continue
        step = number - before
        if not 0 < step < 16:
            raise ValueError(f"field {number} after {before}")
        data.append(step << 4 | value.kind)
        data += value.data
        before = number
    return Value(_STRUCT, bytes(data) + b"\0")


def listed(values: Sequence[Value]) -> Value:
    """A list of values of one type; booleans are a byte each. An empty one is of structs."""
    kinds = {_TRUE if value.kind == _FALSE else value.kind for value in values} or {_STRUCT}
    if len(kinds) > 1:
        raise ValueError(f"a list of values of {len(kinds)} types")
    (kind,) = kinds
    count = len(values)
    head = bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + varint(count)
    if kind == _TRUE:
        return Value(_LIST, head + bytes(value.kind for value in values))
    return Value(_LIST, head + b"".join(value.data for value in values))
