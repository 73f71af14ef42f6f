"""The progress bar: it passes items through, and shows itself only on a terminal."""

import io

import pytest

from nkf.progress import track


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
