"""The command ``nkf webcam``: a live view that shows the newest frame, and leaves out those that it has no time for."""

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from nkf.errors import ImageError, NkfError
from nkf.output import STANDARD_OUTPUT, JsonLinesWriter, check_files, check_place, stream_or_file
from nkf.predict import Predictor
from nkf.runtime import Device
from nkf.video import Video, VideoFrame, camera_frames
from nkf.video_output import draw_tracks
from nkf.video_predict import FramePrediction, VideoPredictor
from nkf.video_run import SpanLines

if TYPE_CHECKING:
    from rich.table import Table

_RATE_SECONDS = 2.0  # over which the shown frame rate is averaged
_WAIT_SECONDS = 0.1  # for a frame, before the view is looked after again
_BAR_WIDTH = 20
_MAX_SHOWN = 4  # tracks beside each other


@dataclass(frozen=True)
class WebcamSettings:
    """What is watched, and how: `source` is a camera or a file, None the first camera; `seconds` None: no end."""

    source: str | None
    model: str
    detector: str
    device: Device
    min_confidence: float | None
    smooth_seconds: float
    seconds: float | None


class NewestFrame:
    """Reads frames in a thread of its own and keeps the newest only, so that who takes them is never behind."""

    def __init__(self, frames: Iterator[VideoFrame], *, in_real_time: bool = False) -> None:
        """Start reading.

        Args:
            frames: as a camera gives them.
            in_real_time: let each frame wait for its time, as a file in a camera's place has to.
        """
        self._frames, self._in_real_time = frames, in_real_time
        self._changed = threading.Condition()
        self._newest: VideoFrame | None = None
        self._stopped = threading.Event()
        self.problem: Exception | None = None
        self.ended = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    problem: Exception | None
    """What kept the reader from going on, if `ended`."""

    ended: bool
    """No frame will come any more."""

    dropped: int
    """Frames that nobody took before the next one came."""

    def take(self, timeout_s: float) -> VideoFrame | None:
        """Return the newest frame that was not taken yet; None if there is none, after `timeout_s` or at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self.ended, timeout_s)
            frame, self._newest = self._newest, None
            return frame

    def close(self) -> None:
        """Stop reading; a camera that does not answer is not waited for."""
        self._stopped.set()
        self._thread.join(timeout=2.0)

    def _read(self) -> None:
        problem: Exception | None = None
        start = time.monotonic()
        first_s: float | None = None
        try:
            for frame in self._frames:
                first_s = frame.time_s if first_s is None else first_s
                if self._in_real_time:
                    self._stopped.wait(max(start + frame.time_s - first_s - time.monotonic(), 0.0))
                if self._stopped.is_set():
                    break
                with self._changed:
                    self.dropped += self._newest is not None
                    self._newest = frame
                    self._changed.notify()
        except Exception as error:  # told by the thread that waits
            problem = error
        with self._changed:
            self.problem, self.ended = problem, True
            self._changed.notify()


class View(Protocol):
    """Something that shows predictions."""

    closed: bool

    def show(self, frame: VideoFrame, prediction: FramePrediction, dropped: int) -> None: ...

    def idle(self) -> None: ...


def watch(settings: WebcamSettings, *, jsonl: Path | None, window: bool) -> int:
    """Show what a camera sees until it ends; returns the exit code (see `nkf.cli_video.webcam`)."""
    if settings.seconds is not None and not settings.seconds > 0:
        raise NkfError(f"seconds {settings.seconds:g}: expected more than 0")
    outputs = {} if jsonl is None else {"jsonl": jsonl}
    check_files(outputs, sources=[] if settings.source is None else [Path(settings.source)])
    model = Predictor(
        settings.model, detector=settings.detector, device=settings.device, min_confidence=settings.min_confidence
    )
    for path in outputs.values():
        check_place(path)
    predictor = VideoPredictor(model, smooth_seconds=settings.smooth_seconds)
    name = settings.source or "camera"
    with ExitStack() as stack:
        view = stack.enter_context(_make_view(window, model.classes, quiet=jsonl == STANDARD_OUTPUT))
        reader = _open(settings.source, stack)
        stack.callback(reader.close)
        log = None
        if jsonl is not None:
            log = stack.enter_context(JsonLinesWriter(stream_or_file(jsonl)))
        interrupted = stack.enter_context(_interrupts_noted())
        end = float("inf") if settings.seconds is None else time.monotonic() + settings.seconds
        while not interrupted() and not view.closed and time.monotonic() < end:
            frame = reader.take(_WAIT_SECONDS)
            if frame is None:
                if reader.ended:
                    break
                view.idle()
                continue
            ((_, prediction),) = predictor.predict([frame], name, batch=1)
            view.show(frame, prediction, reader.dropped)
            if log:
                log.write(prediction.to_dict())
        if log and reader.problem:
            log.write(FramePrediction(name, None, None, "error", str(reader.problem)).to_dict())
    if reader.problem is None:
        return 0
    if not isinstance(reader.problem, NkfError):
        raise reader.problem
    print("nkf:", " ".join(str(reader.problem).split()), file=sys.stderr)
    return 1


def _open(source: str | None, stack: ExitStack) -> NewestFrame:
    """Open a file or a camera; what cannot be opened is told at once, not by the thread."""
    if source is not None and Path(source).is_file():
        try:
            video = stack.enter_context(Video(source))
        except ImageError as error:
            raise NkfError(str(error)) from error  # nothing was watched: the command is wrong
        return NewestFrame(video.frames(), in_real_time=True)
    frames = camera_frames(source)
    return NewestFrame(chain([next(frames)], frames))


@contextmanager
def _interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C end the loop after the frame, so that no line of a file is cut; the second acts as usual."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _make_view(window: bool, classes: tuple[str, ...], *, quiet: bool) -> Iterator[View]:
    if window:
        with _window() as view:
            yield view
    elif quiet:
        yield _NoView()
    elif sys.stdout.isatty():
        from rich.live import Live

        with Live(auto_refresh=False, transient=False) as live:
            yield _TerminalView(classes, lambda table: live.update(table, refresh=True))
    else:
        lines = SpanLines(sys.stdout)
        yield _LinesView(lines)
        lines.end()


class _NoView:
    closed = False

    def show(self, frame: VideoFrame, prediction: FramePrediction, dropped: int) -> None:
        """Standard output belongs to the log."""

    def idle(self) -> None:
        """Nothing to look after."""


class _LinesView(_NoView):
    """Lines as ``nkf video`` prints them, for standard output that is no terminal."""

    def __init__(self, lines: SpanLines) -> None:
        self._lines = lines

    def show(self, frame: VideoFrame, prediction: FramePrediction, dropped: int) -> None:
        self._lines.add(prediction)


class _TerminalView(_NoView):
    def __init__(self, classes: tuple[str, ...], update: Callable[["Table"], None]) -> None:
        self._classes, self._update = classes, update
        self._rate = FrameRate()

    def show(self, frame: VideoFrame, prediction: FramePrediction, dropped: int) -> None:
        self._update(live_table(self._classes, prediction, self._rate.tick(time.monotonic()), dropped))


class FrameRate:
    """Frames a second over the last moments."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def tick(self, now_s: float) -> float:
        """Count a frame, and return the rate; 0 for the first."""
        self._times.append(now_s)
        while now_s - self._times[0] > _RATE_SECONDS and len(self._times) > 2:
            self._times.popleft()
        seconds = now_s - self._times[0]
        return (len(self._times) - 1) / seconds if seconds > 0 else 0.0


def live_table(classes: tuple[str, ...], prediction: FramePrediction, fps: float, dropped: int) -> "Table":
    """What the terminal shows: a column of bars for each track, largest face first."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    assert prediction.time_s is not None
    caption = f"{prediction.time_s:.1f} s   {fps:.1f} frames/s   {dropped:,} dropped   Ctrl-C ends"
    table = Table(box=SIMPLE, caption=caption, caption_justify="left")
    faces = prediction.faces[:_MAX_SHOWN]
    table.add_column("" if faces else "no face", no_wrap=True)
    for face in faces:
        doubt = "" if face.face.status == "ok" else f" ({face.face.status.replace('_', ' ')})"
        table.add_column(f"#{face.track} {face.smooth_expression}{doubt}", no_wrap=True)
    for name in classes:
        cells = []
        for face in faces:
            value = face.smooth_probabilities[name]
            filled = round(value * _BAR_WIDTH)
            style = "bold yellow" if name == face.smooth_expression else "cyan"
            cells.append(Text.assemble(("━" * filled, style), ("─" * (_BAR_WIDTH - filled), "dim"), f" {value:4.0%}"))
        table.add_row(name, *cells)
    if len(prediction.faces) > len(faces):
        table.title = f"{len(prediction.faces)} faces, the largest {len(faces)} are shown"
    return table


class _WindowView:
    """A window with the overlay."""

    def __init__(self, root: Any, label: Any, photo: Any) -> None:
        self._root, self._label, self._photo = root, label, photo
        self._rate = FrameRate()
        self.closed = False
        root.protocol("WM_DELETE_WINDOW", self._close)

    def _close(self) -> None:
        self.closed = True

    def show(self, frame: VideoFrame, prediction: FramePrediction, dropped: int) -> None:
        picture = self._photo(draw_tracks(frame.image_rgb, prediction.faces))
        self._label.configure(image=picture)
        self._label.image = picture  # Tk itself keeps no hold of it
        self._root.title(f"nkf: {self._rate.tick(time.monotonic()):.1f} frames/s, {dropped:,} dropped")
        self._root.update()

    def idle(self) -> None:
        self._root.update()


@contextmanager
def _window() -> Iterator[View]:
    try:
        import tkinter

        from PIL import ImageTk

        root = tkinter.Tk()
    except ImportError as error:
        raise NkfError("--window needs tkinter, which this Python lacks (Debian: apt install python3-tk)") from error
    except tkinter.TclError as error:
        raise NkfError(f"--window: no screen to show it on ({' '.join(str(error).split())})") from error
    label = tkinter.Label(root)
    label.pack()
    try:
        yield _WindowView(root, label, ImageTk.PhotoImage)
    finally:
        root.destroy()
