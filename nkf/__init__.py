"""nkf: facial expression recognition built on keypoint features.

    from nkf import Predictor

    prediction = Predictor()("photo.jpg")
    for face in prediction.faces:
        print(face.expression, face.confidence, face.box_xyxy)

The public names are loaded on first use, so that ``import nkf`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nkf.errors import ImageError, NkfError
    from nkf.faces import Face
    from nkf.predict import FacePrediction, Prediction, Predictor
    from nkf.weights import WeightsInfo

__version__ = "0.1.0"

__all__ = [
    "Face",
    "FacePrediction",
    "ImageError",
    "NkfError",
    "Prediction",
    "Predictor",
    "WeightsInfo",
    "__version__",
]

_HOMES = {
    "Face": "nkf.faces",
    "FacePrediction": "nkf.predict",
    "ImageError": "nkf.errors",
    "NkfError": "nkf.errors",
    "Prediction": "nkf.predict",
    "Predictor": "nkf.predict",
    "WeightsInfo": "nkf.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nkf' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
