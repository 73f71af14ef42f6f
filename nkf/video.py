"""The frames of a video file, upright and each with its own time, one after the other."""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from nkf.errors import ImageError, NkfError
from nkf.images import ImageRGB
from nkf.video_sources import Animation, Damage, VideoFile, VideoInfo, reason, upright_rgb

_CAMERAS = {"linux": ("v4l2", "/dev/video0"), "darwin": ("avfoundation", "default"), "win32": ("dshow", "video=0")}


class VideoFrame(NamedTuple):
    """One frame.

    `number` counts the frames of the file from 0, whichever of them are taken; `time_s` is its timestamp as the file
    has it (of the first frame usually 0), `image_rgb` upright, (H, W, 3) uint8.
    """

    number: int
    time_s: float
    image_rgb: ImageRGB


@dataclass(frozen=True, slots=True)
class FrameSelection:
    """Which frames to take: every `stride`-th of those with ``start_s <= time_s < end_s``.

    Raises:
        NkfError: when there can be no such frame.
    """

    stride: int = 1
    start_s: float = -math.inf
    end_s: float = math.inf

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise NkfError(f"stride is {self.stride}; expected 1 (every frame) or more")
        if not self.start_s < self.end_s:
            raise NkfError(f"start {self.start_s:g} s, end {self.end_s:g} s; expected an end after the start")

    def __str__(self) -> str:
        start, end = math.isfinite(self.start_s), math.isfinite(self.end_s)
        times = [f"from {self.start_s:g} s on"] * start + [f"before {self.end_s:g} s"] * end
        return " and ".join(times) or "at any time"


class Video:
    """A video file, open: ``with Video(path) as video: for frame in video.frames(): ...``.

    Memory stays the same however long the video is. Animated GIF, PNG and WebP are videos too.
    """

    info: VideoInfo

    def __init__(self, path: str | Path) -> None:
        """Open a file and decode its first frame.

        Raises:
            ImageError: when it is no video, or none that can be read.
            NkfError: when there is no such file, or PyAV is missing.
        """
        require_av()
        self._path = Path(path)
        try:
            with self._path.open("rb") as stream:
                head = stream.read(12)
        except OSError as error:
            raise NkfError(f"{path}: {error.strerror}") from error
        animation = head[:4] in (b"GIF8", b"\x89PNG") or (head[:4], head[8:]) == (b"RIFF", b"WEBP")
        self._source: VideoFile | Animation = Animation(self._path) if animation else VideoFile(self._path)
        self.info = self._source.info
        self._pictures = self._source.pictures()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def frames(self, selection: FrameSelection | None = None) -> Iterator[VideoFrame]:
        """Yield the selected frames; can be called once.

        All frames before the last selected one are decoded: only so their numbers are certain.

        Raises:
            ImageError: where the file is damaged or cut off, after the frames before that place.
        """
        chosen = selection or FrameSelection()
        number, waiting, time_s = -1, 0, 0.0
        try:
            for number, picture in enumerate(self._pictures):
                time_s = picture.time_s
                if time_s >= chosen.end_s:
                    return
                if time_s < chosen.start_s:
                    continue
                if not waiting:
                    yield VideoFrame(number, time_s, picture.to_image())
                waiting = (waiting + 1) % chosen.stride
        except Damage as damage:
            where = f"after frame {number} ({time_s:.2f} s)" if number >= 0 else "before its first frame"
            raise ImageError(f"{self._path}: {damage} {where}") from damage


def require_av() -> None:
    """Raise `NkfError` where videos can be neither read nor written."""
    if find_spec("av") is None:
        raise NkfError("videos need PyAV: pip install av")


def camera_frames(name: str | None = None) -> Iterator[VideoFrame]:
    """Yield the frames of a camera as they come, until the iterator is closed; the first one's time is 0.

    Args:
        name: as FFmpeg calls it on this platform (``/dev/video1``, ``video=Integrated Camera``); None: the first one.

    Raises:
        NkfError: when there is no such camera, PyAV is missing, or the camera goes away.
    """
    require_av()
    import av

    kind, first = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
    try:
        with av.open(name or first, format=kind) as container:
            first_s: float | None = None
            for number, frame in enumerate(container.decode(video=0)):
                now_s = time.monotonic() if frame.time is None else frame.time
                first_s = now_s if first_s is None else first_s
                yield VideoFrame(number, now_s - first_s, upright_rgb(frame))
    except (av.FFmpegError, ValueError) as error:
        raise NkfError(f"{name or first}: no camera that can be read ({reason(error)})") from error
