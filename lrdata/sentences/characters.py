"""Characters in arrays of UTF-8 bytes: which end a sentence, and what the others are; the first and
the last one of some bytes; abbreviations."""

from functools import cache
from unicodedata import ucd_3_2_0 as unicode_data  # frozen: another version would move ends

import numpy as np

_SPACED = ".?!…"  # need white space after them
_UNSPACED = "。！？．｡।॥؟۔።፧។៕။།༎᠃։"
_CLOSERS = "\"')]}*_`»›”’」』）】》〉］｝〕〗"
_OPENERS = "“‘«‹"  # they close in German and Danish („So.“ Da), but open in 。“他
WIDE_POINT = ord("．")  # in CJK text it is also that of a decimal number
MOST_CLOSERS = 3

_ABBREVIATIONS = (
    "mr mrs ms dr prof st vs etc cf fig eq eqs sec ch vol pp ed eds al ca approx dept inc "
    "ltd co corp jr sr gen col capt lt sgt rev hon jan feb mar apr jun jul aug sep sept oct nov dec"
)

# What a character is, as bit flags.
SPACE, LINE, SMALL, LETTER, WORD, DIGIT, SPACED_END, UNSPACED_END, CLOSER, OPENER = (
    1 << bit for bit in range(10)
)
MARK = SPACED_END | UNSPACED_END | CLOSER | OPENER
_NO_CHARACTER = 0xFFFF  # beyond the basic plane, or no whole character: no flags

_U = np.uint64
BYTE = _U(0xFF)

_WIDE_MARKS = [char.encode() for char in _SPACED + _UNSPACED + _CLOSERS + _OPENERS if char > "~"]
WIDE_ENDS = np.zeros(1 << 16, bool)  # by the last two bytes, the first of them highest
WIDE_ENDS[[int.from_bytes(mark[-2:], "big") for mark in _WIDE_MARKS]] = True
_BEGINS = np.zeros((256, 256), bool)  # by the last two bytes, or 0 and one that is alone
for _mark in _WIDE_MARKS:
    _BEGINS[:, _mark[0]] |= len(_mark) == 2
    _BEGINS[[_mark[0], 0], _mark[1]] |= len(_mark) == 3
WIDE_BEGINS = _BEGINS.ravel()  # whether one more byte may end a mark

FINALS = np.zeros(256, bool)
FINALS[[mark[-1] for mark in _WIDE_MARKS]] = True

NAME_ENDS = np.array(
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
ASCII_LETTER = np.array([chr(byte).isalpha() and byte < 0x80 for byte in range(256)])


@cache
def _character_flags() -> np.ndarray:
    """Flags of every character of the basic plane, uint16 [65536]."""
    flags = np.zeros(1 << 16, np.uint16)
    for code in range(_NO_CHARACTER):
        category = unicode_data.category(chr(code))
        flags[code] |= WORD * (category[0] in "LMN") | SPACE * (category[0] == "Z")
        flags[code] |= SMALL * (category == "Ll") | DIGIT * (category == "Nd")
        # Initials are of alphabets with at most two bytes a letter: Latin, Cyrillic, Arabic, ...
        flags[code] |= LETTER * (category[0] == "L" and code < 0x800)
    groups = {
        SPACE: "\t\v\f",
        LINE: "\r\n\0",  # a special token reads as NUL
        SPACED_END: _SPACED,
        UNSPACED_END: _UNSPACED,
        CLOSER: _CLOSERS,
        OPENER: _OPENERS,
    }
    for flag, characters in groups.items():
        flags[[ord(char) for char in characters]] |= flag
    return flags


def has(code: np.ndarray, flags: int) -> np.ndarray:
    """Whether characters have one of `flags`."""
    return _character_flags()[code] & flags != 0


def first_character(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first UTF-8 character of bytes, the first lowest, and its length: int64, int64."""
    one, two, three = low_bytes(word)
    length = 1 + (one >= 0xC0).astype(np.int64) + (one >= 0xE0) + (one >= 0xF0)
    return _character(one, two, three, length), length


def last_character(
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


def low_bytes(word: np.ndarray) -> list[np.ndarray]:
    """The three lowest bytes, the lowest first."""
    return [word >> _U(8 * index) & BYTE for index in range(3)]


def bits(count: np.ndarray) -> np.ndarray:
    """Bytes to bits for a shift: uint64, less than 0 wrapped around. Shifts by >= 64 give 0."""
    return (count << 3).astype(np.uint64)


def is_abbreviation(word: np.ndarray) -> np.ndarray:
    """Whether text ends in a lone letter or a known abbreviation; its last byte is the lowest."""
    may_be, _, before, _ = last_word(word)
    return may_be & ~before


def last_word(word: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What text ends with: is it a letter or a known abbreviation, if nothing of a word is before
    it; its bytes; is that so; and with the bytes of the character before it."""
    code, length = last_character(*low_bytes(word))
    bytes_ = word.astype("<u8").view(np.uint8).reshape(-1, 8)
    size = np.argmin(ASCII_LETTER[bytes_], axis=1)  # letters at the end; 0 also for eight
    name = (word | _U(0x2020202020202020)) & ~(_U(0xFFFFFFFFFFFFFFFF) << bits(size))
    known = _NAMES[np.searchsorted(_NAMES[:-1], name)] == name
    size = np.maximum(size, length)
    lone = has(code, LETTER) & (size == length)
    before, more = last_character(*low_bytes(word >> bits(size)))
    return lone | known, size, has(before, WORD), size + more
