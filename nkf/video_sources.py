"""What is behind a video: a file that FFmpeg decodes, or an animation that Pillow decodes."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nkf.errors import ImageError
from nkf.images import ImageRGB, to_rgb
from nkf.video_ends import is_cut_off

# What FFmpeg may take a file for. Others would read text as drawings, or a list of further files and addresses.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,ivf,h264,hevc,av1,obu,m4v,"
    "mjpeg,mxf,dv,nut,rm,wtv,yuv4mpegpipe"
)
MAX_FRAME_PIXELS = 36_000_000  # 8K has 33
_GIF_SECONDS = 0.1  # of a frame that gives none, as browsers have it


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a file says of itself; what it does not say, or only estimates would tell, is None.

    Attributes:
        path: as it was given.
        width: pixels of the upright frame.
        height: also.
        fps: frames a second, on average.
        duration_s: seconds.
        frames: number of frames.
        codec: FFmpeg's name of it.
        rotation_deg: by which the stored frames are turned to stand upright, counter-clockwise.
    """

    path: str
    width: int
    height: int
    fps: float | None
    duration_s: float | None
    frames: int | None
    codec: str
    rotation_deg: int


class Picture(NamedTuple):
    """A decoded frame before anybody needs its colours."""

    time_s: float
    to_image: Callable[[], ImageRGB]


class Damage(Exception):
    """What is wrong with a file, at the place that was reached."""


class VideoFile:
    """What FFmpeg reads."""

    def __init__(self, path: Path) -> None:
        import av

        self._path = path
        try:
            # "file:" keeps a name with a colon from being read as an address.
            self._container = av.open(f"file:{path}", options={"format_whitelist": _FORMATS}, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            what = "cut off, its index is missing" if is_cut_off(path) else "not a video that can be read"
            refused = isinstance(error, av.error.ArgumentError)  # by `_FORMATS`
            why = "no video format; nkf predict takes photos" if refused else reason(error)
            raise ImageError(f"{path}: {what} ({why})") from error
        try:
            self.info = self._open_stream()
        except BaseException:
            self._container.close()
            raise

    def _open_stream(self) -> VideoInfo:
        if not self._container.streams.video:
            raise ImageError(f"{self._path}: no video in it, only sound or data")
        self._stream = stream = self._container.streams.video[0]
        if stream.codec_context is None:
            raise ImageError(f"{self._path}: a video in a coding that is not known here")
        if stream.width * stream.height > MAX_FRAME_PIXELS:
            raise ImageError(
                f"{self._path}: frames of {stream.width}x{stream.height} pixels, at most {MAX_FRAME_PIXELS:,}"
            )
        stream.thread_type = "AUTO"
        self._frames = self._decoded()
        try:
            self._first = next(self._frames, None)
        except Damage as damage:
            raise ImageError(f"{self._path}: {damage} before its first frame") from damage
        if self._first is None:
            raise ImageError(f"{self._path}: a video without frames")
        frame, _ = self._first
        turns = _quarter_turns(frame)
        duration = self._container.duration
        return VideoInfo(
            str(self._path),
            width=frame.height if turns % 2 else frame.width,
            height=frame.width if turns % 2 else frame.height,
            fps=float(stream.average_rate) if stream.average_rate else None,
            duration_s=duration / 1e6 if duration else None,
            frames=stream.frames or None,
            codec=stream.codec_context.name,
            rotation_deg=turns * 90,
        )

    def close(self) -> None:
        self._container.close()

    def pictures(self) -> Iterator[Picture]:
        assert self._first is not None
        frame, time_s = self._first
        yield Picture(time_s, lambda: upright_rgb(frame))
        self._first = None
        for frame, time_s in self._frames:
            if frame.width * frame.height > MAX_FRAME_PIXELS:  # the size may change on the way
                raise Damage(f"frames of {frame.width}x{frame.height} pixels, at most {MAX_FRAME_PIXELS:,},")
            yield Picture(time_s, lambda frame=frame: upright_rgb(frame))  # type: ignore[misc]

    def _decoded(self) -> Iterator[tuple[Any, float]]:
        """Yield sound frames and their times; `Damage` after what could be decoded before the damage."""
        import av

        clock = _Clock(self._stream, in_decoding_order=self._container.format.name == "avi")
        problem = None
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_corrupt:
                    problem = "cut off"
                    break
                clock.see(packet)
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise Damage("damaged")
                    yield frame, clock.time_s(frame)
        except av.FFmpegError as error:
            problem = f"damaged ({reason(error)})"
        if problem is not None:
            with suppress(av.FFmpegError):
                for frame in self._stream.decode(None):  # what still waits in the decoder
                    if frame.is_corrupt:
                        break
                    yield frame, clock.time_s(frame)
            raise Damage(problem)
        if is_cut_off(self._path):
            raise Damage("cut off")


class _Clock:
    """Timestamps of decoded frames, in seconds.

    AVI has none for presentation, only one for each packet in decoding order; the frames are shown in these moments.
    """

    def __init__(self, stream: Any, *, in_decoding_order: bool) -> None:
        self._base = stream.time_base
        self._step_s = 1 / float(stream.average_rate) if stream.average_rate else 0.04
        self._in_decoding_order = in_decoding_order
        self._moments: deque[int] = deque()
        self._last_s = -self._step_s

    def see(self, packet: Any) -> None:
        if self._in_decoding_order and packet.size and packet.dts is not None:
            self._moments.append(packet.dts)

    def time_s(self, frame: Any) -> float:
        pts = self._moments.popleft() if self._moments else frame.pts
        self._last_s = self._last_s + self._step_s if pts is None else float(pts * self._base)
        return self._last_s


class Animation:
    """What Pillow reads: it puts frames that are smaller than the picture together, of all these formats."""

    def __init__(self, path: Path) -> None:
        try:
            self._image = Image.open(path)
        except Exception as error:  # Pillow raises nearly anything on broken data
            raise ImageError(f"{path}: not a video that can be read ({reason(error)})") from error
        width, height = self._image.size
        if width * height > MAX_FRAME_PIXELS:
            self.close()
            raise ImageError(f"{path}: frames of {width}x{height} pixels, at most {MAX_FRAME_PIXELS:,}")
        self.info = VideoInfo(str(path), width, height, None, None, None, str(self._image.format).lower(), 0)

    def close(self) -> None:
        self._image.close()

    def pictures(self) -> Iterator[Picture]:
        time_s = 0.0
        for number in count():
            try:
                self._image.seek(number)
                image_rgb = to_rgb(self._image)
            except EOFError:
                return
            except Exception as error:  # as above
                raise Damage(f"damaged ({reason(error)})") from error
            yield Picture(time_s, lambda image_rgb=image_rgb: image_rgb)  # type: ignore[misc]
            time_s += float(self._image.info.get("duration", 0)) / 1000 or _GIF_SECONDS


def upright_rgb(frame: Any) -> ImageRGB:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _quarter_turns(frame)))


def _quarter_turns(frame: Any) -> int:
    """Number of turns by 90° counter-clockwise that make a frame upright; FFmpeg leaves them to who shows it."""
    return round(frame.rotation / 90) % 4


def reason(error: Exception) -> str:
    """The cause alone: FFmpeg's text without number and file name, which the message around it has."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
