"""Values and levels as bytes: the format's PLAIN, DELTA_BINARY_PACKED and RLE encodings.

Pure functions. https://github.com/apache/parquet-format/blob/master/Encodings.md
"""

import numpy as np

from lrdata.parquet.thrift import varint, zigzag

_BLOCK, _MINIBLOCK = 128, 32  # deltas that share a least one; deltas of a block that share a width
_MINIBLOCKS, _SHIFT = _BLOCK // _MINIBLOCK, 5


def plain(values: np.ndarray | list[bytes]) -> bytes | memoryview:
    """Values one after the other: little-endian, booleans as bits, texts after their lengths.

    A view of the values where they are as they should be.
    """
    if isinstance(values, list):
        return b"".join(part for text in values for part in (len(text).to_bytes(4, "little"), text))
    if values.dtype == bool:
        return np.packbits(values, bitorder="little").tobytes()
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.view(np.uint8).data


def levels(lengths: np.ndarray) -> tuple[bytes, int]:
    """Repetition and definition levels of lists of required elements, and how many of each.

    Repetition: 0 where a row begins, 1 for its other values. Definition: 0 for an empty list, else
    1. Both after their sizes, as runs of equal levels: one half of RLE / bit-packing hybrid.

    Args:
        lengths: int64 [rows], at least one row.
    """
    entries = np.maximum(lengths, 1)  # an empty list has an entry too
    counts = np.stack([np.ones_like(entries), entries - 1], axis=1).ravel()
    repetition = _runs(np.tile(np.array([0, 1], np.uint8), len(entries)), counts)
    definition = _runs((lengths > 0).astype(np.uint8), entries)
    sized = (len(part).to_bytes(4, "little") + part for part in (repetition, definition))
    return b"".join(sized), int(entries.sum())


def _runs(values: np.ndarray, counts: np.ndarray) -> bytes:
    """values[i], 0 or 1, counts[i] times: of each run its length, doubled, and its value."""
    values, counts = values[counts > 0], counts[counts > 0]
    first = np.flatnonzero(np.diff(values, prepend=2))
    lengths = np.add.reduceat(counts, first).astype(np.uint64) << np.uint64(1)
    sizes = _varint_sizes(lengths)
    starts = _starts(sizes + 1)
    out = np.empty(int((sizes + 1).sum()), np.uint8)
    _put_varints(out, starts, lengths, sizes)
    out[starts + sizes] = values[first]
    return out.tobytes()


def delta_binary_packed(values: np.ndarray) -> bytes:
    """Integers as differences, packed by 32 with as few bits as the largest of them needs.

    What a difference is above the least of its block is nearly always 0 for positions, so only
    what is not 0 is packed, value by value.

    Args:
        values: int32 or int64 [n]. Differences wrap around at the type's width, as the format says.
    """
    unsigned = np.dtype(f"u{values.itemsize}")
    first = zigzag(int(values[0])) if len(values) else 0
    head = b"".join(map(varint, (_BLOCK, _MINIBLOCKS, len(values), first)))
    count = len(values) - 1
    if count < 1:
        return head
    blocks = -(-count // _BLOCK)
    deltas = np.empty(blocks * _BLOCK, unsigned)
    np.subtract(values[1:].view(unsigned), values[:-1].view(unsigned), out=deltas[:count])
    deltas[count:] = deltas[count - 1]
    table = deltas.reshape(blocks, _BLOCK)
    least = table.view(values.dtype).min(axis=1)
    table -= least.view(unsigned)[:, None]
    deltas[count:] = 0

    place = np.flatnonzero(deltas != 0)  # of booleans it is much faster than of integers
    above = deltas[place].astype(np.uint64)
    widths = np.zeros(blocks * _MINIBLOCKS, np.int64)
    miniblock = place >> _SHIFT
    np.maximum.at(widths, miniblock, _bit_lengths(above))
    bodies = widths * (_MINIBLOCK // 8)
    wide = least.astype(np.int64)
    least_coded = (wide << 1 ^ wide >> 63).view(np.uint64)  # zigzag
    least_sizes = _varint_sizes(least_coded)
    sizes = least_sizes + _MINIBLOCKS + bodies.reshape(blocks, _MINIBLOCKS).sum(axis=1)
    starts = _starts(sizes)
    size = int(sizes.sum())
    words = np.zeros(size // 8 + 2, "<u8")
    out = words.view(np.uint8)[:size]
    _put_varints(out, starts, least_coded, least_sizes)
    at_widths = (starts + least_sizes)[:, None] + np.arange(_MINIBLOCKS)
    out[at_widths] = widths.reshape(blocks, _MINIBLOCKS)
    before = np.repeat(_starts(bodies.reshape(blocks, -1).sum(axis=1)), _MINIBLOCKS)
    at_bodies = np.repeat(at_widths[:, -1] + 1, _MINIBLOCKS) + _starts(bodies) - before
    bit = at_bodies[miniblock] * 8 + (place & _MINIBLOCK - 1) * widths[miniblock]
    _put_bits(words, bit, above)
    return head + out.tobytes()


def _put_bits(out: np.ndarray, bit: np.ndarray, values: np.ndarray) -> None:
    """Add values to words, uint64 [n], from a bit on, the lowest first; they end in the next one.

    No two values share a bit, so sums are what they are side by side.
    """
    word, shift = bit >> 6, (bit & 63).astype(np.uint64)
    np.add.at(out, word, values << shift)
    np.add.at(out, word + 1, values >> np.uint64(1) >> np.uint64(63) - shift)


def _bit_lengths(values: np.ndarray) -> np.ndarray:
    """Bits that hold numbers, uint64; of some above 2^53, which floats round up, one too many."""
    return np.minimum(np.frexp(values)[1], 64).astype(np.int64)


def _varint_sizes(numbers: np.ndarray) -> np.ndarray:
    """How many bytes the varints of numbers, uint64, take."""
    return np.maximum(_bit_lengths(numbers) + 6, 7) // 7


def _put_varints(
    out: np.ndarray, starts: np.ndarray, numbers: np.ndarray, sizes: np.ndarray
) -> None:
    for index in range(int(sizes.max(initial=0))):
        here = np.flatnonzero(sizes > index)
        seven = (numbers[here] >> np.uint64(7 * index) & np.uint64(0x7F)).astype(np.uint8)
        out[starts[here] + index] = seven | (sizes[here] > index + 1).astype(np.uint8) << 7


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes) - sizes
