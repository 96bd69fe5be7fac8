"""Exact, fast token ids, and what a tokenizer must tell the rest of the pipeline.

    tokenizer = Tokenizer.load("meta-llama/Meta-Llama-3-8B")
    ids, offsets = tokenizer.encode(["one text", "another"])  # ids[offsets[i] : offsets[i + 1]]

The reference is always the `tokenizers` library with `encode_special_tokens=True`: text is data, so
a special token written in a text stays text, and no special token is added. `fastokens` gives the
same ids some 30 times faster, as two flat buffers; it is used only after it proved equal on a
built-in probe (`lrdata.probe`), else `tokenizers` encodes, and `encoder_note` says why.

Special are the tokens that tokenizer.json flags so, and the end and start of text. Other added
tokens (`<think>` of Qwen) are words of the vocabulary to `tokenizers`, and so they are here.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import tokenizers
from tokenizers import processors

from lrdata.cutting import why_not_cut
from lrdata.errors import LongRecipeError, one_line
from lrdata.probe import probe_texts
from lrdata.tokenizer_files import TokenizerSettings, find_tokenizer
from lrdata.vocabulary import TokenBytes, frozen, offsets_of, read_vocabulary, table_fingerprint

Encoded = tuple[np.ndarray, np.ndarray]
Encoder = Literal["auto", "fastokens", "tokenizers"]

_END_OF_TEXT = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "<|endofdocument|>",
    "[EOS]",
    "<EOS>",
    "<|eot_id|>",
    "<|im_end|>",
)

_CACHED_WORDS = 10_000
"""What `tokenizers` takes by itself."""


class UnencodableError(LongRecipeError):
    """There is a text that no encoder can take, such as ten million spaces in a row."""


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A fast tokenizer of the Hugging Face kind, ready to encode text exactly. See `load`."""

    name: str
    """The path or hub id it was loaded from, as given."""
    vocab_size: int
    """The largest id + 1; the table below has so many rows."""
    eot_id: int
    """End of text: follows each document."""
    bos_id: int | None
    """Start of text, where the tokenizer adds one."""
    bos_token: str
    """What a chat template calls so, added to other texts or not; empty where there is none."""
    encoder: Literal["fastokens", "tokenizers"]
    """Which library encodes."""
    encoder_note: str
    """Why it is that one, in words."""
    token_bytes: TokenBytes
    """The bytes each id stands for: values uint8 [total], offsets int64 [vocab_size + 1]. Added
    tokens stand for their text; an id that is not in use, for nothing."""
    special: np.ndarray
    """bool [vocab_size]: control tokens, which a text that spells them does not yield."""
    fingerprint: str
    """sha256 of the id-to-bytes table, see `table_fingerprint`."""
    probe_fingerprint: str
    """sha256 of the reference encoding of the probe: ids as int32, then offsets as int64, both
    little-endian."""
    chat_template: str | None
    """The Jinja template, where the tokenizer has one."""
    why_whole: str | None
    """Why texts must be encoded whole, see `lrdata.cutting`; None where they may be cut."""
    _reference: tokenizers.Tokenizer
    _fast: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, path_or_id: str, *, eot: str | None = None, encoder: Encoder = "auto") -> Self:
        """Load a folder with tokenizer.json, the file itself, or a model of the Hugging Face hub.

        `eot` names the end-of-text token; without it the tokenizer's configuration says which, or
        else one of a few well-known names is taken. `encoder` forces one of the two libraries.
        Raises LongRecipeError when a file is missing or broken, when no end-of-text token is found,
        or when `encoder="fastokens"` and fastokens is not equal to `tokenizers` here.
        """
        file = find_tokenizer(path_or_id)
        settings = TokenizerSettings.read(file.parent)
        with ThreadPoolExecutor(1) as beside:  # fastokens is the slower one to load
            loading = None if encoder == "tokenizers" else beside.submit(_load_fast, file)
            reference = _load_reference(file)
            table, flags = read_vocabulary(reference)
            fingerprint = table_fingerprint(table, flags)
            eot_id = _end_of_text(reference, settings, eot, path_or_id)
            bos_id = _start_of_text(reference, settings, path_or_id)
            marked = _mark_special(reference, flags, eot_id, bos_id)
            texts = probe_texts(_added_texts(reference))
            expected = _encode_slowly(reference, texts)
            fast, note = None, "asked for"
            if loading is not None:
                fast, note = _proven(loading.result, reference, marked, eot_id, texts, expected)
        if fast is None and encoder == "fastokens":
            raise LongRecipeError(
                f"fastokens cannot encode for {path_or_id}: {note}; use the encoder tokenizers"
            )
        if fast is None:
            _resize_cache(reference, _CACHED_WORDS)
        return cls(
            name=path_or_id,
            vocab_size=len(flags),
            eot_id=eot_id,
            bos_id=bos_id,
            bos_token=settings.token("bos_token") or _text(reference, bos_id),
            encoder="tokenizers" if fast is None else "fastokens",
            encoder_note=note,
            token_bytes=table,
            special=frozen(flags),
            fingerprint=fingerprint,
            probe_fingerprint=hashlib.sha256(b"".join(map(bytes, expected))).hexdigest(),
            chat_template=settings.chat_template,
            why_whole=why_not_cut(reference),
            _reference=reference,
            _fast=fast,
        )

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids int32 [total] of all texts, and offsets int64 [len(texts) + 1]; both read-only.

        Special tokens are neither added nor recognised. Texts are of any length (what is very long
        is better encoded in pieces, see `lrdata.encoding`), without lone surrogates. Raises
        UnencodableError for a text that no encoder can take.
        """
        return self._encode(texts, specials=False)

    def encode_documents(self, texts: Sequence[str]) -> Encoded:
        """The same as `encode`, with the end-of-text token after each text."""
        if self._fast is not None:
            with suppress(*_REFUSALS):
                return _encode_flat(self._fast, texts, add_special_tokens=True)
        return _ended(*self.encode(texts), self.eot_id)

    def encode_with_specials(self, text: str) -> np.ndarray:
        """Ids int32 [n], special tokens recognised: for trusted text such as a chat template's."""
        return self._encode([text], specials=True)[0]

    def encode_reference(self, texts: Sequence[str]) -> Encoded:
        """The same as `encode`, always through the `tokenizers` library."""
        return self._encode_slowly(texts, specials=False)

    def _encode(self, texts: Sequence[str], specials: bool) -> Encoded:
        if self._fast is None:
            return self._encode_slowly(texts, specials)
        return _encode_exactly(self._fast, self._encode_slowly, texts, specials)

    def _encode_slowly(self, texts: Sequence[str], specials: bool) -> Encoded:
        with self._lock:  # whether it recognises special tokens is a state of the reference
            return _encode_slowly(self._reference, texts, specials)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of some ids, special tokens included."""
        return str(self._reference.decode(np.asarray(ids).tolist(), skip_special_tokens=False))


# Loading


def _load_reference(file: Path) -> tokenizers.Tokenizer:
    try:
        reference = tokenizers.Tokenizer.from_file(str(file))
    except Exception as problem:  # the library raises bare Exception
        raise LongRecipeError(
            f"{file} is not a tokenizer.json ({one_line(problem)}); get it anew"
        ) from None
    reference.no_truncation()
    reference.no_padding()
    reference.encode_special_tokens = True
    if getattr(reference.model, "dropout", None):
        reference.model.dropout = None  # it would make every encoding another
    _resize_cache(reference, 0)
    return reference


def _resize_cache(reference: tokenizers.Tokenizer, words: int) -> None:
    """What `tokenizers` 0.23 has cached is not freed with the tokenizer: by the probe 10 MB each
    time that one is loaded. Only where it encodes is the cache worth that."""
    resize = getattr(reference.model, "_resize_cache", None)  # only BPE and Unigram have one
    if resize is not None:
        resize(words)


def _load_fast(file: Path) -> Any:
    import fastokens

    fast = fastokens.Tokenizer.from_file(str(file))
    fast.no_truncation()
    fast.no_padding()
    return fast


def _proven(
    load: Callable[[], Any],
    reference: tokenizers.Tokenizer,
    marked: list[tokenizers.AddedToken],
    eot_id: int,
    texts: list[str],
    expected: Encoded,
) -> tuple[Any, str]:
    """The fast encoder and a note if it equals the reference on the probe, else None and why."""
    refused: list[str] = []

    def slowly(texts: Sequence[str], specials: bool) -> Encoded:
        refused.extend(texts)
        return _encode_slowly(reference, texts, specials)

    try:
        with _panics_as_errors():
            fast = load()
            if marked:
                fast.add_tokens(marked)
            _append(fast, eot_id, str(reference.id_to_token(eot_id)))
        found = _encode_exactly(fast, slowly, texts, specials=False)
        ended = _encode_flat(fast, ["ab", "", "c"], add_special_tokens=True)
    except Exception as problem:  # whatever it is, the reference does the work
        return None, f"fastokens failed with {type(problem).__name__}: {one_line(problem)}"
    if not all(map(np.array_equal, found, expected)):
        return None, "fastokens gave other ids than tokenizers on the probe"
    plain = _encode_slowly(reference, ["ab", "", "c"])
    if not all(map(np.array_equal, ended, _ended(*plain, eot_id))):
        return None, "fastokens does not put the end of text after a text"
    if len(refused) > len(texts) // 10:
        return None, f"fastokens refused {len(refused)} of {len(texts)} texts of the probe"
    trusted = texts[-1:]  # holds all special tokens
    found, expected = (
        _encode_exactly(fast, slowly, trusted, specials=True),
        _encode_slowly(reference, trusted, specials=True),
    )
    if not all(map(np.array_equal, found, expected)):
        return None, "fastokens gave other ids than tokenizers on special tokens"
    return fast, "fastokens equals tokenizers on the probe"


# Encoding


def _encode_exactly(
    fast: Any,
    slowly: Callable[[Sequence[str], bool], Encoded],
    texts: Sequence[str],
    specials: bool,
) -> Encoded:
    """By the fast encoder; a text that it refuses goes to the reference.

    It refuses a text with a byte that has no token (SmolLM2 knows no byte 0x04). The reference
    leaves such a byte out.
    """
    try:
        return _encode_flat(fast, texts, split_special_tokens=not specials)
    except _REFUSALS:
        if len(texts) == 1:
            return slowly(texts, specials)
    middle = len(texts) // 2
    halves = (texts[:middle], texts[middle:])
    (ids, starts), (more, ends) = (_encode_exactly(fast, slowly, half, specials) for half in halves)
    offsets = np.concatenate([starts, starts[-1] + ends[1:]])
    return frozen(np.concatenate([ids, more])), frozen(offsets)


_REFUSALS = (ValueError, RuntimeError)


def _encode_flat(
    fast: Any,
    texts: Sequence[str],
    split_special_tokens: bool = True,
    add_special_tokens: bool = False,
) -> Encoded:
    """By the fast encoder; raises one of _REFUSALS for texts that it does not take."""
    with _panics_as_errors():
        ids, offsets = fast.encode_batch_flat(
            list(texts),
            add_special_tokens=add_special_tokens,
            split_special_tokens=split_special_tokens,
        )
    return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)


def _append(fast: Any, id_: int, token: str) -> None:
    """Have the fast encoder put a token after each text, when it adds special tokens."""
    fast.post_processor = processors.TemplateProcessing(
        single=["$A", token], special_tokens=[(token, id_)]
    )


def _ended(ids: np.ndarray, offsets: np.ndarray, eot_id: int) -> Encoded:
    """The same texts with a token after each."""
    after = np.arange(len(offsets))
    ended = np.full(len(ids) + len(offsets) - 1, eot_id, np.int32)
    for index, (start, stop) in enumerate(pairwise(offsets.tolist())):
        ended[start + index : stop + index] = ids[start:stop]
    return frozen(ended), frozen(offsets + after)


def _encode_slowly(
    reference: tokenizers.Tokenizer, texts: Sequence[str], specials: bool = False
) -> Encoded:
    reference.encode_special_tokens = not specials
    try:
        with _panics_as_errors():
            encodings = reference.encode_batch_fast(list(texts), add_special_tokens=False)
    except RuntimeError as problem:
        longest = max(len(text.encode()) for text in texts)
        raise UnencodableError(
            f"`tokenizers` cannot encode a text (the longest of the batch has {longest:,} bytes): "
            f"{one_line(problem)}; leave it out"
        ) from None
    finally:
        reference.encode_special_tokens = True
    rows = [encoding.ids for encoding in encodings]
    offsets = offsets_of(map(len, rows), len(rows))
    return frozen(np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1]))), offsets


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """A panic of a Rust library comes as a BaseException of a type that cannot be imported."""
    try:
        yield
    except BaseException as problem:
        if type(problem).__name__ != "PanicException":
            raise
        raise RuntimeError(one_line(problem)) from None


# Special tokens


def _added_texts(reference: tokenizers.Tokenizer) -> list[str]:
    """The texts of the added tokens, in the order of their ids."""
    added = reference.get_added_tokens_decoder()
    return [added[id_].content for id_ in sorted(added)]


def _mark_special(
    reference: tokenizers.Tokenizer, flags: np.ndarray, *ids: int | None
) -> list[tokenizers.AddedToken]:
    """Make end and start of text special where tokenizer.json does not; what was marked.

    As transformers does: a document must not be able to end itself.
    """
    unmarked = [id_ for id_ in ids if id_ is not None and not flags[id_]]
    names = (reference.id_to_token(id_) or "" for id_ in unmarked)
    tokens = [tokenizers.AddedToken(name, special=True, normalized=False) for name in names]
    reference.add_special_tokens(tokens)
    flags[unmarked] = True
    return tokens


def _end_of_text(
    reference: tokenizers.Tokenizer, settings: TokenizerSettings, eot: str | None, name: str
) -> int:
    wanted = eot or settings.token("eos_token")
    found = next((token for token in _END_OF_TEXT if _id(reference, token) is not None), None)
    token = wanted or found
    if token is None:
        raise LongRecipeError(
            f"tokenizer {name} names no end-of-text token; choose one with --eot TOKEN"
        )
    id_ = _id(reference, token)
    if id_ is None:
        hint = f" (it has {found})" if found else ""
        raise LongRecipeError(
            f"end-of-text token {token!r} is not in tokenizer {name}{hint}; "
            "choose another with --eot TOKEN"
        )
    return id_


def _start_of_text(
    reference: tokenizers.Tokenizer, settings: TokenizerSettings, name: str
) -> int | None:
    """What the post-processor puts before a text, or the bos_token if the configuration adds it."""
    plain = reference.encode("a", add_special_tokens=False).ids
    whole = reference.encode("a", add_special_tokens=True).ids
    starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    before = whole[: next(starts, 0)]
    if len(before) > 1:
        tokens = " ".join(map(str, map(reference.id_to_token, before)))
        raise LongRecipeError(
            f"tokenizer {name} puts {len(before)} tokens before a text ({tokens}); only one is "
            "supported: change the post_processor in its tokenizer.json"
        )
    if before:
        return int(before[0])
    token = settings.token("bos_token")
    return _id(reference, token) if token and settings.config.get("add_bos_token") is True else None


def _text(reference: tokenizers.Tokenizer, id_: int | None) -> str:
    return "" if id_ is None else str(reference.id_to_token(id_))


def _id(reference: tokenizers.Tokenizer, token: str) -> int | None:
    id_ = reference.token_to_id(token)
    return None if id_ is None else int(id_)
