"""Steady landmarks in a video: less jitter at rest, little lag in motion.

The filter is the One-Euro filter (Casiez, Roussel and Vogel, "1€ Filter", CHI 2012): a low-pass whose cut-off rises
with speed. Here it does not see the points one by one. A face in motion moves all its points together, and the eight
numbers of that motion, fitted to 68 points, are far less noisy than a point: they are smoothed lightly, and what is
left, the shape, strongly. Figures and what else was tried: docs/smoothing.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nkf.faces import Face
from nkf.geometry import NUM_LANDMARKS, Points
from nkf.images import ImageRGB
from nkf.pose import MEAN_SHAPE_3D
from nkf.tracking import nearest_pairs

Array = NDArray[np.float64]

USUAL_SPREAD = 0.04  # of a good face's landmarks, in face sizes; from there on they are smoothed more
MIN_TRUST = 0.2  # by which the cut-off of a very uncertain landmark is multiplied
SPREAD_CUTOFF_HZ = 3.0  # slower than the landmarks: the fit must not jump where one becomes uncertain for a frame

MAX_JUMP, MAX_GAP_S = 0.8, 0.5  # face sizes and seconds between two frames, after which a face counts as a new one

# (68, 4). `_FACE @ motion` with a (4, 2) motion is the mean face turned in space, scaled and moved: pixels.
_FACE = np.column_stack([MEAN_SHAPE_3D, np.ones(NUM_LANDMARKS)])
_MIN_SIZE_PX = 1e-6


@dataclass(frozen=True, slots=True)
class OneEuroSettings:
    """Strength of a One-Euro filter; the face's size is the distance of its outer eye corners, seen from the front.

    Attributes:
        min_cutoff_hz: cut-off at rest: lower is steadier.
        cutoff_per_speed: Hz for each face size a second: higher lags less.
        speed_cutoff_hz: of the estimate of the speed: higher sees a motion earlier, and more noise.
    """

    min_cutoff_hz: float
    cutoff_per_speed: float
    speed_cutoff_hz: float

    def __post_init__(self) -> None:
        for name in ("min_cutoff_hz", "speed_cutoff_hz"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if not 0 <= self.cutoff_per_speed < math.inf:
            raise ValueError(f"cutoff_per_speed is {self.cutoff_per_speed}; expected 0 or more")


MOTION = OneEuroSettings(min_cutoff_hz=0.5, cutoff_per_speed=20.0, speed_cutoff_hz=2.0)
SHAPE = OneEuroSettings(min_cutoff_hz=0.3, cutoff_per_speed=8.0, speed_cutoff_hz=2.0)


class LandmarkSmoother:
    """Smooth the landmarks of one face, frame after frame: ``smoother(landmarks_px, time_s)``."""

    def __init__(
        self,
        motion: OneEuroSettings = MOTION,
        shape: OneEuroSettings = SHAPE,
        *,
        max_jump: float = MAX_JUMP,
        max_gap_s: float = MAX_GAP_S,
    ) -> None:
        """Start without a face.

        Args:
            motion: filter of the motion of the whole face.
            shape: filter of each landmark within the face.
            max_jump: mean way of the landmarks from one frame to the next, in face sizes; after more it starts anew.
            max_gap_s: time between two frames; after more it starts anew.
        """
        self._motion_settings, self._shape_settings = motion, shape
        self._max_jump, self._max_gap_s = max_jump, max_gap_s
        self._state: _State | None = None

    def __call__(self, landmarks_px: ArrayLike, time_s: float, *, spread_px: ArrayLike | None = None) -> Array:
        """Take a frame's landmarks and return the smoothed ones, (68, 2).

        Args:
            landmarks_px: (68, 2) pixels, in any range.
            time_s: when the frame was taken, in seconds from any start; frames may come at any rate.
            spread_px: (68,) expected distance of each landmark to the truth; uncertain ones are smoothed more, and
                count less in the motion of the face.

        Raises:
            ValueError: when the time does not increase, or an array has another shape or is not finite.
        """
        points = _checked("landmarks_px", landmarks_px, (NUM_LANDMARKS, 2))
        spread = None if spread_px is None else _checked("spread_px", spread_px, (NUM_LANDMARKS,))
        last = self._state
        seconds = _seconds_since(None if last is None else last.time_s, time_s)
        if last is None or seconds > self._max_gap_s or self.distance(points) > self._max_jump:
            last, seconds = None, math.inf
        size = float(np.hypot(*np.linalg.norm(_fit(points, None)[:3], axis=0)) / math.sqrt(2))
        if size < _MIN_SIZE_PX:  # all points in one place: nothing that could be smoothed
            self._state = None
            return points
        relative = np.full(NUM_LANDMARKS, USUAL_SPREAD) if spread is None else np.clip(spread / size, 0.005, 1)
        if last is not None:
            relative = last.relative_spread + _gain(SPREAD_CUTOFF_HZ, seconds) * (relative - last.relative_spread)

        motion = _fit(points, relative**-2)
        shape = _divide(points - _FACE @ motion, _direction(motion) * size)
        if last is None:
            motion_filter = _OneEuro(self._motion_settings, motion)
            shape_filter = _OneEuro(self._shape_settings, shape)
            result = points.copy()
        else:
            motion_filter, shape_filter = last.motion, last.shape
            trust = np.clip(USUAL_SPREAD / relative, MIN_TRUST, 1)[:, None]
            motion = motion_filter(motion, seconds, lambda velocity: _rms(_FACE @ velocity) / size)
            shape = shape_filter(
                shape, seconds, lambda velocity: np.linalg.norm(velocity, axis=1, keepdims=True), trust=trust
            )
            result = _FACE @ motion + _multiply(shape, _direction(motion) * size)
        self._state = _State(time_s, size, points, relative, motion_filter, shape_filter)
        return result

    def distance(self, landmarks_px: ArrayLike) -> float:
        """Mean distance of (68, 2) landmarks to those of the last frame, in face sizes; infinite before the first."""
        if self._state is None:
            return math.inf
        way = np.linalg.norm(np.asarray(landmarks_px, np.float64) - self._state.points_px, axis=1)
        return float(way.mean() / self._state.size_px)


Finder = Callable[[ImageRGB], Sequence[Face]]  # such as `nkf.finder.FaceFinder`


class SmoothedFinder:
    """Find faces in the frames of a video as another finder does, with smoothed landmarks.

    ``SmoothedFinder(FaceFinder())(image_rgb, time_s)``. The frames may come at any rate. Boxes and all else of a face
    stay as they were found; a face without landmarks is passed on.
    """

    def __init__(
        self,
        finder: Finder,
        *,
        motion: OneEuroSettings = MOTION,
        shape: OneEuroSettings = SHAPE,
        max_jump: float = MAX_JUMP,
        max_gap_s: float = MAX_GAP_S,
    ) -> None:
        """Wrap a finder.

        Args:
            finder: upright (H, W, 3) uint8 image to faces.
            motion: see `LandmarkSmoother`, as for the others.
            shape: also there.
            max_jump: a face further than this from all faces of the last frames is a new one.
            max_gap_s: for how long a face that is not found is remembered.
        """
        self._finder = finder
        self._motion, self._shape = motion, shape
        self._max_jump, self._max_gap_s = max_jump, max_gap_s
        self._known: list[tuple[float, LandmarkSmoother]] = []  # when last seen
        self._time_s: float | None = None

    def __call__(self, image_rgb: ImageRGB, time_s: float) -> list[Face]:
        """Find the faces of a frame that was taken at `time_s`, in the order in which the finder gives them.

        Raises:
            ValueError: when the time does not increase.
        """
        _seconds_since(self._time_s, time_s)
        faces = list(self._finder(image_rgb))
        self._time_s = time_s
        waiting = [(seen, smoother) for seen, smoother in self._known if time_s - seen <= self._max_gap_s]
        found = [k for k, face in enumerate(faces) if face.landmarks_px is not None]
        matches = self._match([smoother for _, smoother in waiting], faces, found)
        used = {id(smoother) for smoother in matches.values()}
        self._known = [(seen, smoother) for seen, smoother in waiting if id(smoother) not in used]
        for k in found:
            smoother = matches.get(k) or LandmarkSmoother(
                self._motion, self._shape, max_jump=self._max_jump, max_gap_s=self._max_gap_s
            )
            landmarks_px, spread_px = faces[k].landmarks_px, faces[k].landmark_spread_px
            assert landmarks_px is not None
            faces[k] = replace(faces[k], landmarks_px=smoother(landmarks_px, time_s, spread_px=spread_px))
            self._known.append((time_s, smoother))
        return faces

    def _match(
        self, smoothers: Sequence[LandmarkSmoother], faces: Sequence[Face], found: Sequence[int]
    ) -> dict[int, LandmarkSmoother]:
        """Give faces their smoothers, the nearest pair first."""
        distances = np.full((len(smoothers), len(found)), math.inf)
        for column, k in enumerate(found):
            landmarks_px = faces[k].landmarks_px
            assert landmarks_px is not None
            distances[:, column] = [smoother.distance(landmarks_px) for smoother in smoothers]
        pairs = nearest_pairs(distances, self._max_jump)
        return {found[column]: smoothers[row] for column, row in pairs.items()}


class _OneEuro:
    """A One-Euro filter of an array; how its velocity becomes a speed is told at each call."""

    def __init__(self, settings: OneEuroSettings, value: Array) -> None:
        self._settings = settings
        self._raw = self._smooth = value
        self._velocity = np.zeros_like(value)

    def __call__(
        self, value: Array, seconds: float, speed: Callable[[Array], float | Array], *, trust: float | Array = 1.0
    ) -> Array:
        settings = self._settings
        velocity = (value - self._raw) / seconds
        self._raw = value
        self._velocity = self._velocity + _gain(settings.speed_cutoff_hz, seconds) * (velocity - self._velocity)
        cutoff_hz = settings.min_cutoff_hz + settings.cutoff_per_speed * speed(self._velocity)
        self._smooth = self._smooth + _gain(cutoff_hz * trust, seconds) * (value - self._smooth)
        return self._smooth


@dataclass(frozen=True, slots=True)
class _State:
    time_s: float
    size_px: float
    points_px: Array  # as they were found
    relative_spread: Array
    motion: _OneEuro
    shape: _OneEuro


def _gain(cutoff_hz: float | Array, seconds: float) -> float | Array:
    """How far a low-pass goes to its input in a time; exact for an input that waits, so that frame rates agree."""
    return -np.expm1(-2 * math.pi * cutoff_hz * seconds)


def _fit(points: Points, weights: Array | None) -> Array:
    """Fit (4, 2) so that ``_FACE @ it`` is nearest to (68, 2) points."""
    weighted = _FACE if weights is None else _FACE * weights[:, None]
    return np.linalg.solve(weighted.T @ _FACE, weighted.T @ points)


def _direction(motion: Array) -> complex:
    """Rotation of a fitted face in the image, as a complex number of length 1."""
    turn = complex(motion[0, 0] + motion[1, 1], motion[0, 1] - motion[1, 0])
    return turn / abs(turn) if turn else 1 + 0j


def _multiply(points: Array, factor: complex) -> Array:
    """Turn and scale (N, 2) vectors."""
    product = (points[:, 0] + 1j * points[:, 1]) * factor
    return np.column_stack([product.real, product.imag])


def _divide(points: Array, factor: complex) -> Array:
    return _multiply(points, 1 / factor)


def _rms(vectors: Array) -> float:
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))


def _seconds_since(last_s: float | None, time_s: float) -> float:
    if not math.isfinite(time_s) or (last_s is not None and time_s <= last_s):
        raise ValueError(f"time_s is {time_s} after {last_s}; expected a later time than that of the last frame")
    return math.inf if last_s is None else time_s - last_s


def _checked(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    array = np.array(value, np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"{name} has shape {array.shape} or is not finite; expected {shape}, finite")
    return array
