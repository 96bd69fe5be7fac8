"""Small drawings as SVG: lines, columns, and a flow. They take their colours from the page's style
sheet, so they are light or dark with it; all text is escaped.

Classes: c0, c1, ... are the colours of series; `grid`, `axis` and `label` are the frame.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lrdata.report.page import text
from lrdata.sizes import format_tokens

_WIDTH, _HEIGHT = 960, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 88, 16, 14, 46


@dataclass(frozen=True)
class Series:
    """values: float [points]; NaN, and on a log scale 0, leaves a hole."""

    name: str
    values: np.ndarray
    colour: int
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; ticks are (value, label)."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    @classmethod
    def shares(cls, title: str) -> "Axis":
        return cls(title, 0, 1, [(share / 4, f"{share / 4:.0%}") for share in range(5)])

    @classmethod
    def tokens(cls, title: str, length: int) -> "Axis":
        ticks = [(length * part // 8, format_tokens(length * part // 8)) for part in range(9)]
        return cls(title, 0, length, ticks)

    @classmethod
    def powers(cls, title: str, low: float, high: float) -> "Axis":
        """A log scale with a tick at each power of ten between two positive numbers."""
        first, last = math.floor(math.log10(low)), max(math.ceil(math.log10(high)), 1)
        ticks = [(10.0**power, _power_label(power)) for power in range(first, last + 1)]
        return cls(title, 10.0**first, 10.0**last, ticks, log=True)

    def share(self, value: float) -> float:
        """How far along the axis a value is; one beyond its ends is at the end."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low or 1)
        return min(max(share, 0.0), 1.0)


def line_chart(x: np.ndarray, series: Sequence[Series], across: Axis, up: Axis, name: str) -> str:
    """Lines over the points `x`, float [points], with a legend above them."""
    lines = []
    for one in series:
        path = " ".join(_path(x, one.values, across, up))
        dash = " dash" if one.dashed else ""
        title = f"<title>{text(one.name)}{_range(one.values)}</title>"
        lines.append(f'<path class="line c{one.colour}{dash}" d="{path}">{title}</path>')
    keys = [(one.name, _line_key(one)) for one in series]
    return _figure([*_frame(across, up), *lines], name, _legend(keys))


def column_chart(labels: Sequence[str], series: Sequence[Series], what: str, up: Axis) -> str:
    """Columns in groups, one group for each label; `what` the labels are."""
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(labels), 1)
    shapes = list(_frame(Axis(what, 0, 1, []), up))
    column = width * 0.8 / max(len(series), 1)
    for at, label in enumerate(labels):
        left = _LEFT + at * width
        shapes.append(_label(left + width / 2, _HEIGHT - _BOTTOM + 17, label, "middle"))
        for number, one in enumerate(series):
            value = float(one.values[at])
            top = _y(up, value)
            x = left + width * 0.1 + number * column
            title = f"<title>{text(label)}: {text(one.name)} {value:.2%}</title>"
            shapes.append(
                f'<rect class="fill c{one.colour}" x="{x:.1f}" y="{top:.1f}" '
                f'width="{max(column - 1, 1):.1f}" height="{_HEIGHT - _BOTTOM - top:.1f}">'
                f"{title}</rect>"
            )
    keys = [
        (one.name, f'<rect class="fill c{one.colour}" width="12" height="10"/>') for one in series
    ]
    return _figure(shapes, what, _legend(keys))


def flow(
    sources: Sequence[tuple[str, int, int]], targets: Sequence[tuple[str, int, int]], name: str
) -> str:
    """What comes in on the left and where it goes on the right, as bands as wide as they are much.

    sources, targets: (name, amount, colour); their amounts have the same sum, above 0.
    """
    total = sum(amount for _, amount, _ in sources)
    tall, left, middle, right = 220.0, 210.0, 400.0, 700.0
    begins, ends = _stacked(sources, tall / total), _stacked(targets, tall / total)
    height = max(begins[-1][1], ends[-1][1]) + 24
    trunk = (height - tall) / 2
    shapes = [f'<rect class="trunk" x="{middle}" y="{trunk:.1f}" width="14" height="{tall}"/>']
    for bars, parts, near, edge in (
        (begins, sources, left, middle),
        (ends, targets, right, middle + 14),
    ):
        at = trunk
        for (top, _), (label, amount, colour) in zip(bars, parts, strict=True):
            thick = amount * tall / total
            shapes.append(_band(edge, at, near, top, thick, colour))
            at += thick
            before = near == left
            x = near - 10 if before else near + 22
            box = near - 8 if before else near
            shapes.append(
                f'<rect class="fill c{colour}" x="{box}" y="{top:.1f}" width="8" '
                f'height="{max(thick, 1):.1f}"/>'
            )
            anchor = "end" if before else "start"
            middle_y = top + thick / 2
            shapes.append(_label(x - 4 * before, middle_y - 2, label, anchor, "strong"))
            said = f"{amount:,} ({amount / total:.1%})"
            shapes.append(_label(x - 4 * before, middle_y + 13, said, anchor))
    shapes.append(_label(middle + 7, trunk - 8, f"{total:,} tokens", "middle", "strong"))
    return _figure(shapes, name, "", height)


def _stacked(parts: Sequence[tuple[str, int, int]], scale: float) -> list[tuple[float, float]]:
    """Top and bottom of the place of each part; a thin one has room for its label."""
    places, at = [], 24.0
    for _, amount, _ in parts:
        thick = amount * scale
        room = max(thick, 34)
        places.append((at + (room - thick) / 2, at + room))
        at += room + 8
    return places


def _band(x1: float, y1: float, x2: float, y2: float, thick: float, colour: int) -> str:
    half = (x1 + x2) / 2
    thick = max(thick, 1)
    return (
        f'<path class="band c{colour}" d="M{x1} {y1:.1f}C{half} {y1:.1f} {half} {y2:.1f} {x2} '
        f"{y2:.1f}v{thick:.1f}C{half} {y2 + thick:.1f} {half} {y1 + thick:.1f} {x1} "
        f'{y1 + thick:.1f}z"/>'
    )


# The frame


def _frame(across: Axis, up: Axis) -> Iterator[str]:
    base = _HEIGHT - _BOTTOM
    for value, label in up.ticks:
        y = _y(up, value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        yield _label(_LEFT - 8, y + 4, label, "end")
    for value, label in across.ticks:
        x = _x(across, value)
        yield f'<path class="axis" d="M{x:.1f} {base}v5"/>'
        yield _label(x, base + 19, label, "middle")
    yield f'<path class="axis" d="M{_LEFT} {base}H{_WIDTH - _RIGHT}"/>'
    yield _label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, across.title, "middle")
    yield (
        f'<text class="label" text-anchor="middle" transform="translate(14 '
        f'{(_TOP + base) / 2:.1f}) rotate(-90)">{text(up.title)}</text>'
    )


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _TOP - _BOTTOM)


def _path(x: np.ndarray, values: np.ndarray, across: Axis, up: Axis) -> Iterator[str]:
    there = np.isfinite(values) & ((values > 0) | (not up.log))
    edges = np.flatnonzero(np.diff(there, prepend=False, append=False))
    for begin, end in pairwise(edges.tolist()):
        if not there[begin]:
            continue
        points = [
            f"{_x(across, float(a)):.1f} {_y(up, float(b)):.1f}"
            for a, b in zip(x[begin:end], values[begin:end], strict=True)
        ]
        yield f"M{'L'.join(points)}"


def _range(values: np.ndarray) -> str:
    there = values[np.isfinite(values)]
    return f": {there.min():.3g} to {there.max():.3g}" if len(there) else ""


def _label(x: float, y: float, content: str, anchor: str, kind: str = "label") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{text(content)}</text>'


def _line_key(one: Series) -> str:
    return f'<path class="line c{one.colour}{" dash" if one.dashed else ""}" d="M0 5H24"/>'


def _legend(keys: Sequence[tuple[str, str]]) -> str:
    """Names of series beside their keys, which are drawings."""
    if len(keys) < 2:
        return ""
    inner = "".join(
        f'<span><svg width="26" height="10" aria-hidden="true">{key}</svg> {text(name)}</span>'
        for name, key in keys
    )
    return f'<div class="keys">{inner}</div>'


def _figure(shapes: Sequence[str], name: str, legend: str, height: float = _HEIGHT) -> str:
    inner = "\n".join(shapes)
    return (
        f'<figure>{legend}<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{text(name)}">\n{inner}\n</svg></figure>'
    )


def _power_label(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:.{-power}f}"
