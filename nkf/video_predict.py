"""The frames of a video in, their faces out: each with its track, its expression, and the smoothed one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nkf.errors import ImageError, NkfError
from nkf.predict import BATCH_PIXELS, FacePrediction, Prediction, Predictor, Status
from nkf.tracking import LOW_QUALITY_WEIGHT, SMOOTH_SECONDS, FaceTracker, ProbabilitySmoother
from nkf.video import VideoFrame

BATCH_FRAMES = 8  # whose faces go through the networks together


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFace:
    """A face of a frame, as it was found there, with the number of its track and its smoothed probabilities.

    `smooth_probabilities` sum to 1 over the model's classes, in its order (see `nkf.tracking.ProbabilitySmoother`).
    """

    track: int
    face: FacePrediction
    smooth_probabilities: dict[str, float]

    @property
    def smooth_expression(self) -> str:
        """The most probable one of `smooth_probabilities`."""
        return max(self.smooth_probabilities, key=self.smooth_probabilities.__getitem__)

    @property
    def smooth_confidence(self) -> float:
        """Smoothed probability of `smooth_expression`."""
        return self.smooth_probabilities[self.smooth_expression]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values: those of `FacePrediction.to_dict`, and the track's."""
        smooth = {name: round(value, 6) for name, value in self.smooth_probabilities.items()}
        return {
            "track": self.track,
            **self.face.to_dict(),
            "smooth_expression": self.smooth_expression,
            "smooth_probabilities": smooth,
        }


@dataclass(frozen=True, slots=True, eq=False)
class FramePrediction:
    """What was found in one frame: no face, one or many, largest first; or that the video could not be read on.

    `frame` and `time_s` are those of the `nkf.video.VideoFrame`, and None with status ``error``; then `message` says
    why. `status` is as in `nkf.predict.Prediction`.
    """

    path: str
    frame: int | None
    time_s: float | None
    status: Status
    message: str | None = None
    faces: tuple[TrackedFace, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: plain Python values, times to a microsecond, ``message`` only when there is one."""
        time_s = None if self.time_s is None else round(self.time_s, 6)
        message = {} if self.message is None else {"message": self.message}
        head = {"path": self.path, "frame": self.frame, "time_s": time_s, "status": self.status}
        return {**head, **message, "faces": [face.to_dict() for face in self.faces]}


class VideoPredictor:
    """Predict the frames of one video: ``VideoPredictor(Predictor()).predict(video.frames(), "clip.mp4")``."""

    def __init__(self, predictor: Predictor, *, smooth_seconds: float = SMOOTH_SECONDS) -> None:
        """Start without faces.

        Args:
            predictor: tells the expressions in a frame.
            smooth_seconds: time constant of the smoothed probabilities; 0 leaves them as they are.

        Raises:
            NkfError: when `smooth_seconds` is negative or not finite.
        """
        if not 0 <= smooth_seconds < float("inf"):
            raise NkfError(f"smooth_seconds {smooth_seconds}: expected 0 or more seconds")
        self._predictor, self._smooth_seconds = predictor, smooth_seconds
        self._tracker = FaceTracker()
        self._smoothers: dict[int, ProbabilitySmoother] = {}

    def predict(
        self, frames: Iterable[VideoFrame], path: str, *, batch: int = BATCH_FRAMES
    ) -> Iterator[tuple[VideoFrame, FramePrediction]]:
        """Yield each frame with its prediction, in their order; not more than a batch is held in memory.

        Args:
            frames: in the order of their times.
            path: what `FramePrediction.path` shall be.
            batch: frames whose faces go through the networks together; large frames are fewer.

        Raises:
            ImageError: as `frames` does, after the frames before.
        """
        problem: ImageError | None = None
        waiting: list[VideoFrame] = []
        iterator = iter(frames)
        while True:
            try:
                waiting.append(next(iterator))
            except StopIteration:
                break
            except ImageError as error:
                problem = error
                break
            if len(waiting) >= batch or sum(frame.image_rgb.size // 3 for frame in waiting) >= BATCH_PIXELS:
                yield from self._predict_batch(waiting, path)
                waiting = []
        if waiting:
            yield from self._predict_batch(waiting, path)
        if problem is not None:
            raise problem

    def _predict_batch(self, frames: list[VideoFrame], path: str) -> Iterator[tuple[VideoFrame, FramePrediction]]:
        predictions = self._predictor.predict_batch([frame.image_rgb for frame in frames], [path] * len(frames))
        for frame, prediction in zip(frames, predictions, strict=True):
            faces = self._track(prediction, frame.time_s)
            yield frame, FramePrediction(path, frame.number, frame.time_s, prediction.status, faces=faces)

    def _track(self, prediction: Prediction, time_s: float) -> tuple[TrackedFace, ...]:
        numbers = self._tracker([face.landmarks_px for face in prediction.faces], time_s)
        alive = self._tracker.alive
        self._smoothers = {track: smoother for track, smoother in self._smoothers.items() if track in alive}
        tracked = []
        for track, face in zip(numbers, prediction.faces, strict=True):
            smoother = self._smoothers.setdefault(track, ProbabilitySmoother(self._smooth_seconds))
            weight = LOW_QUALITY_WEIGHT if face.status == "low_quality" else 1.0
            values = np.array(list(face.probabilities.values()))
            smooth = smoother(values, time_s, weight=weight).tolist()
            tracked.append(TrackedFace(track, face, dict(zip(face.probabilities, smooth, strict=True))))
        return tuple(tracked)
