"""The YAML at the head of a README.md, as the Hugging Face hub and `datasets` read it."""

from collections.abc import Iterator, Mapping, Sequence

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)

_HUB_LICENCES = (
    "apache-2.0 mit openrail bigscience-openrail-m bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 "
    "cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 "
    "odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl artistic-2.0 "
    "afl-3.0 bsl-1.0 unknown other"
)
"""Identifiers that the hub accepts; another one would make it refuse the card."""


def front_matter(
    title: str,
    licences: Sequence[str],
    rows: int,
    tags: Sequence[str],
    configs: Mapping[str, tuple[str, str]],
    default: str,
    identity: str,
) -> Iterator[str]:
    """Its lines, with both fences.

    Args:
        licences: as they were stated, in any spelling.
        configs: name -> its split, and the pattern of its files; safe as YAML.
        default: the config that is meant where none is named.
        identity: another one for other rows. `datasets` caches a local folder by its last name and
            what stands here, and without it would give the rows of an earlier folder `shards`.
    """
    yield "---"
    yield f"pretty_name: {quoted(title)}"
    yield from _licence_lines(licences)
    yield "task_categories:"
    yield "- text-generation"
    yield "size_categories:"
    yield f"- {_size_category(rows)}"
    yield "tags:"
    yield from (f"- {tag}" for tag in tags)
    yield "configs:"
    for name, (split, pattern) in configs.items():
        yield f"- config_name: {name}"
        if name == default:
            yield "  default: true"
        yield f"  description: {quoted(identity)}"
        yield "  data_files:"
        yield f"  - split: {split}"
        yield f"    path: {pattern}"
    yield "---"


def _licence_lines(names: Sequence[str]) -> Iterator[str]:
    """The hub takes its own identifiers only; others are named beside `other`."""
    accepted = _HUB_LICENCES.split()
    foreign = [name for name in names if name.lower() not in accepted]
    listed = {"other" if name in foreign else name.lower() for name in names}
    if listed:
        yield "license:"
        yield from (f"- {name}" for name in sorted(listed))
    if foreign:
        yield f"license_name: {quoted(', '.join(foreign))}"


def _size_category(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "100M<n<1B")


def quoted(text: str) -> str:
    """Any text as a YAML scalar. YAML refuses some characters, and reads others as line ends."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
