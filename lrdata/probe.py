"""The text on which a fast encoder must equal the reference before it may be used.

Generated from Unicode ranges and a few pieces of code and prose, the same on every machine: its
encoding is one of the tokenizer's two fingerprints, so what this module yields must not change
without a new format version of the manifest.
"""

from collections.abc import Iterator, Sequence

from lrdata.draws import Draws, Stream

_SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {  # letters and signs, ends included
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0x61, 0x7A), (0xC0, 0x17F)),
    "Latin with combining marks": ((0x61, 0x7A), (0x61, 0x7A), (0x300, 0x30F)),
    "Greek": ((0x391, 0x3A1), (0x3AC, 0x3CE)),
    "Cyrillic": ((0x410, 0x44F), (0x430, 0x45F)),
    "Armenian": ((0x531, 0x556), (0x561, 0x586)),
    "Hebrew": ((0x5D0, 0x5EA), (0x5D0, 0x5EA), (0x5B0, 0x5B9)),
    "Arabic": ((0x621, 0x63A), (0x640, 0x652), (0x671, 0x6D3)),
    "Devanagari": ((0x905, 0x939), (0x93E, 0x94D)),
    "Bengali": ((0x985, 0x98C), (0x995, 0x9A8), (0x9BE, 0x9C4), (0x9E6, 0x9EF)),
    "Tamil": ((0xB85, 0xB8A), (0xBAE, 0xBB9), (0xBBE, 0xBC2)),
    "Thai": ((0xE01, 0xE3A), (0xE40, 0xE4E)),
    "Tibetan": ((0xF40, 0xF47), (0xF0B, 0xF0B), (0xF71, 0xF7D)),
    "Myanmar": ((0x1000, 0x1021), (0x102D, 0x1032)),
    "Georgian": ((0x10D0, 0x10F0),),
    "Ethiopic": ((0x1200, 0x1246), (0x1361, 0x1362)),
    "Khmer": ((0x1780, 0x17A2), (0x17B6, 0x17C5), (0x17D2, 0x17D2)),
    "Hangul": ((0xAC00, 0xD7A3), (0xAC00, 0xD7A3), (0x1100, 0x1112)),
    "Japanese": ((0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x4FFF), (0x3001, 0x3002)),
    "Chinese": ((0x4E00, 0x9FA5), (0x4E00, 0x6FFF), (0xFF0C, 0xFF0C), (0x20000, 0x2A6D6)),
    "beyond the basic plane": ((0x10330, 0x1034A), (0x10400, 0x1044F), (0x1D400, 0x1D454)),
}
_SWEEPS = (  # every character of these blocks
    (0x0000, 0x2FFF),
    (0xA960, 0xA97F),
    (0xE000, 0xE00F),
    (0xFB00, 0xFDFF),
    (0xFE00, 0xFFFF),
    (0x1F1E6, 0x1F1FF),
    (0x1F300, 0x1F64F),
    (0xE0001, 0xE007F),
    (0x10FFF0, 0x10FFFF),
)
_BETWEEN = (" ", " ", " ", " ", ", ", ". ", "\n", "\n\n", "  ", "-", "", " (", ") ", "'", "’s ")
_PIECES = (
    *(
        " ",
        " ",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        " \n",
        "\n ",
        "\u00a0",
        "\u3000",
    ),
    *(
        "\u200b",
        "\u2028",
        "\u0085",
        "\x00",
        "\ufeff",
        "\x0b\x0c",
        "a",
        "I",
        "É",
        "e\u0301",
        "ﬁ",
        "ß",
        "İ",
    ),
    *("'s", "'S", "'t", "'re", "'LL", "'ſ", "’ve", "'d", "''", "K", "ſ", "ǅ", "ª", "²", "½", "Ⅷ"),
    *("1", "12", "123", "1234", "3.14", "1,000", "٣٤", "१२", "𝟘", "5th", "0x1F", "1e-9", "v2.0"),
    *("the", "The", " THE", "camelCase", "snake_case", "SHOUT", "don't", "naïve", "e.g.", "Dr. "),
    *(
        "def f(x):\n    ",
        "return ",
        "self.",
        "()",
        "[i]",
        "{}",
        "!=",
        "+=",
        "->",
        "//",
        "/* ",
        "#!",
    ),
    *(
        "<p>",
        "</p>",
        "<b",
        "&amp;",
        "https://a.bc/d?e=f",
        "a@b.cd",
        "...",
        "…",
        "--",
        "***",
        "$",
        "€",
    ),
    *("“", "”", "»", "。", "，", "！？", "—", "_", "\\n", "\\", "|", "<|", "|>", "~", "`", "%"),
    *(
        "👍",
        "👍🏽",
        "👨‍👩‍👧‍👦",
        "🇫🇷🇯🇵",
        "☎️",
        "1️⃣",
        "한국",
        "的是",
        "です",
        "ไทย",
        "हिन्दी",
        "عربي",
        "עברית",
    ),
    *("\u0301", "\u200d", "\ufe0f", "\U000e0041", "\ue000", "\uffff", "\U0010ffff", "\U00020000"),
)
_REPEATED = (
    " ",
    "\n",
    "\t",
    "\r\n",
    " \n",
    "a",
    "Z",
    "1",
    ".",
    "=",
    "-",
    "/",
    "é",
    "的",
    "한",
    "\u0301",
)
_TIMES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 129, 1000)


def probe_texts(added_tokens: Sequence[str]) -> list[str]:
    """The probe for a tokenizer with these added tokens (their texts, in the order of their ids).

    The last text is the one with all the added tokens in it.
    """
    draws = Draws("probe")
    texts = ["", " ", "\n", "a"]
    texts += [_words(draws.stream(name), ranges) for name, ranges in _SCRIPTS.items()]
    texts += [f"x{piece * times}y" for piece in _REPEATED for times in _TIMES]
    hostile = draws.stream("pieces")
    texts += [_mix(hostile, _PIECES, 120) for _ in range(32)]
    texts.append("".join(texts))  # long enough to be cut, if the encoder cuts
    texts += [_sweep(at, min(at + 255, last)) for at, last in _blocks()]
    if added_tokens:
        few = added_tokens[:: -(-len(added_tokens) // 64)]
        texts += [variant for token in few for variant in _around(token)]
        texts += [_mix(hostile, (*few, *_PIECES), 200) for _ in range(8)]
    texts.append(" ".join(added_tokens) + "\n" + "".join(added_tokens))
    return texts


def _words(stream: Stream, ranges: tuple[tuple[int, int], ...]) -> str:
    """About sixty made-up words of a script, with what stands between words."""
    letters = [chr(code) for first, last in ranges for code in range(first, last + 1)]
    words = []
    for length in (stream.below(9, 60) + 1).tolist():
        words.append("".join(letters[at] for at in stream.below(len(letters), length).tolist()))
        words.append(_BETWEEN[int(stream.below(len(_BETWEEN), 1)[0])])
    return "".join(words)


def _blocks() -> Iterator[tuple[int, int]]:
    """Starts of at most 256 characters each, with the end of the sweep they belong to."""
    for first, last in _SWEEPS:
        yield from ((start, last) for start in range(first, last + 1, 256))


def _sweep(first: int, last: int) -> str:
    """All characters of a block: in runs, and between letters."""
    lines = []
    for start in range(first, last + 1, 32):
        characters = [chr(code) for code in range(start, min(start + 32, last + 1))]
        lines += ["".join(characters), "a".join(characters)]
    return "\n".join(lines)


def _mix(stream: Stream, pieces: Sequence[str], count: int) -> str:
    return "".join(pieces[at] for at in stream.below(len(pieces), count).tolist())


def _around(token: str) -> list[str]:
    """A token's text where an encoder might take it for the token."""
    inside = (token, f"a{token}b", f" {token} ", f"\n{token}\n", token + token)
    return [*inside, token[:-1], token[1:], token.upper(), f"1{token}1 {token}."]
