"""The progress bar: it passes items through, and shows itself only on a terminal."""

import io
import time

import pytest

from nkf.progress import steps_shown, track


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "count", "shown"), [(io.StringIO, 50, False), (Terminal, 50, True), (Terminal, 3, False)]
)
def test_track(monkeypatch, stream, count, shown):
    stderr = stream()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track(range(count), "predicting", count)) == list(range(count))
    assert ("predicting" in stderr.getvalue()) == shown


def test_training_without_a_terminal_is_a_line_a_minute(monkeypatch):
    stderr, clock = io.StringIO(), iter([0, 10, 59, 60, 100, 119, 120, 180])  # seconds at start and after each step
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with steps_shown(1000, 1007) as show:
        for step in range(1001, 1008):
            show(step, 2.5 / (step - 1000))
    assert stderr.getvalue().splitlines() == [
        "training: step 1,003 of 1,007, loss 0.833, 1 min left",
        "training: step 1,006 of 1,007, loss 0.417, 0 min left",
        "training: step 1,007 of 1,007, loss 0.357, 0 min left",
    ]


def test_training_on_a_terminal_is_a_bar(monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    with steps_shown(0, 10) as show:
        show(5, 1.25)
        time.sleep(0.2)  # the bar is drawn ten times a second
    assert "training" in stderr.getvalue()
    assert "1.250" in stderr.getvalue()
    assert "step" not in stderr.getvalue()
