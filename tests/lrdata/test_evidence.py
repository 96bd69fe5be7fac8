"""Evidence against a loop over all pairs of places."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrdata.evidence import MOST, Evidence, find_evidence

LONGEST, SHORTEST = 4, 2

Found = list[tuple[int, int, int]]
"""(token, source, length) of each piece of evidence."""


def found_slowly(ids: list[int], least_distance: int) -> Found:
    """For each token the longest n-gram that ends there, is rare and came before; none of a token
    for which one of these is nearby."""
    ends: dict[tuple[int, ...], list[int]] = {}
    for size in range(SHORTEST, LONGEST + 1):
        for last in range(size - 1, len(ids)):
            ends.setdefault(tuple(ids[last - size + 1 : last + 1]), []).append(last)
    found: Found = []
    for token in range(len(ids)):
        for size in range(LONGEST, SHORTEST - 1, -1):
            if token + 1 < size:
                continue
            places = ends[tuple(ids[token - size + 1 : token + 1])]
            earlier = [place for place in places if place < token]
            if len(places) <= MOST and earlier:
                if all(token - place >= least_distance for place in earlier):
                    found += [(token, source, size) for source in sorted(earlier, reverse=True)]
                break
    return found


def as_list(evidence: Evidence) -> Found:
    assert [column.dtype for column in evidence] == [np.int64] * 3
    return list(zip(*(column.tolist() for column in evidence), strict=True))


def find(ids: list[int], least_distance: int) -> Found:
    return as_list(find_evidence(np.array(ids, np.int32), least_distance))


@st.composite
def texts(draw: st.DrawFn) -> list[int]:
    """Ids of a small vocabulary, so that n-grams come again: by chance, or in repeated runs."""
    letter = st.integers(0, draw(st.integers(0, 5)))
    parts = draw(st.lists(st.lists(letter, max_size=12), max_size=6))
    repeated = draw(st.lists(st.integers(0, max(len(parts) - 1, 0)), max_size=12))
    if not parts:
        return []
    return [id_ for part in [*parts, *(parts[index] for index in repeated)] for id_ in part]


distances = st.integers(0, 12) | st.integers(0, 80)


@given(texts(), distances)
@example([1] * (MOST + 1), 1)
@example([1] * (MOST + 2), 1)
@example([1, 2, 3, 4] * (MOST + 1), 1)
@example([1, 2, 3, 4] * MOST, 1)
def test_evidence_is_that_of_a_loop_over_all_places(ids: list[int], least_distance: int) -> None:
    assert find(ids, least_distance) == found_slowly(ids, least_distance)


@given(texts(), distances)
def test_the_nearest_is_the_first_of_each_token(ids: list[int], least_distance: int) -> None:
    evidence = find_evidence(np.array(ids, np.int32), least_distance)
    expected: dict[int, tuple[int, int]] = {}
    for token, source, length in as_list(evidence):
        expected.setdefault(token, (source, length))
    nearest = as_list(evidence.nearest())
    assert nearest == [(token, *rest) for token, rest in expected.items()]


@given(texts(), distances)
def test_a_source_holds_what_its_token_could_be_copied_from(
    ids: list[int], least_distance: int
) -> None:
    found = find(ids, least_distance)
    for token, source, length in found:
        assert source - length + 1 >= 0
        assert token - source >= max(least_distance, 1)
        copied = ids[source - length + 1 : source + 1]
        assert ids[token - length + 1 : token + 1] == copied
    assert found == sorted(found, key=lambda row: (row[0], -row[1]))


@given(texts(), distances, st.integers(1, 40))
def test_a_larger_distance_takes_whole_tokens_away_and_changes_no_other(
    ids: list[int], least_distance: int, more: int
) -> None:
    near, far = find(ids, least_distance), find(ids, least_distance + more)
    left = {token for token, _, _ in far}
    assert far == [row for row in near if row[0] in left]


@given(texts(), distances, st.data())
def test_within_documents_is_what_a_loop_over_them_leaves(
    ids: list[int], least_distance: int, data: st.DataObject
) -> None:
    """Documents may be empty, and the last one ends with the tokens."""
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=4))
    ends = [*sorted(cuts), len(ids)]
    of_token = [
        document
        for document, (start, stop) in enumerate(zip([0, *ends], ends, strict=False))
        for _ in range(start, stop)
    ]
    evidence = find_evidence(np.array(ids, np.int32), least_distance)
    assert as_list(evidence.within(np.array(ends))) == [
        row for row in as_list(evidence) if of_token[row[0]] == of_token[row[1]]
    ]


def test_a_document_ends_before_its_end() -> None:
    """The token at an end is the first of the next document."""
    evidence = find_evidence(np.array([7, 8, 7, 8], np.int32), 2)
    assert as_list(evidence.within(np.array([4]))) == [(3, 1, 2)]
    assert as_list(evidence.within(np.array([1, 4]))) == [(3, 1, 2)]
    assert as_list(evidence.within(np.array([2, 4]))) == []
    assert as_list(evidence.within(np.array([3, 4]))) == []


@given(texts(), distances, st.integers(0, 2**31 - 7))
def test_what_ids_are_does_not_matter_only_which_are_equal(
    ids: list[int], least_distance: int, offset: int
) -> None:
    assert find([offset + id_ for id_ in ids], least_distance) == find(ids, least_distance)


@given(texts(), distances, st.data())
def test_evidence_of_some_tokens_is_that_part_of_all(
    ids: list[int], least_distance: int, data: st.DataObject
) -> None:
    among = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    tokens = np.array(ids, np.int32)
    part = as_list(find_evidence(tokens, least_distance, np.array(among, bool)))
    assert part == [row for row in find(ids, least_distance) if among[row[0]]]


@pytest.mark.parametrize("length", range(LONGEST + 1))
def test_a_text_that_is_too_short_has_none(length: int) -> None:
    assert find(list(range(length)), 1) == []
    nothing = find_evidence(np.arange(length, dtype=np.int32), 0)
    assert as_list(nothing.nearest()) == []


def test_the_shortest_text_with_evidence() -> None:
    assert find([7, 8, 7, 8], 2) == [(3, 1, 2)]
    assert find([7, 8, 7, 8], 3) == []
    assert find([7, 7, 7], 1) == [(2, 1, 2)]


def test_a_name_in_a_long_text_is_found_where_it_was_before() -> None:
    """Three tokens that come three times among 50,000, whose pairs are frequent."""
    ids = np.random.default_rng(0).integers(0, 40, 50_000).astype(np.int32)
    for place in (100, 20_000, 49_000):
        ids[place : place + 3] = 1000, 3, 1001
    found = [row for row in as_list(find_evidence(ids, 4000)) if ids[row[0]] == 1001]
    assert found == [(20_002, 102, 3), (49_002, 20_002, 3), (49_002, 102, 3)]
    near = as_list(find_evidence(ids, 4000).nearest())
    assert [row for row in near if ids[row[0]] == 1001] == [
        (20_002, 102, 3),
        (49_002, 20_002, 3),
    ]


@pytest.mark.parametrize("length", [2**21 - 1, 2**21])
def test_the_longest_windows_have_all_of_their_evidence(length: int) -> None:
    """A thousand names that come twice, a million tokens apart, in a large vocabulary."""
    ids = np.random.default_rng(0).integers(0, 200_000, length).astype(np.int32)
    names = np.arange(1000)
    for start in (0, 1_050_000):
        at = start + 1000 * names
        ids[at], ids[at + 1], ids[at + 2] = 200_000 + 2 * names, 5, 200_001 + 2 * names
    tokens, sources, lengths = find_evidence(ids, 1_000_000)
    named = (lengths == 3) & (ids[tokens] > 200_000)
    assert (tokens[named] - 2).tolist() == (1_050_000 + 1000 * names).tolist()
    assert (sources[named] - 2).tolist() == (1000 * names).tolist()


def test_what_comes_too_often_is_no_evidence() -> None:
    """A line that stands everywhere tells nothing of where it was copied from."""
    filler = iter(range(1000, 100_000))
    ids: list[int] = []
    for _ in range(MOST + 1):
        ids += [1, 2, 3, 4, *(next(filler) for _ in range(20))]
    assert find(ids, 1) == []
    assert len(find(ids[24:], 1)) == 3 * MOST * (MOST - 1) // 2  # ends at its 2nd, 3rd, 4th token


def test_a_longer_run_nearby_leaves_a_shorter_one_far_back_no_evidence() -> None:
    """It would be copied from nearby."""
    far, near = [1, 2, 3, 4], [9, 3, 4]
    ids = [*far, *range(100, 150), *near, *range(200, 210), *near]
    last = len(ids) - 1
    assert [row for row in find(ids, 14) if row[0] == last] == []  # though "3 4" was far back
    assert [row for row in find(ids, 13) if row[0] == last] == [(last, 56, 3)]


def test_one_occurrence_nearby_leaves_those_far_back_no_evidence() -> None:
    run = [1, 2, 3]
    ids = [*run, *range(100, 150), *run, *range(200, 210), *run]
    last = len(ids) - 1
    assert [row for row in find(ids, 14) if row[0] == last] == []
    assert [row for row in find(ids, 13) if row[0] == last] == [(last, 55, 3), (last, 2, 3)]


def test_a_shorter_run_nearby_does_no_harm_to_a_longer_one_far_back() -> None:
    far, near = [1, 2, 3, 4], [9, 3, 4]
    ids = [*far, *range(100, 150), *near, *range(200, 210), *far]
    last = len(ids) - 1
    assert [row for row in find(ids, 60) if row[0] == last] == [(last, 3, 4)]
