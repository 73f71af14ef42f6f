"""A photo in, the expressions of its faces out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.detectors import Detector
from nkf.errors import ImageError, NkfError
from nkf.faces import Face, to_batch
from nkf.finder import FaceFinder, align_face
from nkf.geometry import NUM_LANDMARKS
from nkf.images import ImageRGB, read_image, to_rgb, upright
from nkf.quality import Problem
from nkf.runtime import Device, load_expression_model
from nkf.weights import DEFAULT_FAN, DEFAULT_MODEL, WeightsInfo

Status = Literal["ok", "low_quality", "no_face", "error"]


@dataclass(frozen=True, slots=True, eq=False)
class FacePrediction:
    """One face with its expression; coordinates are pixels of the upright image.

    `box_xyxy` is (4,), `detection_score` in [0, 1], `landmarks_px` (68, 2), and `landmark_spread_px` (68,) their
    expected distances to the truth; `probabilities` sum to 1 over the model's classes, in its order, and `expression`
    is the most probable of them; `problems` tell why a face is of low quality (see `nkf.quality`).
    """

    box_xyxy: NDArray[np.float64]
    detection_score: float
    landmarks_px: NDArray[np.float64]
    landmark_spread_px: NDArray[np.float64]
    expression: str
    probabilities: dict[str, float]
    problems: tuple[Problem, ...] = ()

    def __post_init__(self) -> None:
        shapes = {"box_xyxy": (4,), "landmarks_px": (NUM_LANDMARKS, 2), "landmark_spread_px": (NUM_LANDMARKS,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"{name} has shape {value.shape} or is not finite; expected {shape}, finite")
        if self.expression not in self.probabilities:
            raise ValueError(f"expression {self.expression!r} is none of {', '.join(self.probabilities)}")

    @property
    def status(self) -> Literal["ok", "low_quality"]:
        """Whether the expression can be trusted; `problems` tell why not."""
        return "low_quality" if self.problems else "ok"

    @property
    def confidence(self) -> float:
        """Probability of `expression`."""
        return self.probabilities[self.expression]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values: coordinates to 0.01 px, probabilities to 1e-6."""
        return {
            "box_xyxy": _rounded(self.box_xyxy, 2),
            "detection_score": round(self.detection_score, 4),
            "landmarks_px": _rounded(self.landmarks_px, 2),
            "landmark_spread_px": _rounded(self.landmark_spread_px, 2),
            "expression": self.expression,
            "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
            "status": self.status,
            "problems": list(self.problems),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What was found in one image: no face, one or many, largest first; or why it could not be read.

    `path` is None for an image that came as an array, `width` and `height` (pixels of the upright image) are None for
    one that could not be read; then `message` says why. `status` is ``ok`` with at least one face that is, and
    ``low_quality`` when all faces are of low quality.
    """

    path: str | None
    width: int | None
    height: int | None
    status: Status
    message: str | None = None
    faces: tuple[FacePrediction, ...] = ()

    def __post_init__(self) -> None:
        trusted = [face for face in self.faces if face.status == "ok"]
        expected = ("ok",) if trusted else ("low_quality",) if self.faces else ("no_face", "error")
        if self.status not in expected:
            raise ValueError(f"status {self.status!r} with {len(trusted)} good of {len(self.faces)} faces")
        if (self.status == "error") != (self.message is not None):
            raise ValueError(f"status {self.status!r} with message {self.message!r}; an error, and only that, has one")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: plain Python values, ``message`` only when there is one."""
        message = {} if self.message is None else {"message": self.message}
        faces = [face.to_dict() for face in self.faces]
        head = {"path": self.path, "width": self.width, "height": self.height, "status": self.status}
        return {**head, **message, "faces": faces}


class Predictor:
    """Find faces, their landmarks and expressions: ``Predictor()("photo.jpg")``."""

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        fan: str = DEFAULT_FAN,
        detector: str | Detector = "auto",
        device: Device = "auto",
    ) -> None:
        """Load the networks.

        Args:
            model: the expression network: a packaged NAME, a run folder, or a weights file.
            fan: the face alignment network, in the same ways.
            detector: ``auto``, a name in `nkf.detectors.DETECTORS`, or any callable like `nkf.detectors.Detector`.
            device: ``auto`` takes CUDA where it is available.

        Raises:
            NkfError: when a network or the detector cannot be loaded.
        """
        self._finder = FaceFinder(detector, fan, device)
        self._model, self.info = load_expression_model(model, device)

    info: WeightsInfo
    """Sidecar of the expression network."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the expressions, in the order of the probabilities."""
        return self.info.classes

    def __call__(self, image: ImageRGB | Image.Image | str | Path) -> Prediction:
        """Predict the expressions in one image.

        Args:
            image: a file; a Pillow image, whose EXIF orientation is applied; or an upright (H, W, 3) uint8 RGB array.

        Raises:
            ImageError: when it cannot be read, or is no image.
        """
        return self._predict(_read(image), str(image) if isinstance(image, str | Path) else None)

    def predict_files(self, paths: Iterable[str | Path]) -> Iterator[Prediction]:
        """Predict files one by one, in their order; one that cannot be read gives status ``error`` and no exception."""
        for path in paths:
            try:
                yield self(path)
            except ImageError as error:
                yield Prediction(str(path), None, None, "error", str(error))

    def _predict(self, image_rgb: ImageRGB, path: str | None) -> Prediction:
        faces = self._finder(image_rgb)
        height, width = image_rgb.shape[:2]
        if not faces:
            return Prediction(path, width, height, "no_face")
        size = self.info.input_size
        aligned = [align_face(image_rgb, face, size) for face in faces]
        landmarks_px = np.stack([landmarks for _, landmarks in aligned]).astype(np.float32)
        probabilities = self._model(to_batch([crop for crop, _ in aligned]), landmarks_px)
        if not np.isfinite(probabilities).all():
            raise NkfError(f"model {self.info.name!r} gives values that are not finite; its weights are broken")
        predictions = tuple(self._describe(face, row) for face, row in zip(faces, probabilities, strict=True))
        status: Status = "ok" if any(face.status == "ok" for face in predictions) else "low_quality"
        return Prediction(path, width, height, status, faces=predictions)

    def _describe(self, face: Face, probabilities: NDArray[np.float32]) -> FacePrediction:
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
        )


def _read(image: ImageRGB | Image.Image | str | Path) -> ImageRGB:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return to_rgb(upright(image))
        except Exception as error:  # Pillow decodes as late as here, and on broken data raises nearly anything
            raise ImageError(f"broken image ({' '.join(str(error).split())})") from error
    if not isinstance(image, np.ndarray):
        raise ImageError(f"an image of type {type(image).__name__}; expected a path, a Pillow image or an RGB array")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"an image array of shape {image.shape} and type {image.dtype}; expected (H, W, 3) uint8 RGB")
    return image


def _rounded(array: NDArray[np.float64], decimals: int) -> Any:
    return np.round(array, decimals).tolist()
