"""Random draws that are the same on every machine, in every order, for ever.

NumPy does not promise its distributions across versions, so only raw 64-bit Philox words are used,
mapped to integers here. A stream is keyed by what it is for, never by when it is asked: the blake2b
of (seed, file, record, window, purpose), so no scheduling can change a draw.
"""

import hashlib
from functools import cached_property

import numpy as np


class Draws:
    """A family of independent streams under one key; `stream(purpose)` opens one of them."""

    def __init__(self, *key: int | str) -> None:
        self._key = "\x1f".join(str(part) for part in key)

    def stream(self, purpose: str) -> "Stream":
        digest = hashlib.blake2b(f"{self._key}\x1e{purpose}".encode(), digest_size=16).digest()
        return Stream(int.from_bytes(digest, "little"))

    def share(self, purpose: str) -> float:
        """One number in [0, 1) for a yes-or-no decision about the key, without opening a stream.

        The digest's upper 53 bits, which a float holds exactly.
        """
        digest = hashlib.blake2b(f"{self._key}\x1e{purpose}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) / 2.0**53


class Stream:
    """A sequence of Philox words (4x64, 10 rounds) and integers mapped from them."""

    def __init__(self, key: int) -> None:
        self._key = key

    @cached_property
    def _philox(self) -> np.random.Philox:
        return np.random.Philox(key=self._key)  # takes a while, and many streams are never drawn

    def words(self, count: int) -> np.ndarray:
        """`count` raw words, uint64 [count]."""
        return np.asarray(self._philox.random_raw(count), np.uint64)

    def below(self, bounds: np.ndarray | int, count: int | None = None) -> np.ndarray:
        """Integers uniform in [0, bound), int64: the word's upper half times the bound, shifted.

        `bounds` < 2**32, one bound for `count` draws or an array with a bound for each draw. The
        bias of the mapping is below 2**-32 x bound.
        """
        limits = np.asarray(bounds, np.uint64)
        words = self.words(limits.size if count is None else count)
        words = words.reshape(limits.shape) if count is None else words
        return (((words >> np.uint64(32)) * limits) >> np.uint64(32)).astype(np.int64)

    def subset(self, size: int, count: int) -> np.ndarray:
        """`count` distinct integers of [0, size), each subset equally likely; sorted int64 [count].

        Integers are drawn one after another and repeats passed over; for more than half of the
        range the complement is drawn instead. O(size). Raises ValueError when `count` > `size`.
        """
        if count > size:
            raise ValueError(f"cannot draw {count} distinct integers of {size}")
        fewer = min(count, size - count)
        drawn = np.zeros(size, bool)
        while missing := fewer - int(np.count_nonzero(drawn)):
            drawn[self.below(size, missing)] = True
        return np.flatnonzero(drawn if fewer == count else ~drawn)
