import io

import pytest
from rich.console import Console

import lrdata.progress
from lrdata.progress import progress


def shown_on(monkeypatch: pytest.MonkeyPatch, terminal: bool = True) -> io.StringIO:
    """What takes the place of the screen."""
    screen = io.StringIO()
    monkeypatch.setattr(
        lrdata.progress,
        "Console",
        lambda **_: Console(file=screen, force_terminal=terminal, width=100, color_system=None),
    )
    return screen


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("building", total=3) as task:
        for _ in range(3):
            task.advance(1, note="3.1 Mtok/s")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "building: 3/3 3.1 Mtok/s\n"  # quick work: the end only


def test_slow_work_speaks_up_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(lrdata.progress.time, "monotonic", lambda: now)
    with progress("reading") as task:
        for _ in range(31):
            task.advance(2)
            now += 1.0
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["reading: 22", "reading: 42", "reading: 62"]


def test_work_that_goes_on_counts_on_and_is_timed_from_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 of 100 steps were done before, who knows how fast: these take a second each."""
    now = 0.0
    monkeypatch.setattr(lrdata.progress.time, "monotonic", lambda: now)
    with progress("training", total=100, done=60) as task:
        for _ in range(40):
            now += 1.0
            task.advance(note="loss 2.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 70/100 loss 2.5, 30 s left",
        "training: 80/100 loss 2.5, 20 s left",
        "training: 90/100 loss 2.5, 10 s left",
        "training: 100/100 loss 2.5",
    ]
    assert task.done == 100


def test_what_is_left_is_told_by_the_work_not_by_the_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two prompts of 11 s and two of 100 s, half of the steps are not half of the time."""
    now = 0.0
    monkeypatch.setattr(lrdata.progress.time, "monotonic", lambda: now)
    with progress("needle", total=6, done=2, work=2 * 11 + 2 * 100) as task:
        for seconds in (11.0, 11.0, 100.0, 100.0):
            now += seconds
            task.advance(note=f"{seconds:.0f}", work=seconds)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "needle: 3/6 11, 4 min left",  # 211 s
        "needle: 4/6 11, 3 min left",
        "needle: 5/6 100, 2 min left",
        "needle: 6/6 100",
    ]


def test_a_bar_tells_what_is_left_of_slow_steps_and_counts_it_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of 41 s, as of a large model, is beyond what rich's own estimate looks back on."""
    screen = shown_on(monkeypatch)
    now = 0.0
    monkeypatch.setattr(lrdata.progress.time, "monotonic", lambda: now)
    with progress("training", total=4) as task:
        assert task.left() == ""
        now = 41.0
        task.advance()
        assert task.left() == "2 min left"
        now += 30.0
        assert task.left() == "93 s left"
        now += 200.0
        assert task.left() == "0 s left"
        task.advance(2)
    assert "left" in screen.getvalue()


def test_work_that_was_done_before_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", total=100, done=100):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = shown_on(monkeypatch)
    with progress("training", total=4) as task:
        task.advance(3, note="loss 2.5")
    assert task.done == 3
    assert "training" in screen.getvalue()
    assert "3/4" in screen.getvalue()
    assert "loss 2.5" in screen.getvalue()


def test_a_name_that_looks_like_a_style_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = shown_on(monkeypatch)
    with progress("reading a[/c]", total=4) as task:
        task.advance(3, note="extend/a[/b].parquet")
    assert "reading a[/c]" in screen.getvalue()
    assert "a[/b].p" in screen.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_gives_the_terminal_no_orders(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that hides all that comes after it."""
    screen = shown_on(monkeypatch, terminal)
    with progress("reading \x1b[8mx", total=1) as task:
        task.advance(note="extend/\x1b[8mhidden\x9b2K")
    shown = screen.getvalue() + capsys.readouterr().err
    assert "\x1b[8m" not in shown
    assert "\x9b" not in shown
    assert "reading \u241b[8mx" in shown
    assert "extend/\u241b[8mhid" in shown


def test_a_bar_goes_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = shown_on(monkeypatch)
    with progress("training", total=8, done=5) as task:
        assert task.done == 5
        task.advance(2)
    assert task.done == 7
    assert "7/8" in screen.getvalue()
    assert "0/8" not in screen.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_another_process_shows_is_counted_in_silence(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = shown_on(monkeypatch, terminal)
    now = 0.0
    monkeypatch.setattr(lrdata.progress.time, "monotonic", lambda: now)
    with progress("training", total=8, done=5, silent=True) as task:
        for _ in range(3):
            now += 100.0
            task.advance(note="loss 2.5")
    assert task.done == 8
    assert screen.getvalue() == ""
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("silent", [False, True])
def test_an_error_inside_passes_through(silent: bool) -> None:
    def work() -> None:
        with progress("building", total=2, silent=silent):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
