"""Prompt / response records -> token ids with a mask on the response, with or without a template.

A chat template is text from the tokenizer's files, with control tokens spelled out; the prompt and
the response are data, whose look-alikes of control tokens must stay text. So the template is
rendered around two placeholders, its own parts are encoded with control tokens recognised, and the
record's parts as ordinary text. Tokenizers of SentencePiece's kind begin every text with a space,
to which a record's part leaves that of the template right before it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import numpy as np

from lrdata.errors import LongRecipeError, one_line
from lrdata.tokenizer import Tokenizer

_PROMPT, _RESPONSE = "\ue000prompt\ue001", "\ue000response\ue001"
_ASKED = {"role": "user", "content": _PROMPT}
_ANSWERED = {"role": "assistant", "content": _RESPONSE}
_REMEDY = "leave --chat-template out"
_TODAY = date(2024, 7, 26)
"""Of a template that asks for it: that of Llama 3.1 falls back on this one."""


@dataclass(frozen=True)
class Conversation:
    """The fixed token ids around the record's parts. int32 arrays."""

    before: np.ndarray
    between: np.ndarray
    after: np.ndarray

    @property
    def inserted(self) -> int:
        """Tokens that every record gets beside its own."""
        return len(self.before) + len(self.between) + len(self.after)

    @property
    def sha256(self) -> str:
        """Of the three: their lengths, then their ids, all as int32, little-endian."""
        parts = (self.before, self.between, self.after)
        values = np.concatenate([np.array([len(part) for part in parts]), *parts])
        return hashlib.sha256(values.astype("<i4").tobytes()).hexdigest()

    def tokens(self, prompt: np.ndarray, response: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [n] and loss mask bool [n]: the response and what ends it count."""
        head = np.concatenate([self.before, prompt, self.between])
        answer = np.concatenate([response, self.after])
        mask = np.arange(len(head) + len(answer)) >= len(head)
        return np.concatenate([head, answer]).astype(np.int32), mask


def plain_conversation(tokenizer: Tokenizer) -> Conversation:
    """Start of text (where the tokenizer adds one), prompt, response, end of text."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return Conversation(_ids(start), _ids([]), _ids([tokenizer.eot_id]))


def template_conversation(tokenizer: Tokenizer, remedy: str = _REMEDY) -> Conversation:
    """As the tokenizer's chat template writes one user message and one answer.

    Raises LongRecipeError where it cannot; `remedy` says what to do then.
    """
    rendered = _render(tokenizer, [_ASKED, _ANSWERED], remedy)
    parts = re.split(f"{re.escape(_PROMPT)}|{re.escape(_RESPONSE)}", rendered)
    if len(parts) != 3 or rendered.find(_PROMPT) > rendered.find(_RESPONSE):
        raise LongRecipeError(
            f"the chat template of {tokenizer.name} does not write a prompt and then its response "
            f"once each; {remedy}"
        )
    before, between, after = _encoded(tokenizer, parts, remedy)
    if not np.isin(tokenizer.eot_id, after):
        after = np.append(after, np.int32(tokenizer.eot_id))
    return Conversation(before, between, after)


def template_prompt(tokenizer: Tokenizer, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """As the chat template writes one user message and begins the answer: what it puts before the
    message, and behind it, int32 each.

    Some templates know no beginning of an answer (`add_generation_prompt`): then it is what they
    put between a message and its answer. Raises LongRecipeError as `template_conversation` does.
    """
    begun = _render(tokenizer, [_ASKED], remedy, add_generation_prompt=True)
    if begun == _render(tokenizer, [_ASKED], remedy, add_generation_prompt=False):
        conversation = template_conversation(tokenizer, remedy)
        return conversation.before, conversation.between
    parts = begun.split(_PROMPT)
    if len(parts) != 2:
        raise LongRecipeError(
            f"the chat template of {tokenizer.name} does not write a prompt once; {remedy}"
        )
    before, after = _encoded(tokenizer, parts, remedy)
    return before, after


_TOLD = ("What is it?", "It is so.")
_ANCHORS = ("?", "a", ".")


def _encoded(tokenizer: Tokenizer, parts: list[str], remedy: str) -> list[np.ndarray]:
    """The ids of what a template writes before, between and after texts that are encoded alone.

    Raises LongRecipeError where a tokenizer that begins every text with a space would make others
    of them than it makes of the whole.
    """
    encode, last = tokenizer.encode_with_specials, len(parts) - 1
    if not _begins_with_a_space(tokenizer):
        return [encode(part) for part in parts]
    ids = [encode(parts[0].removesuffix(" "))]
    for at, part in enumerate(parts[1:], 1):
        ids.append(_behind_text(tokenizer, part.removesuffix(" ") if at < last else part))
    rendered, pieces = parts[0], [ids[0]]
    for text, part, its in zip(_TOLD, parts[1:], ids[1:], strict=False):
        rendered += text + part
        pieces += [tokenizer.encode([text])[0], its]
    if not np.array_equal(np.concatenate(pieces), encode(rendered)):
        raise LongRecipeError(
            f"{tokenizer.name} begins every text with a space, and its chat template has none "
            f"there: records cannot be put into it; {remedy}"
        )
    return ids


def _begins_with_a_space(tokenizer: Tokenizer) -> bool:
    values, offsets = tokenizer.token_bytes
    first = int(tokenizer.encode(["a"])[0][0])
    return values[offsets[first] : offsets[first + 1]].tobytes().startswith(b" ")


def _behind_text(tokenizer: Tokenizer, part: str) -> np.ndarray:
    """The ids of what follows a text, without the space that it would begin with by itself."""
    for anchor in _ANCHORS:
        alone, both = (tokenizer.encode_with_specials(text) for text in (anchor, anchor + part))
        if np.array_equal(both[: len(alone)], alone):  # else the two melt into one
            return both[len(alone) :]
    return tokenizer.encode_with_specials(part)


def _render(
    tokenizer: Tokenizer, messages: list[dict[str, str]], remedy: str, **options: bool
) -> str:
    if not tokenizer.chat_template:
        raise LongRecipeError(f"tokenizer {tokenizer.name} has no chat template; {remedy}")
    try:
        import jinja2
    except ImportError:
        raise LongRecipeError(
            "chat templates need jinja2; install it with: pip install 'longrecipe[chat]'"
        ) from None
    values, offsets = tokenizer.token_bytes
    eot = values[offsets[tokenizer.eot_id] : offsets[tokenizer.eot_id + 1]].tobytes().decode()
    names = {"eos_token": eot, "bos_token": tokenizer.bos_token}
    try:
        template = _sandbox().from_string(tokenizer.chat_template)
        return template.render(messages=messages, tools=None, documents=None, **options, **names)
    except (jinja2.TemplateError, TypeError) as problem:  # the latter of `tools | length`
        raise LongRecipeError(
            f"the chat template of {tokenizer.name} failed ({one_line(problem)}); {remedy}"
        ) from None


def _sandbox() -> Any:
    """What transformers renders templates in, but for the date, which is one for all runs."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: around what is trained on, which is known here without it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> Any:
        raise jinja2.TemplateError(message)

    extensions = ["jinja2.ext.loopcontrols", Generation]
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    sandbox.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja's is for HTML
    sandbox.globals |= {"raise_exception": refuse, "strftime_now": _TODAY.strftime}
    return sandbox


def _ids(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)
