"""The probe is the same everywhere, and reaches what an encoder may get wrong."""

import hashlib
import unicodedata

from lrdata.probe import probe_texts

ADDED = ["<|endoftext|>", "<think>"]


def test_the_probe_never_changes() -> None:
    """A tokenizer's probe fingerprint would change with it, and no build could be resumed."""
    text = "\x1e".join(probe_texts(ADDED))
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == "adba1bf8d2caa2871ece4e7c0ba63a4742743476e1c87a277359a99c5b20de7c"


def test_the_probe_is_small_and_covers_much() -> None:
    texts = probe_texts(ADDED)
    everything = "".join(texts)
    assert len(everything.encode()) < 1_000_000  # it is encoded at every load
    scripts = {unicodedata.name(char, "?").split()[0] for char in everything if char.isalpha()}
    assert len(scripts) > 30
    assert set(map(chr, range(0x3000))) <= set(everything)
    runs = (" " * 31, "\t" * 31, "1" * 31, "\r\n" * 31)
    for piece in (
        *runs,
        "\u200d",
        "e\u0301",
        "👨‍👩‍👧‍👦",
        "://",
        "'LL",
        "'ſ",
        "<|endoftext|",
        *ADDED,
    ):
        assert piece in everything
    assert max(map(len, texts)) > 30_000


def test_the_last_text_has_all_added_tokens() -> None:
    many = [f"<|{index}|>" for index in range(3000)]
    texts = probe_texts(many)
    assert all(token in texts[-1] for token in many)
    assert sum(map(len, texts)) < 1_000_000
