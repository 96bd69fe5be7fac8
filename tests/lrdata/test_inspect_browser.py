"""The page of a row in a browser: its policy lets its script run, and the keys do what they say.

Needs a program `chromium` or `chromium-browser`; where there is none these tests are skipped, and
nothing else tests the script.
"""

import base64
import hashlib
import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lrdata.dataset import open_dataset
from lrdata.shards import Row
from tests.lrdata.inspected import Built, build_books, page_of
from tests.lrdata.pages import Page

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_CHROMIUM is None, reason="no chromium here: page.js is not tested"),
]

ROWS = 3
_DRIVER = """
// Without a screen few frames are drawn.
window.requestAnimationFrame = (work) => setTimeout(work, 0);
const seen = [];
const wait = () => new Promise((done) => setTimeout(done, 60));
const steps = STEPS;
(async () => {
  await wait();
  for (const [what, value] of steps) {
    const shown = [...document.querySelectorAll("article")].filter((one) => !one.hidden);
    if (what === "key") {
      document.dispatchEvent(new KeyboardEvent("keydown", { key: value, bubbles: true }));
    } else if (what === "focus") {
      shown[0].querySelector(`[data-key="${value}"]`).focus();
    } else if (what === "press") { // by the keyboard: a click without a mouse
      document.activeElement.click();
    } else if (what === "go") {
      location.hash = value;
    } else if (what === "hover") {
      const box = document.getElementById(value).getClientRects()[0];
      const [x, y] = [box.left + 1, box.top + box.height / 2];
      document.elementFromPoint(x, y).dispatchEvent(
        new MouseEvent("mousemove", { clientX: x, clientY: y, bubbles: true }));
    }
    await wait();
    const now = [...document.querySelectorAll("article")].filter((one) => !one.hidden);
    const target = document.getElementById(location.hash.slice(1));
    seen.push({
      rows: now.map((one) => one.id),
      status: document.getElementById("status").textContent,
      tip: document.getElementById("tip").hidden ? "" : document.getElementById("tip").textContent,
      focus: document.activeElement.dataset.key || "",
      row: (document.activeElement.closest("article") || {}).id || "",
      top: target ? target.getBoundingClientRect().top : -1,
    });
  }
  document.body.dataset.seen = JSON.stringify(seen);
})();
"""


def _dump(html: Path, profile: Path) -> Page:
    """The page when its script has run."""
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [
        *(str(_CHROMIUM), *options.split(), "--virtual-time-budget=60000", "--dump-dom"),
        *("--window-size=900,700", f"--user-data-dir={profile}", html.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_bos_tokenizer: Path) -> Built:
    return build_books(tmp_path_factory.mktemp("browser"), tiny_bos_tokenizer)


def _driven(built: Built, out: Path, steps: list[tuple[str, str]], whole: bool) -> list[Any]:
    """What is to be seen after each step. The page's own policy holds; it knows one script more."""
    page = page_of(built, "extend", 0, out, whole, rows=ROWS)
    driver = _DRIVER.replace("STEPS", json.dumps(steps))
    digest = base64.b64encode(hashlib.sha256(driver.encode()).digest()).decode()
    source = page.source.replace("script-src ", f"script-src 'sha256-{digest}' ")
    source = source.replace("<body>", f"<body><script>{driver}</script>")
    (out / "driven.html").write_text(source, encoding="utf-8")
    (body,) = _dump(out / "driven.html", out / "profile").tagged("body")
    seen: list[Any] = json.loads(body.attributes["data-seen"])
    assert len(seen) == len(steps)
    return seen


def _segments(row: Row) -> list[str]:
    """What the status says of each segment, by the row's columns."""
    ends = row.segment_lengths.cumsum().tolist()
    pieces = zip(row.segment_starts.tolist(), pairwise([0, *ends]), strict=True)
    return [
        f"segment {at:,} of {len(ends):,}: {end - begin:,} tokens, in the window "
        + (f"{start:,}–{start + end - begin - 1:,}, " if end - begin > 1 else f"{start:,}, ")
        + f"positions {row.position_ids[begin]:,}–{row.position_ids[end - 1]:,}"
        for at, (start, (begin, end)) in enumerate(pieces)
    ]


def _with_gaps(row: Row) -> list[int]:
    """Segments before which positions are skipped."""
    places = [-1, *row.position_ids.tolist()]
    ends = row.segment_lengths.cumsum().tolist()
    return [at for at, token in enumerate([0, *ends[:-1]]) if places[token + 1] > places[token] + 1]


@pytest.mark.parametrize("whole", [True, False])
def test_keys_go_through_segments_and_gaps_and_say_where_they_are(
    built: Built, tmp_path: Path, whole: bool
) -> None:
    row = open_dataset(built.folder).read_row("extend", 0)
    said, gaps = _segments(row), _with_gaps(row)
    assert len(said) > 3
    assert len(gaps) > 1
    steps = [("key", "j")] * len(said) + [("key", "k")] * len(said)
    steps += [("key", "J")] * (len(gaps) + 1) + [("key", "K")] * (len(gaps) + 1)
    seen = [one["status"] for one in _driven(built, tmp_path, steps, whole)]
    count = len(said)
    assert seen[:count] == said
    assert seen[count : 2 * count] == [*said[-2::-1], said[0]]
    after = [said[gap] for gap in gaps if gap > 0]
    down = seen[2 * count : 2 * count + len(after)]
    assert down == after
    assert seen[2 * count + len(after)] == "no further gap in this row"
    up = seen[2 * count + len(gaps) + 1 :]
    before = [said[gap] for gap in gaps if gap < gaps[-1]][::-1]
    assert up[: len(before)] == before
    assert up[len(before)] == "no gap before this one"


def test_rows_are_turned_by_keys_links_and_addresses(built: Built, tmp_path: Path) -> None:
    steps = [
        ("key", "n"),  # the second
        ("focus", "n"),
        ("press", ""),  # the third, which has no link to a next row
        ("key", "n"),  # there is none
        ("go", "row-0"),
        ("go", "r2-d0"),
        ("key", "?"),
    ]
    seen = _driven(built, tmp_path, steps, whole=True)
    assert [one["rows"] for one in seen] == [
        ["row-1"],
        ["row-1"],
        ["row-2"],
        ["row-2"],
        ["row-0"],
        ["row-2"],
        ["row-2"],
    ]
    assert "press ?" in seen[0]["status"]
    assert (seen[1]["row"], seen[1]["focus"]) == ("row-1", "n")
    assert seen[2]["row"] == "row-2"
    assert seen[2]["focus"]
    assert "no row after row 2" in seen[3]["status"]
    assert 0 <= seen[5]["top"] < 700


@pytest.mark.parametrize("whole", [True, False])
def test_the_pointer_tells_positions(built: Built, tmp_path: Path, whole: bool) -> None:
    row = open_dataset(built.folder).read_row("extend", 0)
    ends = row.segment_lengths.cumsum().tolist()
    steps = [("key", "j"), ("hover", "r0-s0"), ("key", "j"), ("hover", "r0-s1")]
    seen = _driven(built, tmp_path, steps, whole)
    for segment, told in ((0, seen[1]), (1, seen[3])):
        token = [0, *ends][segment]
        assert f"position {row.position_ids[token]:,}\n" in told["tip"] + "\n"
        assert f"place in the window {row.segment_starts[segment]:,}\n" in told["tip"] + "\n"
        assert f"token {token:,} of the row, segment {segment}" in told["tip"]


def test_its_policy_lets_its_own_script_run(built: Built, tmp_path: Path) -> None:
    """As the page is written: the script gets to its end, where it hides the other rows."""
    page_of(built, "extend", 0, tmp_path, whole=True, rows=ROWS)
    page = _dump(tmp_path / "row.html", tmp_path / "profile")
    (status,) = [e for e in page.elements if e.attributes.get("id") == "status"]
    assert "press ?" in status.text
    assert ["hidden" in one.attributes for one in page.tagged("article")] == [False, True, True]
