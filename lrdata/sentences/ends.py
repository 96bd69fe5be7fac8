"""Sentence ends of token ids: by the tables of the tokens where these decide, else by the text."""

import numpy as np

from lrdata.sentences.characters import (
    CLOSER,
    MARK,
    MOST_CLOSERS,
    OPENER,
    SPACE,
    SPACED_END,
    UNSPACED_END,
    WIDE_ENDS,
    WIDE_POINT,
    bits,
    first_character,
    has,
    is_abbreviation,
    last_character,
    low_bytes,
)
from lrdata.sentences.tables import (
    AFTER_SPACES,
    ANY,
    ANY_AFTER,
    BEFORE_SENTENCE,
    CALM,
    CLOSED,
    LINE_END,
    LINE_OR_EOT,
    NUMBER,
    SENTENCE,
    SENTENCE_AFTER,
    SPACES,
    STOP,
    TERMINATOR,
    UNCLEAR,
    WIDE,
    SentenceTables,
    what_follows,
)

_BLOCK = 1 << 16  # tokens at a time, so that what is known of them stays in the cache
_MOST_SPACES = 64  # tokens of white space between a terminator and the word after it


def sentence_lengths(ids: np.ndarray, tables: SentenceTables, max_tokens: int) -> np.ndarray:
    """Lengths of the sentences of `ids`, int64, each in [1, max_tokens], summing to len(ids)."""
    return lengths_between(sentence_ends(ids, tables), len(ids), max_tokens)


def lengths_between(ends: np.ndarray, count: int, max_tokens: int) -> np.ndarray:
    """Lengths of the sentences of `count` tokens that end at the places `ends`, and at the last:
    int64, each in [1, max_tokens]."""
    if not count:
        return np.zeros(0, np.int64)
    lengths = np.empty(len(ends) + 1, np.int64)
    lengths[:-1], lengths[-1] = ends, count - 1
    lengths[1:] -= lengths[:-1].copy()
    lengths[0] += 1
    if not lengths[-1]:  # the last token was among them
        lengths = lengths[:-1]
    return _cut(lengths, max_tokens)


def _cut(lengths: np.ndarray, max_tokens: int) -> np.ndarray:
    """Cut lengths into pieces of max_tokens and a rest."""
    if lengths.max() <= max_tokens:
        return lengths
    pieces = -(-lengths // max_tokens)
    cut = np.full(int(pieces.sum()), max_tokens, np.int64)
    last = np.cumsum(pieces) - 1
    cut[last] = lengths - (pieces - 1) * max_tokens
    return cut


def sentence_ends(ids: np.ndarray, tables: SentenceTables) -> np.ndarray:
    """The places of the tokens after which a sentence ends: int64, increasing, the last one with
    them.

    An end-of-text token hides what is on its other side: documents that are joined by it have the
    same ends as each of them alone.
    """
    if not len(ids):
        return np.zeros(0, np.int64)
    at, pair, after = _candidates(ids, tables)
    ends = pair & after >> 5 & ANY != 0
    left = np.flatnonzero(~ends)
    ends[left] = _near_ends(ids, at.take(left), pair.take(left), after.take(left), tables)
    return np.append(at[ends], len(ids) - 1)


def _candidates(
    ids: np.ndarray, tables: SentenceTables
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, but the last one, where two tokens alone do not rule a sentence's end out; `pair` of
    the token, and of the one after it without what that ends with."""
    places, pairs, afters = [], [], []
    for start in range(0, len(ids), _BLOCK):
        pair = tables.pair.take(ids[start : start + _BLOCK + 1])
        after = pair[1:] >> 5
        place = np.flatnonzero((pair[:-1] & after & ANY) != 0)
        pairs.append(pair.take(place))
        afters.append(after.take(place))
        places.append(place + start)
    return np.concatenate(places), np.concatenate(pairs), np.concatenate(afters)


def _near_ends(
    ids: np.ndarray, at: np.ndarray, pair: np.ndarray, after: np.ndarray, tables: SentenceTables
) -> np.ndarray:
    """Whether a sentence ends at each token in `at`, by its neighbours or else the text around."""
    # A line end and an indented word: the most common of these in source code.
    ends = pair & after >> 10 & LINE_END != 0
    lines = np.flatnonzero(ends)
    second = tables.pair.take(ids.take(np.minimum(at.take(lines) + 2, len(ids) - 1)))
    ends[lines] = second >> 10 & LINE_END != 0
    # Terminators before a new sentence that are surely none of an abbreviation.
    stops = np.flatnonzero((pair & STOP != 0) & (after & BEFORE_SENTENCE == BEFORE_SENTENCE))
    place = at.take(stops)
    needs = tables.needs.take(ids.take(place))
    ends[stops] = (needs == SENTENCE_AFTER) | (needs == CALM) & _calm_before(ids, place, tables)
    # Closers alone, and a last byte of a character, need a token before them that may be an end.
    end = pair & ANY
    may_end = ~ends
    closers = np.flatnonzero(end == CLOSED)
    place = at.take(closers)
    may_end[closers] = tables.ended.take(ids.take(place - 1)) & (place > 0)
    wide = np.flatnonzero(end == WIDE)
    place = at.take(wide)
    may_end[wide] = _may_be_wide(ids, place, tables)
    no_line = after.take(wide) >> 5 & LINE_END != 0
    sure = wide[(tables.needs.take(ids.take(place)) == ANY_AFTER) & no_line]
    ends[sure], may_end[sure] = True, False
    near = np.flatnonzero(may_end)
    ends[near] = _looked_at(ids, at.take(near), end.take(near), tables)
    return ends


def _calm_before(ids: np.ndarray, at: np.ndarray, tables: SentenceTables) -> np.ndarray:
    """Whether a full stop that is the token at `at` is surely none of an abbreviation."""
    token, before = ids.take(at - 1), ids.take(at - 2)
    # The last byte of a character of three or more: of no alphabet with abbreviations.
    last = tables.last.take(token)
    long = (last & 0xFFC0 == 0x80) & (tables.last.take(before) & 0xC0 == 0x80)
    inner = tables.inner.take(token) & tables.word.take(before)
    return (tables.calm.take(token) | (long | inner) & (at > 1)) & (at > 0)


def _may_be_wide(ids: np.ndarray, at: np.ndarray, tables: SentenceTables) -> np.ndarray:
    """Whether the bytes up to the end of each token in `at` can end a mark beyond ASCII."""
    token, before = ids.take(at), ids.take(np.maximum(at - 1, 0))
    may_be = ~tables.lone.take(token) | tables.begins.take(before)
    near = np.flatnonzero(may_be)
    token, before = token.take(near), before.take(near)
    last = tables.last.take(token).astype(np.uint32)
    last |= tables.last.take(before).astype(np.uint32) * (last < 0x100) << 8
    code, _ = last_character(last & 0xFF, last >> 8 & 0xFF, last >> 16)
    known = last > 0xFFFF  # three bytes, the most that a mark has
    may_be[near] = WIDE_ENDS.take(last & 0xFFFF) & (~known | has(code, MARK))
    return may_be


def _looked_at(
    ids: np.ndarray, at: np.ndarray, end: np.ndarray, tables: SentenceTables
) -> np.ndarray:
    """Whether a sentence ends at each token in `at`, which ends with `end`, by the text around."""
    after = _after(ids, at, tables)
    ends = (end == LINE_END) & (after != LINE_OR_EOT)
    spaced = (end == STOP) | (end == CLOSED)
    unspaced = (end == WIDE) & (after != TERMINATOR) & (after != LINE_OR_EOT)
    spaced &= after == SENTENCE
    near = np.flatnonzero(spaced | unspaced)
    ends[near] = _is_terminated(ids, at[near], after[near], tables)
    return ends


def _after(ids: np.ndarray, at: np.ndarray, tables: SentenceTables) -> np.ndarray:
    """What follows each token in `at`."""
    place = at + 1
    after = tables.after.take(ids.take(place))
    spaced = np.flatnonzero(after == SPACES)
    walking = spaced
    for _ in range(_MOST_SPACES):
        if not len(walking):
            break
        place[walking] = np.minimum(place[walking] + 1, len(ids) - 1)
        after[walking] = tables.after[ids[place[walking]]]
        walking = walking[after[walking] == SPACES]
    after[walking] = SENTENCE
    unclear = np.flatnonzero(after == UNCLEAR)
    if len(unclear):
        word, size = _joined(ids, place[unclear], 1, tables.head, tables.size, 0)
        what = what_follows(word, size)
        far = (what <= SPACES) & has(first_character(word)[0], SPACE)
        after[unclear] = np.where(far, SENTENCE, what)
    after[spaced] = AFTER_SPACES[after[spaced]]
    return after


def _is_terminated(
    ids: np.ndarray, at: np.ndarray, after: np.ndarray, tables: SentenceTables
) -> np.ndarray:
    """Whether the text ends in a terminator at each token in `at`, given what follows."""
    skip = np.zeros(len(at), np.int64)  # bytes of closers
    code, length = _character_before(ids, at, skip, tables)
    wide = (code > 0x7F) & ~has(code, OPENER)
    closed = np.arange(len(at))
    for _ in range(MOST_CLOSERS):
        closed = closed[has(code[closed], CLOSER | OPENER)]
        if not len(closed):
            break
        skip[closed] += length[closed]
        code[closed], length[closed] = _character_before(ids, at[closed], skip[closed], tables)
    decimal = (code == WIDE_POINT) & (after == NUMBER)
    unspaced = wide & has(code, UNSPACED_END) & ~decimal
    spaced = has(code, SPACED_END) & (after == SENTENCE)
    stops = np.flatnonzero(spaced & (code == ord(".")) & (skip == 0))
    before, _ = _joined(ids, at[stops], -1, tables.tail, tables.size, skip[stops] + 1)
    spaced[stops] = ~is_abbreviation(before)
    return unspaced | spaced


def _character_before(
    ids: np.ndarray, at: np.ndarray, skip: np.ndarray, tables: SentenceTables
) -> tuple[np.ndarray, np.ndarray]:
    """The last character and its length up to the end of each token, less `skip` bytes."""
    token = ids.take(at)
    stop = tables.stop.take(token) - skip
    code, length = last_character(*(tables.values.take(stop - back) for back in (1, 2, 3)))
    split = np.flatnonzero(length > tables.size.take(token) - skip)
    if len(split):
        word, _ = _joined(ids, at[split], -1, tables.tail, tables.size, skip[split], enough=4)
        code[split], length[split] = last_character(*low_bytes(word))
    return code, length


def _joined(
    ids: np.ndarray,
    at: np.ndarray,
    step: int,
    parts: np.ndarray,
    sizes: np.ndarray,
    skip: np.ndarray | int,
    enough: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Eight bytes of text from token `at` on in direction `step`, after the first `skip`.

    Returns uint64 [m], the first byte lowest, and int64 [m]: how many there are (`enough` or more,
    or less where the window ends).
    """
    word = np.zeros(len(at), np.uint64)
    filled = np.zeros(len(at), np.int64) - skip
    todo, place = np.arange(len(at)), at
    while len(todo):
        token, shift = ids.take(place), bits(filled.take(todo))
        part = parts.take(token)
        word[todo] |= part << shift | part >> -shift  # of these, the one that wraps around is 0
        filled[todo] += sizes.take(token)
        place = place + step
        more = (filled[todo] < enough) & (place >= 0) & (place < len(ids))
        todo, place = todo[more], place[more]
    return word, filled
