from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdata import draws as module
from lrdata.draws import Draws, Stream
from tests.chi_square import assert_follows, evenly

MASK = (1 << 64) - 1

GOLDEN_WORDS = [1087957566679832236, 16810251686704535241, 9849722053814111839]
GOLDEN_BELOW = [58, 911, 533, 748, 534, 321]
GOLDEN_SUBSET = [388, 402, 559, 616, 984]
GOLDEN_MOST = [0, 1, 2, 4, 5]
GOLDEN_SHARE = 0.5304164672385385


def philox(counter: int, key: int) -> list[int]:
    """Philox4x64-10 as its paper defines it (Salmon et al. 2011), to compare with."""
    x = [counter >> 64 * i & MASK for i in range(4)]
    k0, k1 = key & MASK, key >> 64
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [b >> 64 ^ x[1] ^ k0, b & MASK, a >> 64 ^ x[3] ^ k1, a & MASK]
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & MASK, k1 + 0xBB67AE8584CAA73B & MASK
    return x


def test_the_reference_gives_the_published_answers() -> None:
    # Known-answer vectors of Random123.
    zeros = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert philox(0, 0) == zeros
    assert philox((1 << 256) - 1, (1 << 128) - 1) == ones


@given(st.integers(0, (1 << 128) - 1))
def test_words_are_philox_in_counter_mode(key: int) -> None:
    expected = [word for counter in range(1, 4) for word in philox(counter, key)]
    assert Stream(key).words(12).tolist() == expected


def test_golden_values() -> None:
    """Fixed for ever: a change here changes every dataset that was ever built."""
    draws = Draws(0, "books/a.jsonl", 4096, 131072, 0)
    assert draws.stream("select").words(3).tolist() == GOLDEN_WORDS
    assert draws.stream("select").below(1000, 6).tolist() == GOLDEN_BELOW
    assert draws.stream("positions").subset(1000, 5).tolist() == GOLDEN_SUBSET
    assert draws.stream("positions").subset(7, 5).tolist() == GOLDEN_MOST
    assert draws.share("holdout") == GOLDEN_SHARE


def test_a_stream_does_not_depend_on_what_was_drawn_before() -> None:
    one, other = Draws(7, "a.jsonl", 0), Draws(7, "a.jsonl", 0)
    first = [one.stream("ties").words(5), one.stream("select").words(5)]
    one.stream("positions").subset(100, 30)
    second = [other.stream("select").words(5), other.stream("ties").words(5)][::-1]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[0], one.stream("ties").words(5))


def test_words_come_in_one_sequence_however_they_are_asked_for() -> None:
    whole = Draws(1).stream("a").words(10)
    stream = Draws(1).stream("a")
    np.testing.assert_array_equal(np.concatenate([stream.words(n) for n in (3, 0, 1, 6)]), whole)


def test_every_part_of_the_key_and_the_purpose_matter() -> None:
    families = [
        Draws(0, "a", 1),
        Draws(1, "a", 1),
        Draws(0, "b", 1),
        Draws(0, "a", 2),
        Draws(0, "a"),
        Draws(0, "a", 1, 0),
        Draws(0, "a1"),
        Draws("0a", 1),
    ]
    words = [
        tuple(family.stream(purpose).words(2).tolist())
        for family in families
        for purpose in ("select", "ties", "positions")
    ]
    assert len(set(words)) == len(words)
    assert len({family.share("holdout") for family in families}) == len(families)


def test_streams_of_neighbouring_windows_and_purposes_are_uncorrelated() -> None:
    streams = [Draws(0, "a", w).stream(p) for w in range(20) for p in ("select", "ties")]
    bits = np.stack([np.unpackbits(s.words(2000).view(np.uint8)) for s in streams]) - 0.5
    correlation = np.corrcoef(bits)[np.triu_indices(len(streams), 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(bits.shape[1])


def test_below_is_the_upper_half_times_the_bound() -> None:
    bounds = [1, 2, 3, 1000, 2**31 - 1, 2**32 - 1]
    words = Draws(3).stream("x").words(len(bounds)).tolist()
    expected = [(word >> 32) * bound >> 32 for word, bound in zip(words, bounds, strict=True)]
    drawn = Draws(3).stream("x").below(np.array(bounds))
    assert drawn.tolist() == expected
    assert drawn.dtype == np.int64


@given(st.integers(0, 2**64), st.lists(st.integers(1, 2**32 - 1), max_size=30))
def test_below_stays_below(key: int, bounds: list[int]) -> None:
    drawn = Stream(key).below(np.array(bounds, np.int64))
    assert (drawn >= 0).all()
    assert (drawn < np.array(bounds, np.int64)).all()


@pytest.mark.parametrize("bound", [2, 3, 7, 10])
def test_below_is_uniform(bound: int) -> None:
    drawn = Draws(0).stream(f"below {bound}").below(bound, 4000)
    assert_follows(drawn.tolist(), evenly(range(bound)))


@given(st.integers(0, 2**64), st.data())
def test_a_subset_is_sorted_distinct_and_in_range(key: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 300))
    count = data.draw(st.integers(0, size))
    drawn = Stream(key).subset(size, count)
    assert drawn.dtype == np.int64
    assert len(drawn) == count
    assert (np.diff(drawn) > 0).all()
    assert ((drawn >= 0) & (drawn < size)).all()


@pytest.mark.parametrize(("size", "count"), [(4, 1), (5, 2), (6, 3), (5, 3), (6, 5), (8, 2)])
def test_every_subset_is_equally_likely(size: int, count: int) -> None:
    subsets = (
        tuple(Draws(seed).stream("subset").subset(size, count).tolist()) for seed in range(3000)
    )
    assert_follows(subsets, evenly(combinations(range(size), count)))


@pytest.mark.parametrize(("size", "count"), [(131_071, 39_311), (92_000, 435), (131_072, 131_000)])
def test_large_subsets_reach_everywhere_alike(size: int, count: int) -> None:
    drawn = Draws(0, size).stream("subset").subset(size, count)
    assert len(np.unique(drawn)) == count
    expected = count / 16
    by_part = np.bincount(drawn * 16 // size, minlength=16)
    assert np.abs(by_part - expected).max() < 5 * np.sqrt(expected * (1 - count / size)) + 2


def test_more_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="4 distinct integers of 3"):
        Draws(0).stream("x").subset(3, 4)


def test_shares_are_uniform_and_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = np.array([Draws(0, "a.jsonl", record).share("holdout") for record in range(4000)])
    assert_follows((shares * 10).astype(int).tolist(), evenly(range(10)))
    assert (shares >= 0).all()

    class Highest:
        def digest(self) -> bytes:
            return b"\xff" * 8

    monkeypatch.setattr(module.hashlib, "blake2b", lambda *_, **__: Highest())
    assert Draws(0).share("holdout") < 1.0
