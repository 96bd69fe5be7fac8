"""Classes of tokens, from their bytes: what kind of text does a token stand for?

The paper counts parts of speech (Figure 4). Tokens are parts of words, of any language or of code,
so these classes go by what a token looks like; the first that fits counts:

    special       a control token
    byte          less than a character
    newline       holds a line end
    space         nothing but white space
    cjk           holds a Han, kana or Hangul character
    number        holds a digit, no letter
    identifier    letters with digits, with `_`, or with a capital after a small one
    acronym       two capitals or more, no small letter
    capitalised   a capital, then small letters, if any
    word start    white space, then anything with letters
    word part     the same without white space: goes on with a word, or follows a mark
    punctuation   of prose: . , ; : ? ! ' " ( ) - and their like in any script
    symbol        anything else: = { } < / # ...
"""

import re
import unicodedata

import numpy as np

from lrdata.vocabulary import Vocabulary, each_token

CLASSES = (
    "number",
    "punctuation",
    "symbol",
    "newline",
    "space",
    "word start",
    "word part",
    "capitalised",
    "acronym",
    "identifier",
    "cjk",
    "byte",
    "special",
)

_CJK = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
_INNER_CAPITAL = re.compile("[a-z][A-Z]")
_VARIATION = re.compile("[\ufe00-\ufe0f]")  # says how the character before it is drawn
_PROSE = frozenset(".,;:?!'\"()-")


def token_classes(vocabulary: Vocabulary) -> np.ndarray:
    """The class of each id, as an index of CLASSES: uint8 [vocab_size]."""
    tokens = zip(each_token(vocabulary.token_bytes), vocabulary.special.tolist(), strict=True)
    names = ("special" if special else class_of(token) for token, special in tokens)
    numbers = {name: number for number, name in enumerate(CLASSES)}
    return np.fromiter((numbers[name] for name in names), np.uint8, len(vocabulary.special))


def class_of(token: bytes) -> str:
    """The class of a token that is not special."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return "byte"
    core = text.strip()
    if "\n" in text or "\r" in text:
        return "newline"
    if not core:
        return "space"
    if _CJK.search(core):
        return "cjk"
    letters = "".join(filter(_is_letter, core))
    if not letters:
        return _without_letters(core)
    if (len(letters) < len(core) and _is_name(core)) or _INNER_CAPITAL.search(core):
        return "identifier"
    if sum(map(str.isupper, letters)) > 1 and letters.isupper():
        return "acronym"
    if letters[0].isupper():
        return "capitalised"
    return "word start" if text[0].isspace() else "word part"


def _without_letters(core: str) -> str:
    if any(map(str.isnumeric, core)):
        return "number"
    prose = all(mark in _PROSE or _is_wide_punctuation(mark) for mark in core)
    return "punctuation" if prose else "symbol"


def _is_wide_punctuation(mark: str) -> bool:
    return not mark.isascii() and unicodedata.category(mark).startswith("P")


def _is_letter(character: str) -> bool:
    """Or a mark that belongs to one, as the vowel signs of Indian scripts are."""
    if character.isascii() or character.isalpha():
        return character.isalpha()
    mark = unicodedata.category(character) in ("Mn", "Mc")
    return mark and not _VARIATION.match(character)


def _is_name(core: str) -> bool:
    return "_" in core or any(map(str.isnumeric, core))
