"""What the splitter knows of each token of a vocabulary before it sees any text: with what it ends,
and what it is to the token before it."""

from dataclasses import dataclass

import numpy as np

from lrdata.sentences.characters import (
    ASCII_LETTER,
    BYTE,
    CLOSER,
    DIGIT,
    FINALS,
    LINE,
    MOST_CLOSERS,
    NAME_ENDS,
    OPENER,
    SMALL,
    SPACE,
    SPACED_END,
    UNSPACED_END,
    WIDE_BEGINS,
    WIDE_ENDS,
    WIDE_POINT,
    WORD,
    bits,
    first_character,
    has,
    last_character,
    last_word,
    low_bytes,
)
from lrdata.vocabulary import Vocabulary

# What a token ends with, a bit each. STOP: a terminator and perhaps closers; CLOSED: nothing but
# closers; WIDE: either of them with a last character beyond ASCII, or what may be the end of one
# that begins in the token before.
NOTHING = 0
LINE_END, STOP, CLOSED, WIDE, EOT = (1 << bit for bit in range(5))

# What a terminator at the end of a token needs to end a sentence: a look at the text before it and
# after; where a sentence begins after it, to follow what is no abbreviation, or nothing more; where
# no line end and no other terminator comes after it, nothing more.
A_LOOK, CALM, SENTENCE_AFTER, ANY_AFTER = range(4)

# What follows a token. Directly: TEXT (anything else), LOWER (a small letter), NUMBER,
# TERMINATOR (or a closer). After white space: SENTENCE, LOWER_WORD. Either way: LINE_OR_EOT.
# SPACES alone and UNCLEAR (less than a character) need a look at the token after.
UNCLEAR, SPACES, TEXT, LOWER, NUMBER, TERMINATOR, SENTENCE, LOWER_WORD, LINE_OR_EOT = range(9)
AFTER_SPACES = np.full(9, SENTENCE, np.uint8)  # what the above become after white space
AFTER_SPACES[[LOWER, LOWER_WORD]] = LOWER_WORD
AFTER_SPACES[[UNCLEAR, SPACES, LINE_OR_EOT]] = UNCLEAR, SPACES, LINE_OR_EOT

# Which token ends may be sentence ends before each of these, as bits; and which surely are.
ANY = LINE_END | STOP | CLOSED | WIDE | EOT
_POSSIBLE = np.full(9, LINE_END | WIDE | EOT, np.uint16)
_POSSIBLE[[UNCLEAR, SPACES, SENTENCE]] = ANY
_POSSIBLE[TERMINATOR] = LINE_END | EOT
_POSSIBLE[LINE_OR_EOT] = EOT
_SURE = np.full(9, LINE_END | EOT, np.uint16)
_SURE[[UNCLEAR, SPACES, LINE_OR_EOT]] = EOT
BEFORE_SENTENCE = STOP | LINE_END << 5  # possible and sure ends where a token is SENTENCE

_U = np.uint64


@dataclass(frozen=True)
class SentenceTables:
    """What the splitter needs to know of each token id: arrays of length vocab_size."""

    # uint16: what it ends with (5 bits), possible and sure ends before it (5 each), is it SPACES
    pair: np.ndarray
    calm: np.ndarray  # bool: a full stop after it is none of an abbreviation, whatever is before it
    inner: np.ndarray  # bool: the same, if a letter is before it
    word: np.ndarray  # bool: its last character is a letter, or another part of a word
    needs: np.ndarray  # uint8: what its terminator needs to end a sentence
    ended: np.ndarray  # bool: closers alone after it may end a sentence
    lone: np.ndarray  # bool: it is a last byte of a character that begins before
    begins: np.ndarray  # bool: a byte after it may end a mark beyond ASCII
    last: np.ndarray  # uint16: its last two bytes, the last one lowest
    after: np.ndarray  # uint8: what it is to a token before it
    head: np.ndarray  # uint64: its first eight bytes, the first lowest
    tail: np.ndarray  # uint64: its last eight bytes, the last lowest
    size: np.ndarray  # int64: its bytes; 8 for a special token, which reads as NULs
    stop: np.ndarray  # int64: where it ends in `values`
    values: np.ndarray  # uint8: the bytes of all tokens


def sentence_tables(vocabulary: Vocabulary) -> SentenceTables:
    """Tables for a vocabulary, from its id-to-bytes table."""
    values, offsets = vocabulary.token_bytes
    special = vocabulary.special
    sizes = np.where(special, 0, np.diff(offsets))
    head = _eight_bytes(values, offsets[:-1], sizes, 1)
    tail = _eight_bytes(values, offsets[1:] - 1, sizes, -1)

    end = _what_ends(tail, sizes).astype(np.uint16)
    ended = end != NOTHING
    lines = np.concatenate([[0], np.cumsum((values == 0x0A) | (values == 0x0D))])
    end[(lines[offsets[1:]] > lines[offsets[:-1]]) & ~special] = LINE_END
    end[vocabulary.eot_id] = EOT
    sizes[special] = 8
    after = what_follows(head, sizes)
    for start in range(8, int(sizes.max(initial=0)), 8):  # tokens of more white space than that
        long = np.flatnonzero((after == SPACES) & (sizes > start))
        rest = sizes[long] - start
        words = _eight_bytes(values, offsets[long] + start, rest, 1)
        after[long] = AFTER_SPACES[what_follows(words, rest)]
    spaces = (after == SPACES).astype(np.uint16)
    last = tail.astype(np.uint16)  # the lowest bytes
    return SentenceTables(
        pair=end | _POSSIBLE[after] << 5 | _SURE[after] << 10 | spaces << 15,
        calm=_is_calm(tail, sizes),
        inner=_is_inner(tail, sizes),
        word=_ends_in_word(tail, sizes),
        needs=_what_is_needed(tail, sizes),
        ended=ended,
        lone=(last & 0xFFC0) == 0x80,
        begins=WIDE_BEGINS[last],
        last=last,
        after=after,
        head=head,
        tail=tail,
        size=sizes,
        stop=offsets[1:],
        values=values,
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
    wide = tail & BYTE > 0x7F
    rest, left = _without_closers(tail, size)
    code, length = last_character(*low_bytes(rest))
    ended = np.where(wide, has(code, SPACED_END | UNSPACED_END), has(code, SPACED_END))
    begun = np.where(left == 1, FINALS[rest & BYTE], WIDE_ENDS[rest & _U(0xFFFF)])
    closed, may_end = left == 0, np.where(length > left, begun, ended)
    cases = [size == 0, closed & ~wide, (closed | may_end) & wide, may_end]
    return np.select(cases, [NOTHING, CLOSED, WIDE, STOP], NOTHING).astype(np.uint8)


def _without_closers(tail: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last bytes of text, and how many they are, without the closers that it ends with."""
    rest, left = tail, np.minimum(size, 8)
    for _ in range(MOST_CLOSERS):
        code, length = last_character(*low_bytes(rest))
        closed = has(code, CLOSER | OPENER) & (length <= left)
        rest = np.where(closed, rest >> bits(length), rest)
        left = np.where(closed, left - length, left)
    return rest, left


def _what_is_needed(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    """What a terminator at the end of a token needs to end a sentence, uint8."""
    rest, left = _without_closers(tail, size)
    code, length = last_character(*low_bytes(rest))
    whole = length <= left
    spaced = has(code, SPACED_END) & whole
    unspaced = has(code, UNSPACED_END) & whole & (rest == tail) & (code != WIDE_POINT)
    stop = (code == ord(".")) & (rest == tail)  # may be of an abbreviation; not before closers
    sure = spaced & (~stop | _is_calm(rest >> _U(8), left - 1))
    cases = [unspaced, sure, spaced & stop & (size == 1)]
    return np.select(cases, [ANY_AFTER, SENTENCE_AFTER, CALM], A_LOOK).astype(np.uint8)


def what_follows(word: np.ndarray, size: np.ndarray) -> np.ndarray:
    """What text is to the token before it, uint8, by its first `size` bytes, the first lowest."""
    size = np.minimum(size, 8)
    spaced = np.zeros(word.shape, bool)
    while True:
        code, length = first_character(word)
        whole = length <= size
        space = has(code, SPACE) & whole
        if not space.any():
            break
        spaced |= space
        word = np.where(space, word >> bits(length), word)
        size = np.where(space, size - length, size)
    closing = has(code, SPACED_END | UNSPACED_END | CLOSER) & (code > 0x7F)
    direct = np.select(
        [~whole, has(code, SMALL), has(code, DIGIT), closing, has(code, LINE)],
        [UNCLEAR, LOWER, NUMBER, TERMINATOR, LINE_OR_EOT],
        TEXT,
    )
    what = np.where(spaced & whole, AFTER_SPACES[direct], direct)
    what[spaced & (size == 0)] = SPACES
    return what.astype(np.uint8)


def _is_calm(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether a full stop after each token is surely none of an abbreviation: bool [vocab_size].

    Where the token holds what decides it: its last character, which is of no alphabet with
    abbreviations, or its last word and the character before that.
    """
    may_be, word_size, before, with_before = last_word(tail)
    size = np.minimum(size, 8)
    ascii_letter = ASCII_LETTER[(tail & BYTE).astype(np.int64)]
    decided = (with_before <= size) & (word_size < 8)
    return decided & ~(may_be & ~before) | ~may_be & ~ascii_letter & (word_size <= size)


def _is_inner(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Whether a full stop after each token is surely none of an abbreviation, if a letter is before
    the token: where it is a part of a word that is the end of no abbreviation."""
    code, length = last_character(*low_bytes(tail))
    bytes_ = tail.astype("<u8").view(np.uint8).reshape(-1, 8)
    letters = ASCII_LETTER[bytes_].sum(axis=1) == size
    name = tail | _U(0x2020202020202020) & ~(_U(0xFFFFFFFFFFFFFFFF) << bits(np.minimum(size, 8)))
    ascii_part = letters & ~np.isin(name, NAME_ENDS)
    return (size > 0) & (ascii_part | (code > 0x7F) & (length == size))


def _ends_in_word(tail: np.ndarray, size: np.ndarray) -> np.ndarray:
    code, length = last_character(*low_bytes(tail))
    return has(code, WORD) & (length <= size)
