"""A photo in, the expressions of its faces out; many photos in batches, several at once."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.detectors import Detector
from nkf.errors import ImageError, NkfError
from nkf.explain import Explanation, explain_face
from nkf.faces import Face, to_batch
from nkf.finder import FaceFinder
from nkf.geometry import NUM_LANDMARKS, Points
from nkf.images import ImageRGB, align, decode_image, read_image, to_rgb, upright
from nkf.quality import Problem
from nkf.runtime import Device, load_expression_model
from nkf.weights import DEFAULT_FAN, DEFAULT_MODEL, WeightsInfo

FaceStatus = Literal["ok", "uncertain", "low_quality"]
Status = Literal["ok", "uncertain", "low_quality", "no_face", "error"]
ImageInput = ImageRGB | Image.Image | bytes | str | Path

BATCH_FILES = 8  # whose faces go through the networks together
BATCH_PIXELS = 24_000_000  # of decoded images in one batch, which bounds the memory that large photos take


@dataclass(frozen=True, slots=True, eq=False)
class FacePrediction:
    """One face with its expression; coordinates are pixels of the upright image.

    `box_xyxy` is (4,), `detection_score` in [0, 1], `landmarks_px` (68, 2), and `landmark_spread_px` (68,) their
    expected distances to the truth; `probabilities` sum to 1 over the model's classes, in its order, and `expression`
    is the most probable of them; `problems` tell why a face is of low quality (see `nkf.quality`). An expression with
    less than `min_confidence`, in [0, 1], is ``uncertain``. `explanation` is there when it was asked for, see
    `Predictor.explain`.
    """

    box_xyxy: NDArray[np.float64]
    detection_score: float
    landmarks_px: NDArray[np.float64]
    landmark_spread_px: NDArray[np.float64]
    expression: str
    probabilities: dict[str, float]
    problems: tuple[Problem, ...] = ()
    min_confidence: float = 0.0
    explanation: Explanation | None = None

    def __post_init__(self) -> None:
        shapes = {"box_xyxy": (4,), "landmarks_px": (NUM_LANDMARKS, 2), "landmark_spread_px": (NUM_LANDMARKS,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"{name} has shape {value.shape} or is not finite; expected {shape}, finite")
        if self.expression not in self.probabilities:
            raise ValueError(f"expression {self.expression!r} is none of {', '.join(self.probabilities)}")

    @property
    def status(self) -> FaceStatus:
        """Whether the expression can be trusted: not that of a face with `problems`, nor an improbable one."""
        if self.problems:
            return "low_quality"
        return "uncertain" if self.confidence < self.min_confidence else "ok"

    @property
    def confidence(self) -> float:
        """Probability of `expression`."""
        return self.probabilities[self.expression]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: coordinates to 0.01 px, probabilities to 1e-6; ``explanation`` only when there is one."""
        explanation = {} if self.explanation is None else {"explanation": self.explanation.to_dict()}
        return {
            "box_xyxy": _rounded(self.box_xyxy, 2),
            "detection_score": round(self.detection_score, 4),
            "landmarks_px": _rounded(self.landmarks_px, 2),
            "landmark_spread_px": _rounded(self.landmark_spread_px, 2),
            "expression": self.expression,
            "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
            "status": self.status,
            "problems": list(self.problems),
            **explanation,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What was found in one image: no face, one or many, largest first; or why it could not be read.

    `path` is None for an image that came as an array, `width` and `height` (pixels of the upright image) are None for
    one that could not be read; then `message` says why. `status` is that of the best face: ``ok`` before
    ``uncertain`` before ``low_quality``.
    """

    path: str | None
    width: int | None
    height: int | None
    status: Status
    message: str | None = None
    faces: tuple[FacePrediction, ...] = ()

    def __post_init__(self) -> None:
        expected = (best_status(self.faces),) if self.faces else ("no_face", "error")
        if self.status not in expected:
            found = ", ".join(face.status for face in self.faces) or "no face"
            raise ValueError(f"status {self.status!r} with {found}; expected {' or '.join(expected)}")
        if (self.status == "error") != (self.message is not None):
            raise ValueError(f"status {self.status!r} with message {self.message!r}; an error, and only that, has one")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: plain Python values, ``message`` only when there is one."""
        message = {} if self.message is None else {"message": self.message}
        faces = [face.to_dict() for face in self.faces]
        head = {"path": self.path, "width": self.width, "height": self.height, "status": self.status}
        return {**head, **message, "faces": faces}


def best_status(faces: Iterable[FacePrediction]) -> FaceStatus:
    """The status of an image with these faces, one at least."""
    order: tuple[FaceStatus, ...] = ("ok", "uncertain", "low_quality")
    return min((face.status for face in faces), key=order.index)


class Predictor:
    """Find faces, their landmarks and expressions: ``Predictor()("photo.jpg")``."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        fan: str = DEFAULT_FAN,
        detector: str | Detector = "auto",
        device: Device = "auto",
        min_confidence: float | None = None,
        min_face_px: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Load the networks.

        Args:
            model: the expression network: a packaged NAME, a run folder, or a weights file.
            fan: the face alignment network, in the same ways.
            detector: ``auto``, a name in `nkf.detectors.DETECTORS`, or any callable like `nkf.detectors.Detector`.
            device: ``auto`` takes CUDA where it is available.
            min_confidence: in [0, 1], below which an expression is ``uncertain``; None takes the model's own, from
                where on 95 % of its answers were right when it was calibrated, or 0 if it has none.
            min_face_px: longer side of the smallest faces that are wanted, 24 or more: takes longer, see
                `nkf.detectors.NkfDetector`. None: those that show when a photo is scaled down to 640 pixels.
            threads: CPU threads of one call of a network; None takes all cores. Fewer where several calls run at once.

        Raises:
            NkfError: when a network or the detector cannot be loaded, or a number is out of range.
        """
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise NkfError(f"min_confidence {min_confidence}: expected 0 to 1")
        self._finder = FaceFinder(detector, fan, device, min_face_px=min_face_px, threads=threads)
        self._model, self.info = load_expression_model(model, device, threads=threads)
        calibration = self.info.calibration
        own = calibration.min_confidence if calibration is not None else None
        self.min_confidence = (own or 0.0) if min_confidence is None else min_confidence

    info: WeightsInfo
    """Sidecar of the expression network."""

    min_confidence: float
    """Below which an expression is ``uncertain``."""

    @property
    def weights(self) -> tuple[WeightsInfo, ...]:
        """Sidecars of all networks that decide an answer: `info`, and `FaceFinder.weights`."""
        return (self.info, *self._finder.weights)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the expressions, in the order of the probabilities."""
        return self.info.classes

    def __call__(self, image: ImageInput) -> Prediction:
        """Predict the expressions in one image.

        Args:
            image: a file; the bytes of one; a Pillow image, whose EXIF orientation is applied; or an upright
                (H, W, 3) uint8 RGB array.

        Raises:
            ImageError: when it cannot be read, or is no image.
        """
        return self.predict_batch([image])[0]

    def predict_batch(
        self, images: Sequence[ImageInput], paths: Sequence[str | None] | None = None
    ) -> list[Prediction]:
        """Predict several images, whose faces go through the networks together.

        Args:
            images: each as in a call.
            paths: what `Prediction.path` shall be, for each image; by default the name of one that is a file.

        Raises:
            ImageError: when one cannot be read, or is no image; see `predict_files`, which goes on.
            NkfError: when a network gives values that are not finite, or there are more or fewer paths than images.
        """
        if paths is None:
            paths = [str(image) if isinstance(image, str | Path) else None for image in images]
        if len(paths) != len(images):
            raise NkfError(f"{len(paths)} paths for {len(images)} images; expected one for each")
        images_rgb = [_read(image) for image in images]
        found = self._finder.find(images_rgb)
        size = self.info.input_size
        pairs = [(image, face) for image, faces in zip(images_rgb, found, strict=True) for face in faces]
        aligned = [align(image, face.landmarks_px, size, face.box_xyxy) for image, face in pairs]
        rows = iter(self._probabilities(aligned))
        return [
            self._describe(image, path, [(face, next(rows)) for face in faces])
            for image, path, faces in zip(images_rgb, paths, found, strict=True)
        ]

    def explain(self, image: ImageInput, prediction: Prediction) -> Prediction:
        """Find out which keypoints carried the expression of each face (see `nkf.explain`), in 69 runs of the network.

        Args:
            image: that `prediction` is about, as in a call.
            prediction: of this predictor.

        Returns:
            The prediction, with `FacePrediction.explanation`.

        Raises:
            ImageError: when the image cannot be read, or is none.
        """
        image_rgb, size, faces = _read(image), self.info.input_size, []
        for face in prediction.faces:
            crop_rgb, landmarks_px = align(image_rgb, face.landmarks_px, size, face.box_xyxy)
            why = explain_face(self._model, crop_rgb, landmarks_px, self.classes.index(face.expression))
            faces.append(replace(face, explanation=why))
        return replace(prediction, faces=tuple(faces))

    def predict_files(self, paths: Iterable[str | Path], *, workers: int = 1) -> Iterator[Prediction]:
        """Predict files in their order; one that cannot be read gives status ``error`` and no exception.

        Files are taken from `paths` only as they are needed, so that there may be any number of them.

        Args:
            paths: image files.
            workers: batches that are worked on at once, in threads. With more than one, give the predictor
                `threads` so that both together are not more than the cores.

        Raises:
            NkfError: when a network gives values that are not finite, or `paths` is one string.
        """
        if isinstance(paths, str):
            raise NkfError(f"predict_files({paths!r}): expected a list of files, as [{paths!r}]")
        remaining = iter(paths)
        batches = iter(lambda: list(islice(remaining, BATCH_FILES)), [])
        pool = ThreadPoolExecutor(max(1, workers))
        waiting: deque[Future[list[Prediction]]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(self._predict_paths, batch))
                if len(waiting) > workers:  # one more than is worked on: no worker waits for the reader
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _predict_paths(self, paths: Sequence[str | Path]) -> list[Prediction]:
        results: list[Prediction | None] = [None] * len(paths)
        images: dict[int, ImageRGB] = {}
        for k, path in enumerate(paths):
            try:
                images[k] = read_image(Path(path))
            except ImageError as error:
                results[k] = Prediction(str(path), None, None, "error", str(error))
            full = sum(image.size // 3 for image in images.values()) > BATCH_PIXELS
            if images and (full or k == len(paths) - 1):
                predictions = self.predict_batch(list(images.values()), [str(paths[n]) for n in images])
                for n, prediction in zip(images, predictions, strict=True):
                    results[n] = prediction
                images = {}
        return [result for result in results if result is not None]

    def _probabilities(self, aligned: Sequence[tuple[ImageRGB, Points]]) -> NDArray[np.float32]:
        """Aligned crops with their landmarks to (N, C)."""
        if not aligned:
            return np.zeros((0, len(self.classes)), np.float32)
        landmarks_px = np.stack([landmarks for _, landmarks in aligned]).astype(np.float32)
        probabilities = self._model(to_batch([crop for crop, _ in aligned]), landmarks_px)
        if not np.isfinite(probabilities).all():
            raise NkfError(f"model {self.info.name!r} gives values that are not finite; its weights are broken")
        return probabilities

    def _describe(
        self, image_rgb: ImageRGB, path: str | None, found: Sequence[tuple[Face, NDArray[np.float32]]]
    ) -> Prediction:
        height, width = image_rgb.shape[:2]
        faces = tuple(self._describe_face(face, row) for face, row in found)
        return Prediction(path, width, height, best_status(faces) if faces else "no_face", faces=faces)

    def _describe_face(self, face: Face, probabilities: NDArray[np.float32]) -> FacePrediction:
        assert face.landmarks_px is not None
        assert face.landmark_spread_px is not None
        by_class = dict(zip(self.classes, probabilities.tolist(), strict=True))
        return FacePrediction(
            face.box_xyxy,
            face.detection_score,
            face.landmarks_px,
            face.landmark_spread_px,
            expression=self.classes[int(probabilities.argmax())],
            probabilities=by_class,
            problems=face.problems,
            min_confidence=self.min_confidence,
        )


def _read(image: ImageInput) -> ImageRGB:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, bytes):
        return decode_image(image, "image of bytes")
    if isinstance(image, Image.Image):
        try:
            return to_rgb(upright(image))
        except Exception as error:  # Pillow decodes as late as here, and on broken data raises nearly anything
            raise ImageError(f"broken image ({' '.join(str(error).split())})") from error
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"an image of type {type(image).__name__}; expected a path, bytes, a Pillow image or an RGB array"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"an image array of shape {image.shape} and type {image.dtype}; expected (H, W, 3) uint8 RGB")
    return image


def _rounded(array: NDArray[np.float64], decimals: int) -> Any:
    return np.round(array, decimals).tolist()
