"""Thrift's compact protocol, as far as the headers and footers of Parquet need it.

    struct({1: i32(7), 3: binary(b"name")})      # fields by their number in parquet.thrift
    read_struct(data, 0)                         # ({1: 7, 3: b"name"}, where it ends)

A value is its type and its bytes. Integers are varints of 7 bits a byte, zigzagged so that small
negative numbers are short; a field says its number as the difference to the one before.
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 12


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


# Reading


_DEEPEST = 16
"""Structs and lists in each other: those of Parquet's headers are three deep."""


def read_struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of the struct that begins at a byte, and where it ends.

    Of hostile data as well: ValueError for what is no struct, or goes on behind the data.
    """
    fields: dict[int, Any] = {}
    number = 0
    while (head := _byte(data, at)) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            zigzagged, at = _read_varint(data, at)
            number = _unzigzag(zigzagged)
        kind = head & 0x0F
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], at = _read_value(data, at, kind, depth)
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("structs lie too deep in each other")
    if kind in (_I16, _I32, _I64):
        zigzagged, at = _read_varint(data, at)
        return _unzigzag(zigzagged), at
    if kind in (_TRUE, _FALSE, _BYTE):  # in a list a boolean is a byte
        return _byte(data, at), at + 1
    if kind == _BINARY:
        length, at = _read_varint(data, at)
        if at + length > len(data):
            raise ValueError(f"{length} bytes of text, of which {len(data) - at} are there")
        return data[at : at + length], at + length
    if kind == _LIST:
        head = _byte(data, at)
        count, at = (head >> 4, at + 1) if head >> 4 < 15 else _read_varint(data, at + 1)
        values = []
        for _ in range(count):  # each takes a byte at least, so hostile counts end with the data
            value, at = _read_value(data, at, head & 0x0F, depth + 1)
            values.append(value)
        return values, at
    if kind == _STRUCT:
        return read_struct(data, at, depth + 1)
    raise ValueError(f"a value of the unknown type {kind}")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(data, at)
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
    raise ValueError("a number of more than ten bytes")


def _unzigzag(number: int) -> int:
    return number >> 1 ^ -(number & 1)


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise ValueError("the data ends inside of a value")
    return data[at]
