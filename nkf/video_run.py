"""The command ``nkf video``: outputs checked first, then frame after frame, in memory that does not grow."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TextIO

from nkf.errors import ImageError, NkfError
from nkf.files import real_path, replacing
from nkf.output import JsonLinesWriter, Writer, check_files, check_place, stream_or_file
from nkf.predict import Predictor
from nkf.progress import track
from nkf.report import require_matplotlib
from nkf.runtime import Device
from nkf.timeline import Timeline, draw_timeline
from nkf.timeline_html import write_timeline_html
from nkf.tracking import MAX_GAP_S
from nkf.video import FrameSelection, Video, VideoFrame
from nkf.video_output import FrameCsvWriter, FrameJsonWriter, FrameParquetWriter, OverlayWriter
from nkf.video_predict import FramePrediction, TrackedFace, VideoPredictor
from nkf.video_sources import VideoInfo

_TIMELINES: dict[str, Callable[[Timeline, Path], None]] = {
    ".png": draw_timeline,
    ".html": write_timeline_html,
    ".htm": write_timeline_html,
}


@dataclass(frozen=True)
class VideoOutputs:
    """Where results go; the path ``-`` is standard output."""

    json: Path | None = None
    jsonl: Path | None = None
    csv: Path | None = None
    parquet: Path | None = None
    annotate: Path | None = None
    timeline: Path | None = None

    @property
    def all(self) -> dict[str, Path]:
        """Those that were asked for, by option."""
        every = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {option: path for option, path in every if path is not None}

    def check(self, clip: Path) -> None:
        """Raise `NkfError` where one is not what its option writes, or would overwrite another file of the run."""
        if self.timeline and self.timeline.suffix.lower() not in _TIMELINES:
            raise NkfError(f"{self.timeline}: expected a name that ends in {' or '.join(sorted(_TIMELINES))}")
        if self.timeline and self.timeline.suffix.lower() == ".png":
            require_matplotlib()
        if self.annotate:
            OverlayWriter(self.annotate)  # looks at the ending
        check_files(self.all, sources=[clip])


@dataclass(frozen=True)
class VideoSettings:
    """What decides the answers."""

    model: str
    detector: str
    device: Device
    min_confidence: float | None
    smooth_seconds: float
    selection: FrameSelection


def predict_video(clip: Path, outputs: VideoOutputs, settings: VideoSettings) -> int:
    """Predict a video and write the outputs; returns the exit code (see `nkf.cli_video.video`)."""
    if not clip.is_file():
        raise NkfError(f"{clip}: {'a folder, expected a video file' if clip.is_dir() else 'no such file'}")
    outputs.check(clip)
    predictor = Predictor(
        settings.model, detector=settings.detector, device=settings.device, min_confidence=settings.min_confidence
    )
    for path in outputs.all.values():
        check_place(path)
    try:
        with Video(clip) as video:
            return _Run(clip, outputs, settings, predictor).go(video)
    except ImageError as error:
        return _Run(clip, outputs, settings, predictor).fail(error)


@dataclass
class _Run:
    clip: Path
    outputs: VideoOutputs
    settings: VideoSettings
    predictor: Predictor

    def go(self, video: Video) -> int:
        selection = self.settings.selection
        frames = track(video.frames(selection), "predicting", _expected_frames(video.info, selection))
        predictor = VideoPredictor(self.predictor, smooth_seconds=self.settings.smooth_seconds)
        timeline = Timeline(str(self.clip), self.predictor.classes)
        spans = SpanLines(sys.stdout) if not self.outputs.all else None
        problem = None
        with ExitStack() as stack:
            writers = [stack.enter_context(writer) for writer in self._writers(video.info)]
            overlay = None
            if self.outputs.annotate:
                start_s = selection.start_s if math.isfinite(selection.start_s) else 0.0
                overlay = stack.enter_context(OverlayWriter(self.outputs.annotate, start_s=start_s))
            frame: VideoFrame | None = None
            try:
                for frame, prediction in predictor.predict(frames, str(self.clip)):
                    document = prediction.to_dict() if writers else {}
                    for writer in writers:
                        writer.write(document)
                    timeline.add(prediction)
                    if overlay:
                        overlay.write(frame.image_rgb, prediction)
                    if spans:
                        spans.add(prediction)
                if frame is None:
                    raise ImageError(f"{self.clip}: no frame {selection}; {_length(video.info)}")
            except ImageError as error:
                problem = error
                self._write_error(writers, error)
            if spans:
                spans.end()
            if frame is not None:
                self._draw(timeline)
        if problem is not None:
            print("nkf:", _one_line(problem), file=sys.stderr)
        return int(problem is not None)

    def fail(self, error: ImageError) -> int:
        """Write what there is to write of a video that could not be opened."""
        with ExitStack() as stack:
            self._write_error([stack.enter_context(writer) for writer in self._writers(None)], error)
        print("nkf:", _one_line(error), file=sys.stderr)
        return 1

    def _writers(self, info: VideoInfo | None) -> Iterator[Writer]:
        outputs, classes = self.outputs, self.predictor.classes
        if outputs.json:
            settings = {
                "model": self.predictor.info.name,
                "classes": list(classes),
                "smooth_seconds": self.settings.smooth_seconds,
                "stride": self.settings.selection.stride,
            }
            yield FrameJsonWriter(stream_or_file(outputs.json), info, settings)
        if outputs.jsonl:
            yield JsonLinesWriter(stream_or_file(outputs.jsonl))
        if outputs.csv:
            yield FrameCsvWriter(stream_or_file(outputs.csv), classes)
        if outputs.parquet:
            yield FrameParquetWriter(outputs.parquet, classes)

    def _write_error(self, writers: list[Writer], error: ImageError) -> None:
        document = FramePrediction(str(self.clip), None, None, "error", _one_line(error)).to_dict()
        for writer in writers:
            writer.write(document)

    def _draw(self, timeline: Timeline) -> None:
        file = self.outputs.timeline
        if file is not None:
            with replacing(real_path(file)) as partial:
                _TIMELINES[file.suffix.lower()](timeline, partial)


class SpanLines:
    """Prints a line for each time that a track shows one expression, when it has ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._spans: dict[int, _Span] = {}
        self._frames = self._faces = 0

    def add(self, prediction: FramePrediction) -> None:
        """Take a frame; prints what has ended with it."""
        assert prediction.time_s is not None
        self._frames += 1
        for face in prediction.faces:
            self._faces += 1
            span = self._spans.get(face.track)
            if span is not None and span.expression != face.smooth_expression:
                span.end_s = prediction.time_s  # without a gap to the next one
                self._print(self._spans.pop(face.track))
            self._spans.setdefault(face.track, _Span(face, prediction.time_s)).add(face, prediction.time_s)
        for number in [k for k, span in self._spans.items() if prediction.time_s - span.end_s > MAX_GAP_S]:
            self._print(self._spans.pop(number))

    def end(self) -> None:
        """Print what is still going on."""
        for number in sorted(self._spans):
            self._print(self._spans.pop(number))
        if self._frames and not self._faces:
            print(f"no face in {self._frames:,} frames", file=self._stream)

    def _print(self, span: "_Span") -> None:
        doubt = "" if 2 * span.trusted > span.frames else ", uncertain"
        print(
            f"{span.start_s:.2f}-{span.end_s:.2f} s track {span.track}: {span.expression} "
            f"{span.confidence / span.frames:.0%}{doubt}",
            file=self._stream,
        )


class _Span:
    def __init__(self, face: TrackedFace, time_s: float) -> None:
        self.track, self.expression = face.track, face.smooth_expression
        self.start_s = self.end_s = time_s
        self.frames = self.trusted = 0
        self.confidence = 0.0

    def add(self, face: TrackedFace, time_s: float) -> None:
        self.end_s = time_s
        self.frames += 1
        self.trusted += face.face.status == "ok"
        self.confidence += face.smooth_confidence


def _expected_frames(info: VideoInfo, selection: FrameSelection) -> int:
    """About how many frames will be taken; 0 if the file does not tell."""
    if info.duration_s is None or info.fps is None:
        return 0
    seconds = min(selection.end_s, info.duration_s) - max(selection.start_s, 0.0)
    return max(math.ceil(seconds * info.fps / selection.stride), 0)


def _length(info: VideoInfo) -> str:
    return "its length is not known" if info.duration_s is None else f"it is {info.duration_s:.2f} s long"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
