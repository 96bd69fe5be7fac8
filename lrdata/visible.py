"""Text is data: what a terminal or a browser would obey becomes a visible sign.

    visible("a\\x1b[31m")                  # 'a␛[31m'
    visible("two\\nlines", keep="\\n\\t")    # as it is

These are control characters, the marks that change the direction of writing, what takes no room and
so hides in a name (but for the joiners that scripts and emoji need), and halves of surrogate pairs,
which JSON can hold and UTF-8 cannot. A sign is one character for one.
"""

from functools import cache


def visible(text: str, keep: str = "") -> str:
    """The text without characters that do something; those of `keep` stay."""
    return text if text.isprintable() else text.translate(_signs(keep))


@cache
def _signs(keep: str) -> dict[int, int]:
    return {code: sign for code, sign in _SIGNS.items() if chr(code) not in keep}


_REPLACEMENT = 0xFFFD
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_HIDDEN = (
    *(0x200B, 0xFEFF, *range(0x2060, 0x2065), *range(0x206A, 0x2070)),
    *(*range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)),
)
_SURROGATES = range(0xD800, 0xE000)
_SIGNS = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), *_DIRECTIONS, *_HIDDEN, *_SURROGATES), _REPLACEMENT),
}
