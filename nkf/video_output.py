"""What becomes of a video's predictions: JSON, CSV and Parquet, written whole or not at all, and a video with overlay.

The tables are those of photos (`nkf.output`) with ``frame``, ``time_s`` and ``track`` after ``path``, and the smoothed
expression after the raw probabilities.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nkf.errors import NkfError
from nkf.files import real_path, replacing
from nkf.geometry import LANDMARK_GROUPS
from nkf.images import ImageRGB
from nkf.output import CSV_COLUMNS, CsvWriter, Document, JsonWriter, ParquetWriter, WholeFile, face_rows
from nkf.video import require_av
from nkf.video_predict import FramePrediction, TrackedFace
from nkf.video_sources import VideoInfo

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov")

# Tracks take them in turn; each can be told from its neighbours and read under dark letters.
TRACK_COLOURS = ((255, 193, 37), (86, 204, 242), (255, 138, 128), (129, 230, 140), (214, 162, 255), (255, 255, 255))
_DARK = (18, 20, 26)
_CLOSED_GROUPS = ("right_eye", "left_eye", "outer_lip", "inner_lip")
_Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1
_CLOCK_HZ = 90_000  # of the timestamps written: fine enough for any frame rate


def frame_columns(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Columns of the CSV and Parquet tables, in their order."""
    path, status, *rest = CSV_COLUMNS
    smooth = (f"smooth_{name}" for name in classes)
    return (path, "frame", "time_s", "track", status, *rest, *classes, "smooth_expression", *smooth)


def frame_rows(document: Document) -> list[dict[str, Any]]:
    """Rows of a frame's prediction in its JSON form: one a face, or one with ``path`` to ``status`` for none."""
    rows = []
    for row, face in zip(face_rows(document), document["faces"] or [None], strict=True):
        row |= {"frame": document["frame"], "time_s": document["time_s"]}
        if face is not None:
            smooth = {f"smooth_{name}": value for name, value in face["smooth_probabilities"].items()}
            row |= {"track": face["track"], "smooth_expression": face["smooth_expression"], **smooth}
        rows.append(row)
    return rows


class FrameCsvWriter(CsvWriter):
    """A table with one row a face and frame; a frame without faces has one row with empty fields.

    Args:
        file: a path or an open text stream.
        classes: names of the expressions; the columns are `frame_columns`.
    """

    def _start(self) -> None:
        columns = frame_columns(self._classes)
        self._rows = csv.DictWriter(self._stream, columns, restval="", lineterminator="\n")
        self._rows.writeheader()

    def write(self, document: Document) -> None:
        """Add the rows of one frame; ``face`` counts from 0, largest first."""
        self._rows.writerows(frame_rows(document))


class FrameParquetWriter(ParquetWriter):
    """The table of `FrameCsvWriter` in typed columns, with ``message`` and ``problems``."""

    def _make_schema(self, classes: tuple[str, ...]) -> Any:
        text, whole = self._arrow.string(), self._arrow.int32()
        columns = [*frame_columns(classes), "message", "problems"]
        types = dict.fromkeys(columns, self._arrow.float32()) | {"problems": self._arrow.list_(text)}
        types |= dict.fromkeys(("path", "status", "expression", "smooth_expression", "message"), text)
        types |= {"frame": self._arrow.int64(), "time_s": self._arrow.float64(), "track": whole, "face": whole}
        return self._arrow.schema(types.items())

    def write(self, document: Document) -> None:
        """Add the rows of one frame."""
        problems = [face["problems"] for face in document["faces"]] or [None]
        message = {"message": document.get("message")}
        self._rows += [
            row | message | {"problems": one} for row, one in zip(frame_rows(document), problems, strict=True)
        ]
        if len(self._rows) >= self.ROWS:
            self._write_group()


class FrameJsonWriter(JsonWriter):
    """One JSON object: what the video is, how it was worked on, ``frames``, one on a line, and at last the ``status``.

    A document with status ``error`` is no frame: it ends the file, with ``status`` and ``message``.
    """

    def __init__(self, file: Path | TextIO, info: VideoInfo | None, settings: Mapping[str, Any]) -> None:
        """Describe the file.

        Args:
            file: a path or an open text stream.
            info: of the video; None where it could not be read.
            settings: plain values that stand in the object under their names.
        """
        super().__init__(file)
        self._head = {"schema": 1, "video": None if info is None else asdict(info), **settings}
        self._result: dict[str, Any] = {"status": "ok"}

    def _start(self) -> None:
        self._stream.write(json.dumps(self._head, allow_nan=False)[:-1] + ', "frames": ')
        super()._start()

    def write(self, document: Document) -> None:
        """Add one frame."""
        if document["status"] == "error":
            self._result = {"path": document["path"], "status": "error", "message": document["message"]}
        else:
            super().write(document)

    def _end(self) -> None:
        frames = "[]" if self._separator == "[\n" else "\n]"
        self._stream.write(f"{frames}, {json.dumps(self._result)[1:]}\n")


class OverlayWriter(WholeFile):
    """An H.264 video with boxes, landmarks and smoothed expressions: ``with OverlayWriter(file) as overlay: ...``.

    Frames keep their times, so that a variable frame rate stays one. There is no sound. An odd width or height grows
    by a pixel. The file appears when the ``with`` block ends without an exception, and if there was a frame.
    """

    def __init__(self, file: Path, *, start_s: float = 0.0) -> None:
        """Describe a video.

        Args:
            file: one of `VIDEO_SUFFIXES`.
            start_s: time that becomes 0.

        Raises:
            NkfError: when the file has another ending, or PyAV is missing.
        """
        if file.suffix.lower() not in VIDEO_SUFFIXES:
            raise NkfError(f"{file}: expected a name that ends in {', '.join(VIDEO_SUFFIXES)}")
        require_av()
        self._file, self._start_s = file, start_s
        self._stack = ExitStack()
        self._stream: Any = None
        self._last_pts = -1

    def __enter__(self) -> Self:
        return self

    def _finish(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))

    def write(self, image_rgb: ImageRGB, prediction: FramePrediction) -> None:
        """Add one frame, drawn on.

        Args:
            image_rgb: the (H, W, 3) frame; one of another size than the first is scaled to that.
            prediction: of this frame.
        """
        import av

        assert prediction.time_s is not None
        if self._stream is None:
            self._open(*image_rgb.shape[:2])
        picture = draw_tracks(image_rgb, prediction.faces)
        frame = av.VideoFrame.from_ndarray(self._fitted(picture), format="rgb24")
        frame.pts = max(round((prediction.time_s - self._start_s) * _CLOCK_HZ), self._last_pts + 1)
        self._last_pts, frame.time_base = frame.pts, Fraction(1, _CLOCK_HZ)
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        import av

        with ExitStack() as stack:
            partial = stack.enter_context(replacing(real_path(self._file)))
            form = "mov" if self._file.suffix.lower() == ".mov" else "mp4"
            self._container = stack.enter_context(av.open(str(partial), "w", format=form))
            # Without B-frames a frame's time of decoding is that of showing it, and no player has to shift them.
            stream = self._container.add_stream(
                "libx264", rate=30, options={"crf": "20", "preset": "veryfast", "bf": "0"}
            )
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            stream.codec_context.time_base = stream.time_base = Fraction(1, _CLOCK_HZ)
            self._stream = stream
            self._stack = stack.pop_all()

    def _fitted(self, picture: Image.Image) -> ImageRGB:
        size = (self._stream.width, self._stream.height)
        if not all(0 <= have - given <= 1 for have, given in zip(size, picture.size, strict=True)):
            picture = picture.resize(size)
        image = np.asarray(picture)
        missing = [(0, size[1] - image.shape[0]), (0, size[0] - image.shape[1]), (0, 0)]
        return np.pad(image, missing, mode="edge")


def draw_tracks(image_rgb: ImageRGB, faces: tuple[TrackedFace, ...]) -> Image.Image:
    """Draw a frame, landmarks, track number and smoothed expression of each face, in the colour of its track.

    A question mark follows where the face is not ``ok`` in this frame.

    Args:
        image_rgb: (H, W, 3).
        faces: coordinates in pixels of that image.

    Returns:
        An RGB picture of the image's size.
    """
    picture = Image.fromarray(image_rgb)
    draw = ImageDraw.Draw(picture, "RGBA")  # colours with alpha are blended
    for tracked in reversed(faces):  # the largest last, over the others
        colour = TRACK_COLOURS[tracked.track % len(TRACK_COLOURS)]
        _draw_landmarks(draw, tracked, colour)
        draw.rectangle(_frame_xyxy(tracked), outline=colour, width=max(round(max(picture.size) / 320), 2))
    plates: list[_Rectangle] = []
    for tracked in faces:
        plates.append(_draw_label(draw, tracked, picture.size, plates))
    return picture


def _frame_xyxy(tracked: TrackedFace) -> _Rectangle:
    """Frame around the landmarks and the forehead: steadier from one frame to the next than the detector's box."""
    (x0, y0), (x1, y1) = tracked.face.landmarks_px.min(axis=0).tolist(), tracked.face.landmarks_px.max(axis=0).tolist()
    wide, tall = x1 - x0, y1 - y0
    return x0 - 0.08 * wide, y0 - 0.3 * tall, x1 + 0.08 * wide, y1 + 0.08 * tall


def _draw_landmarks(draw: ImageDraw.ImageDraw, tracked: TrackedFace, colour: tuple[int, int, int]) -> None:
    points = tracked.face.landmarks_px
    radius = max(float(np.ptp(points, axis=0).max()) / 100, 1.0)
    for name, group in LANDMARK_GROUPS.items():
        line = [(float(x), float(y)) for x, y in points[list(group)]]
        line += line[:1] if name in _CLOSED_GROUPS else []
        draw.line(line, fill=(*_DARK, 90), width=round(radius * 2) + 1, joint="curve")
        draw.line(line, fill=(*colour, 190), width=max(round(radius), 1), joint="curve")


def _draw_label(
    draw: ImageDraw.ImageDraw, tracked: TrackedFace, size_wh: tuple[int, int], taken: Sequence[_Rectangle]
) -> _Rectangle:
    """Write on a plate above the frame, or below it where another plate lies."""
    doubt = "" if tracked.face.status == "ok" else "?"
    text = f"#{tracked.track} {tracked.smooth_expression}{doubt} {tracked.smooth_confidence:.0%}"
    size = round(min(max(max(size_wh) / 42, 12), 48))
    font = ImageFont.load_default(size)
    width, height = font.getlength(text) + 0.6 * size, 1.6 * size
    x0, y0, _, y1 = _frame_xyxy(tracked)
    x = min(max(x0, 0), max(size_wh[0] - width, 0))
    places = [min(max(y, 0), max(size_wh[1] - height, 0)) for y in (y0 - height, y1, y0 - 2 * height)]
    plates = [(x, y, x + width, y + height) for y in places]
    free = (plate for plate in plates if not any(_overlap(plate, other) for other in taken))
    plate = next(free, plates[0])
    draw.rectangle(plate, fill=TRACK_COLOURS[tracked.track % len(TRACK_COLOURS)])
    draw.text((x + 0.3 * size, plate[1] + height / 2), text, fill=_DARK, font=font, anchor="lm")
    return plate


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
