"""A photo in, its faces out: detected, with landmarks, judged."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nkf.detectors import Detector, NkfDetector, WholeImage, make_detector
from nkf.errors import NkfError
from nkf.faces import Face, crop_from_points, find_in_crops, first_crop, first_look, quarter_turns_upright, second_look
from nkf.geometry import Matrix, Points
from nkf.images import ImageRGB, align, whole_box
from nkf.quality import (
    MIN_FACE_PROBABILITY,
    QualityLimits,
    face_probability,
    face_size,
    find_problems,
    relative_spread,
)
from nkf.runtime import Device, FoundLandmarks, load_fan
from nkf.weights import DEFAULT_FAN, WeightsInfo

# Least detection score of what is looked at; whether it is a face, its landmarks say too. What is missed so tells
# benchmarks/end_to_end.py, and how often a face is seen where none is benchmarks/detection.py.
CANDIDATE_SCORE = 0.02
SECOND_LOOK_GAIN = 2.5  # by which a second look makes the landmarks surer at most: turned faces gain most
MIN_DISTANCE = 0.4  # mean distance of the landmarks of two faces, in sizes of the one of the lower score


class FaceFinder:
    """Find the faces of a photo, largest first: ``FaceFinder()(image_rgb)``."""

    def __init__(
        self,
        detector: str | Detector = "auto",
        fan: str = DEFAULT_FAN,
        device: Device = "auto",
        *,
        limits: QualityLimits | None = None,
        min_face_px: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Load the networks.

        Args:
            detector: ``auto``, a name in `nkf.detectors.DETECTORS`, or any callable like `nkf.detectors.Detector`.
            fan: the face alignment network: a packaged NAME, a run folder, or a weights file.
            device: ``auto`` takes CUDA where it is available.
            limits: of `Face.problems`; None takes the defaults.
            min_face_px: see `nkf.detectors.NkfDetector`; for our own detector alone.
            threads: CPU threads of one call of a network; None takes all cores.

        Raises:
            NkfError: when a network or the detector cannot be loaded.
        """
        self._detector = _detector(detector, device, min_face_px, threads)
        self._fan = load_fan(fan, device, threads=threads)
        self._limits = limits or QualityLimits()

    @property
    def weights(self) -> tuple[WeightsInfo, ...]:
        """Sidecars of the networks: that of face alignment, and that of the detector where it is our own."""
        own = (self._detector.info,) if isinstance(self._detector, NkfDetector) else ()
        return (self._fan.info, *own)

    def __call__(self, image_rgb: ImageRGB) -> list[Face]:
        """Find faces in an upright (H, W, 3) uint8 image; each has landmarks, their spread, and its problems.

        What the detector takes for a face, but no landmarks fit on, is left out.

        Raises:
            NkfError: when a network gives values that are not finite.
        """
        return self.find([image_rgb])[0]

    def find(self, images_rgb: Sequence[ImageRGB]) -> list[list[Face]]:
        """Find the faces of several images, as in a call; their landmarks are looked for together."""
        result = []
        for image, faces in zip(images_rgb, self.candidates(images_rgb), strict=True):
            kept = [face for face in faces if self._is_face(face)]
            result.append([self._judged(image, face) for face in without_doubles(kept)])
        return result

    def candidates(self, images_rgb: Sequence[ImageRGB]) -> list[list[Face]]:
        """All that the detector takes for faces in each image, largest first, with landmarks, before it is judged."""
        found = [sorted(self._detector(image), key=lambda face: face.area, reverse=True) for image in images_rgb]
        pairs = [(image, face) for image, faces in zip(images_rgb, found, strict=True) for face in faces]
        marked = iter(self._with_landmarks(pairs))
        return [list(islice(marked, len(faces))) for faces in found]

    def _with_landmarks(self, pairs: Sequence[tuple[ImageRGB, Face]]) -> list[Face]:
        images, faces, size = [image for image, _ in pairs], [face for _, face in pairs], self._fan.info.input_size
        found = self._landmarks(images, faces, [_first_crop(face, size) for face in faces])
        # The five points may be wrong, about which way is up above all; the landmarks are surer in the right crop.
        unsure = [k for k, face in enumerate(faces) if face.points5_px is not None and self._is_unsure(face, found, k)]
        boxes = [first_crop(faces[k].box_xyxy, size) for k in unsure]
        level = self._landmarks([images[k] for k in unsure], [faces[k] for k in unsure], boxes)
        for n, k in enumerate(unsure):
            # Over the face's size: one crop may be far smaller than the other.
            if _spread(level, n) < _spread(found, k):
                found.points_px[k], found.spread_px[k] = level.points_px[n], level.spread_px[n]
        if not (np.isfinite(found.points_px).all() and np.isfinite(found.spread_px).all()):
            raise NkfError(f"model {self._fan.info.name!r} gives values that are not finite; its weights are broken")
        return [
            replace(face, landmarks_px=points, landmark_spread_px=spread)
            for face, points, spread in zip(faces, *found, strict=True)
        ]

    def _landmarks(self, images: Sequence[ImageRGB], faces: Sequence[Face], crops: Sequence[Matrix]) -> FoundLandmarks:
        """Look into each crop once, and again only where the first look may show a face: most boxes hold none."""
        size = self._fan.info.input_size
        found = first_look(self._fan, images, crops, size)
        likely = [k for k, face in enumerate(faces) if self._may_be_face(face, _spread(found, k) / SECOND_LOOK_GAIN)]
        part = FoundLandmarks(found.points_px[likely], found.spread_px[likely])
        again = second_look(self._fan, [images[k] for k in likely], [crops[k] for k in likely], part, size=size)
        found.points_px[likely], found.spread_px[likely] = again
        return found

    def _is_unsure(self, face: Face, found: FoundLandmarks, k: int) -> bool:
        turned = quarter_turns_upright(face.points5_px) != 0
        return turned or not self._may_be_face(face, _spread(found, k))

    def _is_face(self, face: Face) -> bool:
        assert face.landmarks_px is not None
        assert face.landmark_spread_px is not None
        return self._may_be_face(face, relative_spread(face.landmarks_px, face.landmark_spread_px))

    def _may_be_face(self, face: Face, spread: float) -> bool:
        if isinstance(self._detector, WholeImage):
            return True  # the user says so
        return face_probability(face.detection_score, spread) >= MIN_FACE_PROBABILITY

    def _judged(self, image_rgb: ImageRGB, face: Face) -> Face:
        assert face.landmarks_px is not None
        assert face.landmark_spread_px is not None
        crop, _ = align(image_rgb, face.landmarks_px, self._fan.info.input_size, face.box_xyxy)
        problems = find_problems(face.landmarks_px, face.landmark_spread_px, crop, self._limits)
        return replace(face, problems=problems)


def _spread(found: FoundLandmarks, k: int) -> float:
    return relative_spread(found.points_px[k], found.spread_px[k])


def _first_crop(face: Face, size: int) -> Matrix:
    """Where the landmarks are looked for first: around the five points, or in the box where there are none."""
    if face.points5_px is not None:
        try:
            return crop_from_points(face.points5_px, size)
        except ValueError:
            pass
    return first_crop(face.box_xyxy, size)


def without_doubles(faces: Sequence[Face]) -> list[Face]:
    """Leave out faces whose landmarks lie on those of one with a higher score: boxes around parts of a face do that."""
    kept: list[Face] = []
    taken: list[Points] = []
    for face in sorted(faces, key=lambda face: face.detection_score, reverse=True):
        assert face.landmarks_px is not None
        distances = [np.linalg.norm(face.landmarks_px - points, axis=1).mean() for points in taken]
        if all(distance > MIN_DISTANCE * face_size(face.landmarks_px) for distance in distances):
            kept.append(face)
            taken.append(face.landmarks_px)
    return sorted(kept, key=lambda face: face.area, reverse=True)


def _detector(detector: str | Detector, device: Device, min_face_px: int | None, threads: int | None) -> Detector:
    """Our own detector may be generous: what it finds is judged again by its landmarks."""
    if detector in ("auto", "nkf"):
        return NkfDetector(device, score_threshold=CANDIDATE_SCORE, min_face_px=min_face_px, threads=threads)
    if min_face_px is not None:
        raise NkfError("min_face_px: for our own detector alone (auto, nkf)")
    return make_detector(detector, device, threads=threads) if isinstance(detector, str) else detector


class LandmarkFinder:
    """Landmarks of one face in each of many images, for importing datasets."""

    def __init__(self, device: Device = "auto") -> None:
        """Load the face alignment network; the detector follows when it is needed.

        Args:
            device: ``auto`` takes CUDA where it is available.
        """
        self._device = device
        self._fan = load_fan(device=device)

    @cached_property
    def _finder(self) -> FaceFinder:
        return FaceFinder(device=self._device)

    def __call__(
        self, images: Sequence[ImageRGB], boxes_xyxy: Sequence[NDArray[np.floating] | None], shows: str
    ) -> list[Points | None]:
        """Return (68, 2) in pixels of each image, or None where no face is found.

        Args:
            images: upright, (H, W, 3) uint8 each.
            boxes_xyxy: where the face is, or None.
            shows: what an image without a box is: ``face``, or ``photo``, whose largest face counts.
        """
        given = [
            whole_box(image) if box is None and shows == "face" else box
            for image, box in zip(images, boxes_xyxy, strict=True)
        ]
        boxed = [k for k, box in enumerate(given) if box is not None]
        result: list[Points | None] = [None] * len(images)
        for k, points in zip(boxed, self._in_boxes([images[k] for k in boxed], [given[k] for k in boxed]), strict=True):
            result[k] = points
        for k in set(range(len(images))) - set(boxed):
            faces = self._finder(images[k])
            result[k] = faces[0].landmarks_px if faces else None
        return result

    def _in_boxes(self, images: Sequence[ImageRGB], boxes_xyxy: Sequence[ArrayLike | None]) -> list[Points | None]:
        if not images:
            return []
        size = self._fan.info.input_size
        matrices = [first_crop(box, size) for box in boxes_xyxy if box is not None]
        found = find_in_crops(self._fan, images, matrices, size=size)
        return [
            points if face_probability(1.0, relative_spread(points, spread)) >= MIN_FACE_PROBABILITY else None
            for points, spread in zip(*found, strict=True)
        ]
