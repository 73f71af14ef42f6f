"""The expressions of each face of a video over time: kept in little memory, and drawn."""

from collections.abc import Sequence
from pathlib import Path

from nkf.files import printable
from nkf.report import require_matplotlib
from nkf.tracking import MAX_GAP_S
from nkf.video_predict import FramePrediction, TrackedFace

MAX_POINTS = 2000  # of one track; with more, every second one is left out, as often as it takes
MAX_TRACKS = 12  # that are drawn
_KEPT_TRACKS = 128  # of those that have ended

_COLOURS = {
    "neutral": "#7f8c99",
    "happiness": "#e69f00",
    "sadness": "#2f6fb3",
    "surprise": "#d65fb5",
    "fear": "#6a4fb0",
    "disgust": "#2e9e5b",
    "anger": "#cc3d33",
    "contempt": "#8a5a2b",
}
_OTHER_COLOURS = ("#17a2b8", "#5b8c00", "#b8860b", "#444444")


class TrackLine:
    """What one track shows, at N times.

    `times_s` has N numbers; `raw` and `smooth` N rows of probabilities in the order of the model's classes; `trusted`
    is whether the face had status ``ok``. `frames` is in how many frames it was found: N are kept of them.
    """

    def __init__(self, track: int) -> None:
        self.track, self.frames = track, 0
        self.first_s = self.last_s = 0.0
        self.times_s: list[float] = []
        self.raw: list[list[float]] = []
        self.smooth: list[list[float]] = []
        self.trusted: list[bool] = []
        self._step = 1

    @property
    def title(self) -> str:
        """Number, times and frames in words."""
        return f"track {self.track}: {self.first_s:.2f} to {self.last_s:.2f} s, {self.frames:,} frames"

    def add(self, face: TrackedFace, time_s: float) -> None:
        """Add a frame, or leave it out."""
        self.first_s = time_s if not self.frames else self.first_s
        self.last_s = time_s
        if self.frames % self._step == 0:
            self.times_s.append(time_s)
            self.raw.append(list(face.face.probabilities.values()))
            self.smooth.append(list(face.smooth_probabilities.values()))
            self.trusted.append(face.face.status == "ok")
        self.frames += 1
        if len(self.times_s) > MAX_POINTS:
            self._step *= 2
            for values in (self.times_s, self.raw, self.smooth, self.trusted):
                del values[1::2]


class Timeline:
    """Collects what is drawn of a video; its size does not grow with the video."""

    def __init__(self, path: str, classes: Sequence[str]) -> None:
        """Start without tracks.

        Args:
            path: of the video, for the title.
            classes: names of the expressions, in the order of the probabilities.
        """
        self.path, self.classes = printable(path), tuple(classes)
        self.tracks = 0
        self.start_s: float | None = None
        self.end_s = 0.0
        self._lines: dict[int, TrackLine] = {}

    def add(self, prediction: FramePrediction) -> None:
        """Add a frame."""
        assert prediction.time_s is not None
        self.start_s = prediction.time_s if self.start_s is None else self.start_s
        self.end_s = prediction.time_s
        for face in prediction.faces:
            if face.track not in self._lines:
                self.tracks += 1
            self._lines.setdefault(face.track, TrackLine(face.track)).add(face, prediction.time_s)
        if len(self._lines) > 2 * _KEPT_TRACKS:
            longest = set(sorted(self._lines, key=lambda track: self._lines[track].frames)[-_KEPT_TRACKS:])
            alive = {track for track, line in self._lines.items() if self.end_s - line.last_s <= MAX_GAP_S}
            self._lines = {track: line for track, line in self._lines.items() if track in longest | alive}

    def lines(self) -> list[TrackLine]:
        """Return the `MAX_TRACKS` tracks with the most frames, in the order of their numbers."""
        longest = sorted(self._lines.values(), key=lambda line: line.frames, reverse=True)[:MAX_TRACKS]
        return sorted(longest, key=lambda line: line.track)

    def left_out(self) -> str:
        """Say how many tracks `lines` leaves out; empty if none."""
        missing = self.tracks - len(self.lines())
        return f"{missing:,} shorter tracks are not shown" if missing else ""


def class_colours(classes: Sequence[str]) -> list[str]:
    """A colour for each class: always the same for those that are known."""
    others = iter(_OTHER_COLOURS * len(classes))
    return [_COLOURS.get(name) or next(others) for name in classes]


def draw_timeline(timeline: Timeline, file: Path) -> None:
    """Draw a panel for each track: smoothed probabilities, the raw ones faint, below them the strip of the answer.

    The background is grey where a face is uncertain or of low quality.

    Args:
        timeline: of one video.
        file: PNG to write.

    Raises:
        NkfError: without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    lines, colours = timeline.lines(), class_colours(timeline.classes)
    figure = Figure(figsize=(12, 1.1 + 1.9 * max(len(lines), 1)), layout="constrained")
    panels = figure.subplots(max(len(lines), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axes, line in zip(panels, lines, strict=False):
        for start_s, end_s in _spans(line.times_s, [not trusted for trusted in line.trusted]):
            axes.axvspan(start_s, end_s, color="#e9ecef", linewidth=0, zorder=0)
        best = [max(range(len(row)), key=row.__getitem__) for row in line.smooth]
        for k, colour in enumerate(colours):
            axes.plot(line.times_s, [row[k] for row in line.raw], color=colour, alpha=0.28, linewidth=0.7, zorder=1)
            axes.plot(line.times_s, [row[k] for row in line.smooth], color=colour, linewidth=1.8, zorder=2)
            spans = [(start, end - start) for start, end in _spans(line.times_s, [one == k for one in best])]
            axes.broken_barh(spans, (-0.13, 0.08), color=colour, linewidth=0)
        axes.set_ylim(-0.15, 1.02)
        axes.set_yticks([0, 0.5, 1])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(line.title, fontsize=10, loc="left")
    if lines:
        panels[0].set_xlim(timeline.start_s, max(timeline.end_s, (timeline.start_s or 0) + 1e-3))
    else:
        panels[0].text(0.5, 0.5, "no faces", ha="center", va="center", transform=panels[0].transAxes)
        panels[0].axis("off")
    panels[-1].set_xlabel("time (s)")
    figure.suptitle("  ".join((Path(timeline.path).name, *filter(None, [timeline.left_out()]))), fontsize=11)
    handles = [panels[0].plot([], [], color=colour, linewidth=3)[0] for colour in colours]
    figure.legend(handles, timeline.classes, loc="outside lower center", ncols=len(colours), fontsize=9, frameon=False)
    figure.savefig(file, format="png", dpi=110)


def _spans(times_s: Sequence[float], wanted: Sequence[bool]) -> list[tuple[float, float]]:
    """Where something holds, from each first time on to that at which it no longer does, or the last one."""
    spans: list[tuple[float, float]] = []
    start: float | None = None
    for time_s, holds in zip(times_s, wanted, strict=True):
        if holds and start is None:
            start = time_s
        elif not holds and start is not None:
            spans.append((start, time_s))
            start = None
    if start is not None:
        spans.append((start, times_s[-1]))
    return spans
