import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrdata.sentences import SentenceTables, characters, sentence_lengths, sentence_tables
from lrdata.tokenizer import Tokenizer
from tests.fetch import fetch

EOT = None  # in a list of tokens, the end-of-text token
Token = bytes | None
NO_LIMIT = 10**9


def split(tokens: Sequence[Token], max_tokens: int = NO_LIMIT) -> list[int]:
    """Sentence ends, as numbers of tokens before them, of text cut into tokens in any way."""
    pieces = sorted({token for token in tokens if token is not None})
    number = {piece: i for i, piece in enumerate(pieces)} | {EOT: len(pieces)}
    ids = np.array([number[token] for token in tokens], np.int32)
    lengths = sentence_lengths(ids, tables_of([*pieces, b"<|eot|>"]), max_tokens)
    return np.cumsum(lengths).tolist()


def tables_of(pieces: list[bytes]) -> SentenceTables:
    """Tables of a vocabulary, the end-of-text token last."""
    return sentence_tables(vocabulary(pieces, [False] * (len(pieces) - 1) + [True]))


def vocabulary(pieces: list[bytes], special: list[bool]) -> Tokenizer:
    """As much of a tokenizer as the splitter looks at."""
    offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
    return cast(
        Tokenizer,
        SimpleNamespace(
            token_bytes=(np.frombuffer(b"".join(pieces), np.uint8), offsets),
            special=np.array(special, bool),
            eot_id=special.index(True),
        ),
    )


# Ways to cut text into tokens, from single bytes to whole words.


def by_bytes(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


def by_characters(text: str) -> list[bytes]:
    return [char.encode() for char in text]


def by_pairs(text: str) -> list[bytes]:
    data = text.encode()
    return [data[i : i + 2] for i in range(0, len(data), 2)]


def by_words(text: str) -> list[bytes]:
    """As byte-level tokenizers cut text before they merge: words with the space before them."""
    pattern = r"[^\s\w]?\w+| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s"
    words = [word.encode() for word in re.findall(pattern, text)]
    assert b"".join(words) == text.encode()
    return words


def boundaries(tokens: Sequence[Token]) -> list[int]:
    """Bytes before each token's end."""
    return np.cumsum([len(token or b"") for token in tokens]).tolist()


# What a reader expects: ¦ marks the sentence ends.

EXAMPLES = """
He left.¦ She stayed.¦ Why?¦ Because!¦ Well…¦ Yes.
What?!¦ No...¦ And 3 more.¦ 12 in all.
He said "No."¦ Then he left.¦ (It works.)¦ Next.¦ [See 2.]¦ A `dot.`¦ **Bold.**¦ Then
“Stop.”¦ She stopped.¦ “‘It is the end.’”¦ Then “I see.” came
„So ist es.“¦ Danach ›Ja!‹¦ «Oui.»¦ »Nein.«¦ Gut
“What?” he said. and then “Stop!” she said
It is 3.14 or so, e.g. this, i.e. that; see http://a.b/c?d=e.f!g and foo.bar() etc. and more
J. Smith and “J. Doe”, Dr. Who of the U.S. Army, Mr. X vs. Prof. Y, «M. Dupont» and Fig. 3
Acme Inc. Jan. 5, (Dr. No), I.e. This, et al. (2020), the S.A. Company, Sept. 11, St. Ives
("'One.'")¦ But (["'four.'"]) Marks after it are too many
The oboe.¦ It is medical.¦ The bed.¦ So, Hermes.¦ No.¦ (Made by Acme Inc.)¦ “Dr.”¦ Edited
Good 👍.¦ Next 😀!¦ Then x².¦ And 2b.¦ And naïve.¦ And où.¦ End
one.¦  Two.¦   Three.  four.\tfive.¦\tSix.¦ Seven.¦　Eight
А. С. Пушкин родился.¦ Он, т.е. поэт, писал и т.д. и т.п. до конца.¦ Да.¦ Нет
Όχι.¦ Ναι.¦ კარგი.¦ არა.¦ כן.¦ לא.¦ Բարեւ։¦ Այո։¦
你好。¦世界！¦真的？！¦“好。”¦他说。¦“走。”¦「終わり。」¦次。¦（完。）¦『「はい。」』¦終わり．¦次は３．１４です。¦
他说：‘好……’然后走了。¦2024年。¦“他说：‘好。’”¦后来
यह है।¦ वह है॥¦ क्या?¦ हाँ।¦ राम।¦
كيف حالك؟¦ بخير.¦ شكرا.¦ یہ ہے۔¦ وہ۔¦
ሰላም።¦ ደህና፧¦ ជំរាបសួរ។¦ បាទ៕¦ မင်္ဂလာပါ။¦ ဟုတ်။¦ བཀྲ་ཤིས།¦ བདེ།¦
if (a) { return b[0].c(); } // d() * 2.5 ? x : y; e != f; "%s.%s" % g; h = {'a': [1.]}; **kwargs
"""

LINES = [
    "one\n¦two\r\n¦three\r¦four",
    "one\n\n\n¦two",  # blank lines stay with the line above
    "one\n  \n\t\n¦two",
    "end.\n¦Next?  \n\n¦“So.”\n¦end",
    "def f(x):\n¦    return x.y()\n\n\n¦class A:\n¦    pass  # why?¦ Because.\n¦",
    "你好。\n¦世界」\n¦",
    "Dr.\n¦Who",  # a line end is a line end
    "a\n" + " " * 40 + "\n¦b\n" + "\n" * 30 + "¦c",
]


def example_lines() -> Iterator[str]:
    yield from EXAMPLES.strip("\n").replace("\\t", "\t").split("\n")
    yield from LINES


ALL_EXAMPLES = " ".join(example_lines()).replace("¦", "")


@pytest.mark.parametrize(
    ("way", "marked"),
    [
        (way, marked)
        for way in (by_bytes, by_characters, by_pairs, by_words)
        for marked in example_lines()
        if not (way is by_pairs and marked in LINES)  # pairs hide line ends inside of tokens
    ],
)
def test_sentences_end_where_a_reader_ends_them(
    way: Callable[[str], list[bytes]], marked: str
) -> None:
    text = marked.replace("¦", "")
    expected = np.cumsum([len(part.encode()) for part in marked.split("¦")]).tolist()
    if marked.endswith("¦"):
        expected.pop()
    tokens = way(text)
    bounds = boundaries(tokens)
    ends = [bounds[end - 1] for end in split(tokens)]
    assert ends == [end for end in expected if end in bounds]


def test_the_end_of_text_ends_a_sentence_with_the_terminator_before_it() -> None:
    tokens = [b"One", b".", EOT, b"J", b".", EOT, EOT, b"two", b"\n", EOT, "”".encode(), b" Three"]
    assert split(tokens) == [3, 6, 7, 10, 12]  # nothing is read across an end of text


def test_text_without_sentence_ends_is_cut() -> None:
    assert split([b"word "] * 23, max_tokens=10) == [10, 20, 23]
    assert split([b"a", b"\n"] * 3 + [b"b"] * 11, max_tokens=5) == [2, 4, 6, 11, 16, 17]
    assert split([]) == []
    assert split([b"."]) == [1]


def test_long_white_space_does_not_hide_what_follows() -> None:
    assert split([b"End", b".", b" " * 30 + b"\n", b"Next"]) == [3, 4]
    assert split([b"End", b".", b" " * 30, b"and"]) == [4]
    assert split([b"End", b".", b" " * 30 + b"And"]) == [2, 3]
    assert split([b"End", b".", *[b" "] * 12, b"and"]) == [15]
    assert split([b"End", b".", *[b" "] * 9999, b"and"])[0] == 2  # and costs no time


def test_tokens_of_letters_and_stops_together() -> None:
    assert split([b"The end of sentences.", b" Next"]) == [1, 2]
    assert split([b"See approximately.", b" Next"]) == [1, 2]
    assert split([b"U.S.", b" Army"]) == [2]
    assert split([b"Dr", b". ", b"Who"]) == [3]  # no token ends where the text could be divided
    assert split([b"So. ", b"Who"]) == [2]


# Against the rule, read from the text of the tokens: slow, and nothing shared with the tables.

CLOSERS = "\"')]}*_`»›”’」』）】》〉］｝〕〗“‘«‹"
OPENERS = "“‘«‹"
UNSPACED = "。！？．｡।॥؟۔።፧។៕။།༎᠃։"
ABBREVIATIONS = characters._ABBREVIATIONS.split()  # a list of words is not worth a second one


def reference(tokens: Sequence[Token]) -> list[int]:
    ends = [i + 1 for i in range(len(tokens) - 1) if ends_after(tokens, i)]
    return [*ends, len(tokens)] if tokens else []


def ends_after(tokens: Sequence[Token], index: int) -> bool:
    token = tokens[index]
    if token is EOT:
        return True
    start = max((i + 1 for i in range(index) if tokens[i] is EOT), default=0)
    stop = next((i for i in range(index, len(tokens)) if tokens[i] is EOT), len(tokens))
    before = b"".join(cast(Sequence[bytes], tokens[start : index + 1]))
    after = b"".join(cast(Sequence[bytes], tokens[index + 1 : stop]))
    eot_follows = stop < len(tokens)
    text = after.decode(errors="replace")
    word = text.lstrip(" \t\u00a0\u3000")
    if word[:1] in ("\r", "\n") or (not word and eot_follows):
        return False  # the end comes later
    if b"\n" in token or b"\r" in token:
        return True
    try:
        return is_terminated(before.decode(), len(word) < len(text), word)
    except UnicodeDecodeError:
        return False  # inside a character


def is_terminated(before: str, spaced: bool, word: str) -> bool:
    core = before
    while core[-1:] and core[-1] in CLOSERS and len(before) - len(core) < 3:
        core = core[:-1]
    stop = core[-1:]
    if stop and stop in UNSPACED:
        if before[-1].isascii() or before[-1] in OPENERS:
            return False
        if not spaced and word[:1] and word[0] in UNSPACED + "…" + CLOSERS.strip(OPENERS):
            return word[0].isascii()
        return not (stop == "．" and not spaced and unicodedata.category(word[:1] or "x") == "Nd")
    first = word[:1] if word[:1] < "\U00010000" else ""  # of the basic plane only
    small = first.islower() and first.title() != first  # Georgian has no small letters
    if stop not in tuple(".?!…") or not spaced or small:
        return False
    if stop != "." or core != before:
        return True
    return not is_abbreviation(core[:-1].encode()[-8:].decode(errors="ignore"))


def is_abbreviation(text: str) -> bool:
    if not text:
        return False
    lone = category(text[-1])[0] == "L" and ord(text[-1]) < 0x800
    names = [text[-1]] * lone + [a for a in ABBREVIATIONS if text.lower().endswith(a)]
    return any(category(text[: -len(name)][-1:] or " ")[0] not in "LMN" for name in names)


def category(char: str) -> str:
    return unicodedata.category(char) if char < "\U00010000" else "Co"


FRAGMENTS = [
    *"aZé.?!…,\"')]*_`»”’«“‘ßñжЖიσ2１３²９-:/",
    *[
        "e.g",
        "Dr",
        "etc",
        "J",
        "ÉA",
        "approx",
        "no",
        "U.S",
        "3.14",
        "foo.bar()",
        "http://a.b",
        "it",
    ],
    *[" ", " ", " ", "  ", "\t", "\u00a0", "\u3000", "\n", "\n", "\r\n", "   \n", "\n\n"],
    *["。", "！", "？", "．", "」", "』", "）", "他", "の", "가", "“他", "。」", "……"],
    *["।", "है", "؟", "۔", "م", "።", "ሰ", "។", "ក", "။", "ပ", "։", "Բ", "ბ", "།", "ཀ", "😀", "𐐨"],
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)


@st.composite
def tokenizations(draw: st.DrawFn) -> list[Token]:
    """A few documents, each cut into tokens of one to eight bytes at random places."""
    tokens: list[Token] = []
    for text in draw(st.lists(texts, min_size=1, max_size=3)):
        data = text.encode()
        while data:
            size = draw(st.integers(1, 8))
            tokens.append(data[:size])
            data = data[size:]
        tokens.append(EOT)
    return tokens


@given(tokenizations())
@example([b"a", b".", b"\xe2\x80", b"\x9d", b" ", b"\xd0", b"\x96", EOT])
@example(["…".encode(), *["\u3000".encode()[i : i + 1] for i in (0, 1, 2) * 2], "他".encode(), EOT])
@example(["。".encode()[:2], "。".encode()[2:], b"\xe3", b"\x80\x8d", b"a", EOT])
def test_any_cut_into_tokens_gives_the_ends_of_the_rule(tokens: list[Token]) -> None:
    assert split(tokens) == reference(tokens)


def random_text(seed: int, fragments: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choices(FRAGMENTS, k=fragments))


@pytest.mark.parametrize("way", [by_bytes, by_characters, by_words])
def test_the_rule_on_longer_text(way: Callable[[str], list[bytes]]) -> None:
    for seed in range(20):
        tokens = [*way(random_text(seed, 300)), EOT]
        assert split(tokens) == reference(tokens)


# Properties of every split.


@given(st.lists(st.binary(max_size=12), max_size=20), st.data())
def test_sentences_partition_any_ids_of_any_vocabulary(
    pieces: list[bytes], data: st.DataObject
) -> None:
    special = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    tables = sentence_tables(vocabulary([*pieces, b"<|eot|>"], [*special, True]))
    ids = np.array(data.draw(st.lists(st.integers(0, len(pieces)), max_size=60)), np.int32)
    longest = data.draw(st.integers(1, 20))
    lengths = sentence_lengths(ids, tables, longest)
    assert lengths.dtype == np.int64
    assert lengths.sum() == len(ids)
    assert ((lengths >= 1) & (lengths <= longest)).all()
    # The limit only adds ends.
    free = sentence_lengths(ids, tables, NO_LIMIT)
    assert set(np.cumsum(free).tolist()) <= set(np.cumsum(lengths).tolist())


# Trained and real tokenizers.


def trained(vocab_size: int) -> tuple[Tokenizer, Callable[[str], list[int]]]:
    """A byte-level BPE of English and other text, and its encoder."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|eot|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    library.train_from_iterator([ALL_EXAMPLES, *(random_text(s, 200) for s in range(50))], trainer)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these stand for themselves
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    names = [library.id_to_token(i) for i in range(library.get_vocab_size())]
    pieces = [b"<|eot|>", *(bytes(byte_of[char] for char in name) for name in names[1:])]
    tokenizer = vocabulary(pieces, [True] + [False] * (len(pieces) - 1))
    return tokenizer, lambda text: library.encode(text).ids


def pieces_of(tokenizer: Tokenizer, ids: np.ndarray) -> list[Token]:
    values, offsets = tokenizer.token_bytes
    pieces = [values[offsets[i] : offsets[i + 1]].tobytes() for i in ids.tolist()]
    return [EOT if i == tokenizer.eot_id else p for i, p in zip(ids.tolist(), pieces, strict=True)]


def assert_splits_by_the_rule(tokenizer: Tokenizer, encode: Callable[[str], list[int]]) -> None:
    tables = sentence_tables(tokenizer)
    for text in [*(random_text(seed, 300) for seed in range(100, 110)), ALL_EXAMPLES]:
        ids = np.array([*encode(text), tokenizer.eot_id], np.int32)
        found = np.cumsum(sentence_lengths(ids, tables, NO_LIMIT)).tolist()
        assert found == reference(pieces_of(tokenizer, ids))


def assert_agreement(
    tokenizers: Sequence[tuple[Tokenizer, Callable[[str], list[int]]]],
) -> None:
    """Where two tokenizers both end a token, both or neither end a sentence."""
    text = re.sub(r"([\r\n])\s+", r"\1", ALL_EXAMPLES)  # their tokens cut white space as they like
    found: list[tuple[set[int], set[int]]] = []
    for tokenizer, encode in tokenizers:
        ids = np.array(encode(text), np.int32)
        bounds = np.cumsum(np.diff(tokenizer.token_bytes[1])[ids])
        assert bounds[-1] == len(text.encode())
        lengths = sentence_lengths(ids, sentence_tables(tokenizer), NO_LIMIT)
        found.append((set(bounds[np.cumsum(lengths) - 1].tolist()), set(bounds.tolist())))
        assert len(lengths) > 80
    assert len({len(bounds) for _, bounds in found}) == len(found)  # they do cut differently
    for ends, bounds in found:
        for others, other_bounds in found:
            assert ends & other_bounds == others & bounds


@pytest.mark.parametrize("vocab_size", [257, 300, 500, 2000])
def test_trained_tokenizers_split_by_the_rule(vocab_size: int) -> None:
    assert_splits_by_the_rule(*trained(vocab_size))


def test_trained_tokenizers_agree_wherever_their_tokens_do() -> None:
    assert_agreement([trained(vocab_size) for vocab_size in (257, 300, 1000, 3000)])


REAL = ["llama3", "qwen", "deepseek", "smollm2"]


def loaded(folder: Path) -> tuple[Tokenizer, Callable[[str], list[int]]]:
    tokenizer = Tokenizer.load(str(folder))
    return tokenizer, lambda text: tokenizer.encode([text])[0].tolist()


def test_a_saved_tokenizer_splits_by_the_rule(tiny_tokenizer: Path) -> None:
    assert_splits_by_the_rule(*loaded(tiny_tokenizer))


@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_split_by_the_rule(name: str) -> None:
    assert_splits_by_the_rule(*loaded(fetch(name)))


def test_real_tokenizers_agree_wherever_their_tokens_do() -> None:
    assert_agreement([loaded(fetch(name)) for name in REAL])
