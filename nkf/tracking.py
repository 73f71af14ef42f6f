"""Which face of a frame is which of the frames before, and what it shows on average over a short time.

Both take the time of a frame in seconds, so that they do the same at any frame rate, and a steady one is not needed.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nkf.geometry import NUM_LANDMARKS, Points
from nkf.quality import face_size

Array = NDArray[np.float64]

MAX_DISTANCE = 0.6  # between a face and where its track expects it, in face sizes
MAX_SPEED = 3.0  # face sizes a second, by which a face may have moved besides since the frame before
MOST_DISTANCE = 1.6  # however long ago that frame is
MAX_GAP_S = 1.0  # for which a face that is not found keeps its track
SMOOTH_SECONDS = 0.5
LOW_QUALITY_WEIGHT = 0.1  # of a face of low quality in the smoothed probabilities; others have 1

_VELOCITY_SECONDS = 0.1  # time constant of the estimate of a track's velocity
_COASTING_SECONDS = 0.5  # for which about a face that is lost from sight is thought to move on
_FIRST_SECONDS = 1 / 30  # that the first frame of a track stands for, as none was before it
_MIN_SIZE_PX = 1e-6


def nearest_pairs(distances: ArrayLike, max_distance: float) -> dict[int, int]:
    """Pair rows and columns one to one, the nearest pair first.

    Args:
        distances: (R, C), finite or infinite.
        max_distance: of a pair.

    Returns:
        Column to row; both may be missing.
    """
    table = np.asarray(distances, np.float64)
    pairs: dict[int, int] = {}
    for flat in np.argsort(table, axis=None, kind="stable"):
        row, column = divmod(int(flat), table.shape[1])
        if not table[row, column] <= max_distance:
            break
        if column not in pairs and row not in pairs.values():
            pairs[column] = row
    return pairs


class FaceTracker:
    """Give each face of a video a number that it keeps: ``tracker(landmarks_of_faces, time_s)``.

    A face belongs to the track that expects it nearest, by the mean distance of the landmarks; a track expects its face
    to move on as it did. Numbers count from 0 and are never given again: a face that was away for long is a new one.
    """

    def __init__(self, *, max_distance: float = MAX_DISTANCE, max_gap_s: float = MAX_GAP_S) -> None:
        """Start without tracks.

        Args:
            max_distance: between a face and where its track expects it, in face sizes (longer side of the landmarks);
                by `MAX_SPEED` more, up to `MOST_DISTANCE`, where the last frame is long ago.
            max_gap_s: for which a face that is not found keeps its track; one that was in the last frame may be in this
                one, however much time lies between them.
        """
        self._max_distance, self._max_gap_s = max_distance, max_gap_s
        self._tracks: list[_Track] = []
        self._last_s = -math.inf
        self._next_number = 0

    def __call__(self, landmarks_px: Sequence[Points], time_s: float) -> list[int]:
        """Return the track numbers of a frame's faces, in their order.

        Args:
            landmarks_px: (68, 2) pixels each.
            time_s: when the frame was taken; a time that does not increase counts as no time gone by.

        Raises:
            ValueError: when landmarks have another shape or are not finite.
        """
        faces = [_checked(points) for points in landmarks_px]
        remembered_s = min(time_s - self._max_gap_s, self._last_s)
        tracks = [track for track in self._tracks if track.time_s >= remembered_s]
        distances = np.array([[track.distance(points, time_s) for points in faces] for track in tracks])
        further = MAX_SPEED * max(time_s - self._last_s, 0.0)  # where frames are left out, faces move further
        reach = max(self._max_distance, min(self._max_distance + further, MOST_DISTANCE))
        pairs = nearest_pairs(distances.reshape(len(tracks), len(faces)), reach)
        numbers = []
        for k, points in enumerate(faces):
            if k in pairs:
                track = tracks[pairs[k]]
                track.move(points, time_s)
            else:
                track = _Track(self._next_number, points, time_s)
                self._next_number += 1
                tracks.append(track)
            numbers.append(track.number)
        self._tracks, self._last_s = tracks, time_s
        return numbers

    @property
    def alive(self) -> frozenset[int]:
        """Tracks that a face of the next frame could still belong to."""
        return frozenset(track.number for track in self._tracks)


class _Track:
    def __init__(self, number: int, points: Array, time_s: float) -> None:
        self.number, self.time_s = number, time_s
        self._points = points
        self._velocity = np.zeros(2)  # pixels a second

    def distance(self, points: Array, time_s: float) -> float:
        """Mean distance of (68, 2) landmarks to where they are expected, in sizes of this face."""
        seconds = max(time_s - self.time_s, 0.0)
        expected = self._points + self._velocity * (_COASTING_SECONDS * -math.expm1(-seconds / _COASTING_SECONDS))
        size = max(face_size(self._points), _MIN_SIZE_PX)
        return float(np.linalg.norm(points - expected, axis=1).mean() / size)

    def move(self, points: Array, time_s: float) -> None:
        seconds = time_s - self.time_s
        if seconds > 0:
            velocity = (points - self._points).mean(axis=0) / seconds
            self._velocity += -math.expm1(-seconds / _VELOCITY_SECONDS) * (velocity - self._velocity)
        self._points, self.time_s = points, time_s


class ProbabilitySmoother:
    """Average the probabilities of one track over a short time: ``smoother(probabilities, time_s)``.

    The smoothed probabilities at frame n are the weighted mean of those up to there,

        s(n) = sum_i w(i) g(i) exp(-(t(n) - t(i)) / T) p(i)  /  sum_i w(i) g(i) exp(-(t(n) - t(i)) / T),
        g(i) = 1 - exp(-(t(i) - t(i-1)) / T),

    with T the time constant: a frame counts by the time that it stands for (the first: 1/30 s), so the frame rate does
    not matter, and less the older it is. They sum to 1. w is the weight that the caller gives a frame.
    """

    def __init__(self, smooth_seconds: float = SMOOTH_SECONDS) -> None:
        """Start without a frame.

        Args:
            smooth_seconds: time constant T; 0 does not smooth at all.
        """
        self._seconds = smooth_seconds
        self._sum: Array | float = 0.0
        self._weight = 0.0
        self._time_s: float | None = None

    def __call__(self, probabilities: ArrayLike, time_s: float, *, weight: float = 1.0) -> Array:
        """Take a frame's (C,) probabilities and return the smoothed ones.

        Args:
            probabilities: they sum to 1.
            time_s: when the frame was taken; a time that does not increase counts as no time gone by.
            weight: more than 0; how much the frame counts beside others.
        """
        seconds = _FIRST_SECONDS if self._time_s is None else max(time_s - self._time_s, 0.0)
        self._time_s = time_s
        exponent = -seconds / self._seconds if self._seconds > 0 else -math.inf
        kept, gain = math.exp(exponent), -math.expm1(exponent) * weight
        self._sum = kept * self._sum + gain * np.asarray(probabilities, np.float64)
        self._weight = kept * self._weight + gain
        return self._sum / self._weight


def _checked(points: ArrayLike) -> Array:
    array = np.array(points, np.float64)
    if array.shape != (NUM_LANDMARKS, 2) or not np.isfinite(array).all():
        raise ValueError(f"landmarks have shape {array.shape} or are not finite; expected ({NUM_LANDMARKS}, 2), finite")
    return array
