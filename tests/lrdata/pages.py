"""An HTML page as its tests look at it: elements, their attributes and text, in order."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

_JSON = "application/json"
_VOID = ("meta", "br", "img", "link", "input", "hr")


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parents: tuple[str, ...] = ()
    text: str = ""
    runs: list[tuple[str, str]] = field(default_factory=list)
    """The text in order, each part with the tag of the element that it is directly in."""

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()


class Page(HTMLParser):
    """`elements`: all of them, in document order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source, self.elements = source, list[Element]()
        self._open = list[Element]()
        self.feed(source)
        self.close()
        assert not self._open, f"not closed: {[element.tag for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        parents = tuple(element.tag for element in self._open)
        self.elements.append(Element(tag, attributes, parents))
        if tag in ("td", "th"):
            self.handle_data(" ")  # as a browser shows it
        if tag not in _VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> without its start"
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data
            element.runs.append((self._open[-1].tag, data))

    def having(self, name: str) -> list[Element]:
        """Elements of a class."""
        return [element for element in self.elements if name in element.classes]

    def tagged(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    def data(self, name: str) -> list[Any]:
        """What the JSON blocks of a class hold."""
        blocks = [element for element in self.having(name) if element.tag == "script"]
        return [json.loads(block.text) for block in blocks]


def _policy(scripts: list[Element]) -> str:
    """What a page must say: nothing is fetched, and these scripts alone run."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    digests = [hashlib.sha256(one.text.encode()).digest() for one in scripts]
    if digests:
        known = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
        policy += f"; script-src {known}"
    return policy


def what_is_not_its_own(page: Page) -> list[str]:
    """What in a page could run or load something that is not its own, a line each."""
    found = []
    policies = [e for e in page.tagged("meta") if "http-equiv" in e.attributes]
    policy = policies[0].attributes["content"] if policies else ""
    scripts = [one for one in page.tagged("script") if one.attributes.get("type") != _JSON]
    if policy != _policy(scripts):
        found.append(f"a policy that is not ours: {policy}")
    for element in page.elements:
        for name, value in element.attributes.items():
            if name.startswith("on") or name in ("src", "srcset", "action", "formaction"):
                found.append(f"<{element.tag} {name}>")
            if name in ("href", "xlink:href") and not value.startswith("#"):
                found.append(f"a link to {value}")
            if name == "style" and "url" in value:
                found.append(f"a style with {value}")
    if any("url(" in style.text or "@import" in style.text for style in page.tagged("style")):
        found.append("a style sheet that loads something")
    found += [
        f"<{tag}>" for tag in ("iframe", "object", "embed", "link", "base") if page.tagged(tag)
    ]
    if re.search("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\0\x1b\x9b]", page.source):
        found.append("characters that change how text is shown")
    return found
