"""Sentence ends from the bytes of the tokens: for every tokenizer and script, without decoding.

A sentence ends after a token
  - that holds a line end (blank lines stay with the line above);
  - that ends in `. ? !` or `…`, before white space and a word that does not begin in lower case;
    but not in a full stop after a single letter (`J.`, `e.g.`) or a common abbreviation (`Dr.`);
  - that ends in a terminator of a script that writes no space after it (CJK) or has its own
    (Devanagari, Arabic, Ethiopic, Khmer, Myanmar, Armenian), unless another one follows;
  - that is the end-of-text token.
Closing quotes and brackets belong to the terminator; a terminator before a line end or the end of
the text leaves the end to that. Hence no sentence ends inside 3.14, e.g., a URL or `foo.bar()`. A
sentence longer than `max_tokens` is cut.

Tables over the vocabulary decide nearly all tokens. Where a character, a quote or an abbreviation
is spread over tokens, their bytes are put together, so that tokenizers of any vocabulary agree
wherever their token boundaries do.
"""

from dataclasses import dataclass
from functools import cache
from unicodedata import ucd_3_2_0 as unicode_data  # frozen: another version would move ends

import numpy as np

from lrdata.tokenizer import Tokenizer

_ABBREVIATIONS = (
    "mr mrs ms dr prof st vs etc cf fig eq eqs sec ch vol pp ed eds al ca approx dept inc "
    "ltd co corp jr sr gen col capt lt sgt rev hon jan feb mar apr jun jul aug sep sept oct nov dec"
)
_SPACED = ".?!…"  # need white space after them
_UNSPACED = "。！？．｡।॥؟۔።፧។៕။།༎᠃։"
_CLOSERS = "\"')]}*_`»›”’」』）】》〉］｝〕〗"
_OPENERS = "“‘«‹"  # they close in German and Danish („So.“ Da), but open in 。“他
_WIDE_POINT = ord("．")  # in CJK text it is also that of a decimal number
_MOST_CLOSERS = 3
_BLOCK = 1 << 16  # tokens at a time, so that what is known of them stays in the cache
_MOST_SPACES = 64  # tokens of white space between a terminator and the word after it

# What a character is, as bit flags.
_SPACE, _LINE, _SMALL, _LETTER, _WORD, _DIGIT, _SPACED_END, _UNSPACED_END, _CLOSER, _OPENER = (
    1 << bit for bit in range(10)
)
_MARK = _SPACED_END | _UNSPACED_END | _CLOSER | _OPENER
_NO_CHARACTER = 0xFFFF  # beyond the basic plane, or no whole character: no flags

# What a token ends with, a bit each. _STOP: a terminator and perhaps closers; _CLOSED: nothing but
# closers; _WIDE: either of them with a last character beyond ASCII, or what may be the end of one
# that begins in the token before.
_NOTHING = 0
_LINE_END, _STOP, _CLOSED, _WIDE, _EOT = (1 << bit for bit in range(5))

# What a terminator at the end of a token needs to end a sentence: a look at the text before it and
# after; where a sentence begins after it, to follow what is no abbreviation, or nothing more; where
# no line end and no other terminator comes after it, nothing more.
_A_LOOK, _CALM, _SENTENCE_AFTER, _ANY_AFTER = range(4)

# What follows a token. Directly: _TEXT (anything else), _LOWER (a small letter), _NUMBER,
# _TERMINATOR (or a closer). After white space: _SENTENCE, _LOWER_WORD. Either way: _LINE_OR_EOT.
# _SPACES alone and _UNCLEAR (less than a character) need a look at the token after.
_UNCLEAR, _SPACES, _TEXT, _LOWER, _NUMBER, _TERMINATOR, _SENTENCE, _LOWER_WORD, _LINE_OR_EOT = (
    range(9)
)
_AFTER_SPACES = np.full(9, _SENTENCE, np.uint8)  # what the above become after white space
_AFTER_SPACES[[_LOWER, _LOWER_WORD]] = _LOWER_WORD
_AFTER_SPACES[[_UNCLEAR, _SPACES, _LINE_OR_EOT]] = _UNCLEAR, _SPACES, _LINE_OR_EOT

# Which token ends may be sentence ends before each of these, as bits; and which surely are.
_ANY = _LINE_END | _STOP | _CLOSED | _WIDE | _EOT
_POSSIBLE = np.full(9, _LINE_END | _WIDE | _EOT, np.uint16)
_POSSIBLE[[_UNCLEAR, _SPACES, _SENTENCE]] = _ANY
_POSSIBLE[_TERMINATOR] = _LINE_END | _EOT
_POSSIBLE[_LINE_OR_EOT] = _EOT
_SURE = np.full(9, _LINE_END | _EOT, np.uint16)
_SURE[[_UNCLEAR, _SPACES, _LINE_OR_EOT]] = _EOT
_BEFORE_SENTENCE = _STOP | _LINE_END << 5  # possible and sure ends where a token is _SENTENCE

_U = np.uint64
_BYTE = _U(0xFF)


@cache
def _character_flags() -> np.ndarray:
    """Flags of every character of the basic plane, uint16 [65536]."""
    flags = np.zeros(1 << 16, np.uint16)
    for code in range(_NO_CHARACTER):
        category = unicode_data.category(chr(code))
        flags[code] |= _WORD * (category[0] in "LMN") | _SPACE * (category[0] == "Z")
        flags[code] |= _SMALL * (category == "Ll") | _DIGIT * (category == "Nd")
        # Initials are of alphabets with at most two bytes a letter: Latin, Cyrillic, Arabic, ...
        flags[code] |= _LETTER * (category[0] == "L" and code < 0x800)
    groups = {
        _SPACE: "\t\v\f",
        _LINE: "\r\n\0",  # a special token reads as NUL
        _SPACED_END: _SPACED,
        _UNSPACED_END: _UNSPACED,
        _CLOSER: _CLOSERS,
        _OPENER: _OPENERS,
    }
    for flag, characters in groups.items():
        flags[[ord(char) for char in characters]] |= flag
    return flags


def _has(code: np.ndarray, flags: int) -> np.ndarray:
    """Whether characters have one of `flags`."""
    return _character_flags()[code] & flags != 0


@dataclass(frozen=True)
class SentenceTables:
    """What the splitter needs to know of each token id: arrays of length vocab_size."""

    # uint16: what it ends with (5 bits), possible and sure ends before it (5 each), is it _SPACES
    pair: np.ndarray
    calm: np.ndarray  # bool: a full stop after it is none of an abbreviation, whatever is before it
    inner: np.ndarray  # bool: the same, if a letter is before it
    word: np.ndarray  # bool: its last character is a letter, or another part of a word
    needs: np.ndarray  # uint8: what its terminator needs to end a sentence
    ended: np.ndarray  # bool: closers alone after it may end a sentence
    last: np.ndarray  # uint16: its last two bytes, the last one lowest
    after: np.ndarray  # uint8: what it is to a token before it
    head: np.ndarray  # uint64: its first eight bytes, the first lowest
    tail: np.ndarray  # uint64: its last eight bytes, the last lowest
    size: np.ndarray  # int64: its bytes; 8 for a special token, which reads as NULs
    stop: np.ndarray  # int64: where it ends in `values`
    values: np.ndarray  # uint8: the bytes of all tokens


def sentence_tables(tokenizer: Tokenizer) -> SentenceTables:
    """Tables for a tokenizer, from its id-to-bytes table."""
    values, offsets = tokenizer.token_bytes
    special = tokenizer.special
    sizes = np.where(special, 0, np.diff(offsets))
    head = _eight_bytes(values, offsets[:-1], sizes, 1)
    tail = _eight_bytes(values, offsets[1:] - 1, sizes, -1)

    end = _what_ends(tail, sizes).astype(np.uint16)
    ended = end != _NOTHING
    lines = np.concatenate([[0], np.cumsum((values == 0x0A) | (values == 0x0D))])
    end[(lines[offsets[1:]] > lines[offsets[:-1]]) & ~special] = _LINE_END
    end[tokenizer.eot_id] = _EOT
    sizes[special] = 8
    after = _what_follows(head, sizes)
    for start in range(8, int(sizes.max(initial=0)), 8):  # tokens of more white space than that
        long = np.flatnonzero((after == _SPACES) & (sizes > start))
        rest = sizes[long] - start
        words = _eight_bytes(values, offsets[long] + start, rest, 1)
        after[long] = _AFTER_SPACES[_what_follows(words, rest)]
    spaces = (after == _SPACES).astype(np.uint16)
    pair = end | _POSSIBLE[after] << 5 | _SURE[after] << 10 | spaces << 15
    calm = _is_calm(tail, sizes)
    inner, word = _is_inner(tail, sizes), _ends_in_word(tail, sizes)
    needs = _what_is_needed(tail, sizes)
    last = tail.astype(np.uint16)  # the lowest bytes
    return SentenceTables(
        pair, calm, inner, word, needs, ended, last, after, head, tail, sizes, offsets[1:], values
    )


def _eight_bytes(values: np.ndarray, first: np.ndarray, sizes: np.ndarray, step: int) -> np.ndarray:
    """Up to eight bytes of each token from `first` on in direction `step`, that one lowest."""
    words = np.zeros(len(sizes), np.uint64)
    for index in range(8):
        long = np.flatnonzero(sizes > index)
        words[long] |= values[first[long] + step * index].astype(np.uint64) << _U(8 * index)
    return words


def _what_ends(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    """What text of `size` bytes ends with, uint8, by its last eight bytes, the last lowest."""
    wide = tail & _BYTE > 0x7F
    rest, left = _without_closers(tail, size)
    code, length = _last_character(*_low_bytes(rest))
    ended = np.where(wide, _has(code, _SPACED_END | _UNSPACED_END), _has(code, _SPACED_END))
    begun = np.where(left == 1, _FINALS[rest & _BYTE], _WIDE_ENDS[rest & _U(0xFFFF)])
    closed, may_end = left == 0, np.where(length > left, begun, ended)
    cases = [size == 0, closed & ~wide, (closed | may_end) & wide, may_end]
    return np.select(cases, [_NOTHING, _CLOSED, _WIDE, _STOP], _NOTHING).astype(np.uint8)


def _without_closers(tail: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last bytes of text, and how many they are, without the closers that it ends with."""
    rest, left = tail, np.minimum(size, 8)
    for _ in range(_MOST_CLOSERS):
        code, length = _last_character(*_low_bytes(rest))
        closed = _has(code, _CLOSER | _OPENER) & (length <= left)
        rest = np.where(closed, rest >> _bits(length), rest)
        left = np.where(closed, left - length, left)
    return rest, left


def _what_is_needed(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    """What a terminator at the end of a token needs to end a sentence, uint8."""
    rest, left = _without_closers(tail, size)
    code, length = _last_character(*_low_bytes(rest))
    whole = length <= left
    spaced = _has(code, _SPACED_END) & whole
    unspaced = _has(code, _UNSPACED_END) & whole & (rest == tail) & (code != _WIDE_POINT)
    stop = (code == ord(".")) & (rest == tail)  # may be of an abbreviation; not before closers
    sure = spaced & (~stop | _is_calm(rest >> _U(8), left - 1))
    cases = [unspaced, sure, spaced & stop & (size == 1)]
    return np.select(cases, [_ANY_AFTER, _SENTENCE_AFTER, _CALM], _A_LOOK).astype(np.uint8)


def _what_follows(word: np.ndarray, size: np.ndarray) -> np.ndarray:
    """What text is to the token before it, uint8, by its first `size` bytes, the first lowest."""
    size = np.minimum(size, 8)
    spaced = np.zeros(word.shape, bool)
    while True:
        code, length = _first_character(word)
        whole = length <= size
        space = _has(code, _SPACE) & whole
        if not space.any():
            break
        spaced |= space
        word = np.where(space, word >> _bits(length), word)
        size = np.where(space, size - length, size)
    closing = _has(code, _SPACED_END | _UNSPACED_END | _CLOSER) & (code > 0x7F)
    direct = np.select(
        [~whole, _has(code, _SMALL), _has(code, _DIGIT), closing, _has(code, _LINE)],
        [_UNCLEAR, _LOWER, _NUMBER, _TERMINATOR, _LINE_OR_EOT],
        _TEXT,
    )
    what = np.where(spaced & whole, _AFTER_SPACES[direct], direct)
    what[spaced & (size == 0)] = _SPACES
    return what.astype(np.uint8)


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
    ends = pair & after >> 5 & _ANY != 0
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
        place = np.flatnonzero((pair[:-1] & after & _ANY) != 0)
        pairs.append(pair.take(place))
        afters.append(after.take(place))
        places.append(place + start)
    return np.concatenate(places), np.concatenate(pairs), np.concatenate(afters)


def _near_ends(
    ids: np.ndarray, at: np.ndarray, pair: np.ndarray, after: np.ndarray, tables: SentenceTables
) -> np.ndarray:
    """Whether a sentence ends at each token in `at`, by its neighbours or else the text around."""
    # A line end and an indented word: the most common of these in source code.
    ends = pair & after >> 10 & _LINE_END != 0
    lines = np.flatnonzero(ends)
    second = tables.pair.take(ids.take(np.minimum(at.take(lines) + 2, len(ids) - 1)))
    ends[lines] = second >> 10 & _LINE_END != 0
    # Terminators before a new sentence that are surely none of an abbreviation.
    stops = np.flatnonzero((pair & _STOP != 0) & (after & _BEFORE_SENTENCE == _BEFORE_SENTENCE))
    place = at.take(stops)
    needs = tables.needs.take(ids.take(place))
    ends[stops] = (needs == _SENTENCE_AFTER) | (needs == _CALM) & _calm_before(ids, place, tables)
    # Closers alone, and a last byte of a character, need a token before them that may be an end.
    end = pair & _ANY
    may_end = ~ends
    closers = np.flatnonzero(end == _CLOSED)
    place = at.take(closers)
    may_end[closers] = tables.ended.take(ids.take(place - 1)) & (place > 0)
    wide = np.flatnonzero(end == _WIDE)
    place = at.take(wide)
    may_end[wide] = _may_be_wide(ids, place, tables)
    no_line = after.take(wide) >> 5 & _LINE_END != 0
    sure = wide[(tables.needs.take(ids.take(place)) == _ANY_AFTER) & no_line]
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
    last = tables.last.take(ids.take(at)).astype(np.uint32)
    alone = np.flatnonzero(last < 0x100)  # a byte whose character begins before
    before = ids.take(np.maximum(at.take(alone) - 1, 0))
    last[alone] |= tables.last.take(before).astype(np.uint32) << 8
    may_be = _WIDE_ENDS.take(last & 0xFFFF)
    known = np.flatnonzero(may_be & (last > 0xFFFF))  # three bytes, the most that a mark has
    last = last[known]
    code, _ = _last_character(last & 0xFF, last >> 8 & 0xFF, last >> 16)
    may_be[known] = _has(code, _MARK)
    return may_be


def _looked_at(
    ids: np.ndarray, at: np.ndarray, end: np.ndarray, tables: SentenceTables
) -> np.ndarray:
    """Whether a sentence ends at each token in `at`, which ends with `end`, by the text around."""
    after = _after(ids, at, tables)
    ends = (end == _LINE_END) & (after != _LINE_OR_EOT)
    spaced = (end == _STOP) | (end == _CLOSED)
    unspaced = (end == _WIDE) & (after != _TERMINATOR) & (after != _LINE_OR_EOT)
    spaced &= after == _SENTENCE
    near = np.flatnonzero(spaced | unspaced)
    ends[near] = _is_terminated(ids, at[near], after[near], tables)
    return ends


def _after(ids: np.ndarray, at: np.ndarray, tables: SentenceTables) -> np.ndarray:
    """What follows each token in `at`."""
    place = at + 1
    after = tables.after.take(ids.take(place))
    spaced = np.flatnonzero(after == _SPACES)
    walking = spaced
    for _ in range(_MOST_SPACES):
        if not len(walking):
            break
        place[walking] = np.minimum(place[walking] + 1, len(ids) - 1)
        after[walking] = tables.after[ids[place[walking]]]
        walking = walking[after[walking] == _SPACES]
    after[walking] = _SENTENCE
    unclear = np.flatnonzero(after == _UNCLEAR)
    if len(unclear):
        word, size = _joined(ids, place[unclear], 1, tables.head, tables.size, 0)
        what = _what_follows(word, size)
        far = (what <= _SPACES) & _has(_first_character(word)[0], _SPACE)
        after[unclear] = np.where(far, _SENTENCE, what)
    after[spaced] = _AFTER_SPACES[after[spaced]]
    return after


def _is_terminated(
    ids: np.ndarray, at: np.ndarray, after: np.ndarray, tables: SentenceTables
) -> np.ndarray:
    """Whether the text ends in a terminator at each token in `at`, given what follows."""
    skip = np.zeros(len(at), np.int64)  # bytes of closers
    code, length = _character_before(ids, at, skip, tables)
    wide = (code > 0x7F) & ~_has(code, _OPENER)
    closed = np.arange(len(at))
    for _ in range(_MOST_CLOSERS):
        closed = closed[_has(code[closed], _CLOSER | _OPENER)]
        if not len(closed):
            break
        skip[closed] += length[closed]
        code[closed], length[closed] = _character_before(ids, at[closed], skip[closed], tables)
    decimal = (code == _WIDE_POINT) & (after == _NUMBER)
    unspaced = wide & _has(code, _UNSPACED_END) & ~decimal
    spaced = _has(code, _SPACED_END) & (after == _SENTENCE)
    stops = np.flatnonzero(spaced & (code == ord(".")) & (skip == 0))
    before, _ = _joined(ids, at[stops], -1, tables.tail, tables.size, skip[stops] + 1)
    spaced[stops] = ~_is_abbreviation(before)
    return unspaced | spaced


def _character_before(
    ids: np.ndarray, at: np.ndarray, skip: np.ndarray, tables: SentenceTables
) -> tuple[np.ndarray, np.ndarray]:
    """The last character and its length up to the end of each token, less `skip` bytes."""
    token = ids.take(at)
    stop = tables.stop.take(token) - skip
    code, length = _last_character(*(tables.values.take(stop - back) for back in (1, 2, 3)))
    split = np.flatnonzero(length > tables.size.take(token) - skip)
    if len(split):
        word, _ = _joined(ids, at[split], -1, tables.tail, tables.size, skip[split], enough=4)
        code[split], length[split] = _last_character(*_low_bytes(word))
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
        token, shift = ids.take(place), _bits(filled.take(todo))
        part = parts.take(token)
        word[todo] |= part << shift | part >> -shift  # of these, the one that wraps around is 0
        filled[todo] += sizes.take(token)
        place = place + step
        more = (filled[todo] < enough) & (place >= 0) & (place < len(ids))
        todo, place = todo[more], place[more]
    return word, filled


def _is_abbreviation(word: np.ndarray) -> np.ndarray:
    """Whether text ends in a lone letter or a known abbreviation; its last byte is the lowest."""
    may_be, _, before, _ = _last_word(word)
    return may_be & ~before


def _last_word(word: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What text ends with: is it a letter or a known abbreviation, if nothing of a word is before
    it; its bytes; is that so; and with the bytes of the character before it."""
    code, length = _last_character(*_low_bytes(word))
    bytes_ = word.astype("<u8").view(np.uint8).reshape(-1, 8)
    size = np.argmin(_ASCII_LETTER[bytes_], axis=1)  # letters at the end; 0 also for eight
    name = (word | _U(0x2020202020202020)) & ~(_U(0xFFFFFFFFFFFFFFFF) << _bits(size))
    known = _NAMES[np.searchsorted(_NAMES[:-1], name)] == name
    size = np.maximum(size, length)
    lone = _has(code, _LETTER) & (size == length)
    before, more = _last_character(*_low_bytes(word >> _bits(size)))
    return lone | known, size, _has(before, _WORD), size + more


def _is_calm(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether a full stop after each token is surely none of an abbreviation: bool [vocab_size].

    Where the token holds what decides it: its last character, which is of no alphabet with
    abbreviations, or its last word and the character before that.
    """
    may_be, word_size, before, with_before = _last_word(tail)
    size = np.minimum(size, 8)
    ascii_letter = _ASCII_LETTER[(tail & _BYTE).astype(np.int64)]
    decided = (with_before <= size) & (word_size < 8)
    return decided & ~(may_be & ~before) | ~may_be & ~ascii_letter & (word_size <= size)


def _is_inner(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether a full stop after each token is surely none of an abbreviation, if a letter is before
    the token: where it is a part of a word that is the end of no abbreviation."""
    code, length = _last_character(*_low_bytes(tail))
    bytes_ = tail.astype("<u8").view(np.uint8).reshape(-1, 8)
    letters = _ASCII_LETTER[bytes_].sum(axis=1) == size
    name = tail | _U(0x2020202020202020) & ~(_U(0xFFFFFFFFFFFFFFFF) << _bits(np.minimum(size, 8)))
    ascii_part = letters & ~np.isin(name, _NAME_ENDS)
    return (size > 0) & (ascii_part | (code > 0x7F) & (length == size))


def _ends_in_word(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    code, length = _last_character(*_low_bytes(tail))
    return _has(code, _WORD) & (length <= size)


_WIDE_MARKS = [char.encode() for char in _SPACED + _UNSPACED + _CLOSERS + _OPENERS if char > "~"]
_WIDE_ENDS = np.zeros(1 << 16, bool)  # by the last two bytes, the first of them highest
_WIDE_ENDS[[int.from_bytes(mark[-2:], "big") for mark in _WIDE_MARKS]] = True
_FINALS = np.zeros(256, bool)
_FINALS[[mark[-1] for mark in _WIDE_MARKS]] = True

_NAME_ENDS = np.array(
    [
        int.from_bytes(name[start:].encode(), "big")
        for name in _ABBREVIATIONS.split()
        for start in range(len(name))
    ],
    np.uint64,
)
_NAMES = np.sort(
    np.array([int.from_bytes(n.encode(), "big") for n in _ABBREVIATIONS.split()], np.uint64)
)
_ASCII_LETTER = np.array([chr(byte).isalpha() and byte < 0x80 for byte in range(256)])


def _first_character(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first UTF-8 character of bytes, the first lowest, and its length: int64, int64."""
    one, two, three = _low_bytes(word)
    length = 1 + (one >= 0xC0).astype(np.int64) + (one >= 0xE0) + (one >= 0xF0)
    return _character(one, two, three, length), length


def _last_character(
    one: np.ndarray, two: np.ndarray, three: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 character that ends in byte `one`, and its length: int64, int64.

    The bytes `two` and `three` stand before it.
    """
    code, length = one.astype(np.int64), np.ones(len(one), np.int64)
    wide = np.flatnonzero(one > 0x7F)
    if len(wide):
        one, two, three = one[wide], two[wide], three[wide]
        is_two = (two >= 0xC0) & (two < 0xE0)
        length[wide] = np.where(is_two, 2, np.where(three >= 0xE0, 3, 4))
        lead, second = np.where(is_two, two, three), np.where(is_two, one, two)
        code[wide] = _character(lead, second, one, length[wide])
    return code, length


def _character(
    lead: np.ndarray, second: np.ndarray, third: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """The character of UTF-8 bytes, int64; _NO_CHARACTER where there are four or it is none."""
    lead, second, third = (byte.astype(np.int64) for byte in (lead, second, third))
    two = (lead & 0x1F) << 6 | second & 0x3F
    three = (lead & 0x0F) << 12 | (second & 0x3F) << 6 | third & 0x3F
    code = np.where(length == 1, lead, np.where(length == 2, two, three))
    code[(length == 4) | (length == 1) & (lead > 0x7F)] = _NO_CHARACTER
    return code


def _low_bytes(word: np.ndarray) -> list[np.ndarray]:
    """The three lowest bytes, the lowest first."""
    return [word >> _U(8 * index) & _BYTE for index in range(3)]


def _bits(count: np.ndarray) -> np.ndarray:
    """Bytes to bits for a shift: uint64, less than 0 wrapped around. Shifts by >= 64 give 0."""
    return (count << 3).astype(np.uint64)
