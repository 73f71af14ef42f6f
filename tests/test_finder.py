"""FaceFinder: detector, landmarks and verdict together."""

import numpy as np
import pytest

from nkf.detectors import SCORE_THRESHOLD, WholeImage
from nkf.errors import NkfError
from nkf.faces import Face, find_landmarks, first_crop
from nkf.finder import CANDIDATE_SCORE, FaceFinder, LandmarkFinder, without_doubles
from nkf.geometry import MEAN_SHAPE, five_points
from nkf.images import decode_image, whole_box
from nkf.quality import QualityLimits
from nkf.runtime import FoundLandmarks, load_fan

NO_SPREAD = np.zeros(68)
NOISE = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)


def detector_of(*faces):
    return lambda image_rgb: list(faces)


def test_faces_come_largest_first_with_landmarks_and_verdict(fan_file):
    finder = FaceFinder(detector_of(Face([1, 1, 9, 9], 0.9), Face([10, 10, 90, 90], 0.8)), str(fan_file), "cpu")
    large, small = finder(NOISE)
    assert (large.area, small.area) == (6400, 64)
    assert large.landmarks_px.shape == (68, 2)
    assert large.landmark_spread_px.shape == (68,)
    assert large.status == "ok"
    assert "small" in small.problems


def test_no_face(fan_file):
    assert FaceFinder(detector_of(), str(fan_file), "cpu")(NOISE) == []


def test_limits_are_the_callers(fan_file):
    limits = QualityLimits(min_size_px=1000)
    finder = FaceFinder("none", str(fan_file), "cpu", limits=limits)
    assert finder(NOISE)[0].problems == ("small",)


def test_what_no_landmarks_fit_on_is_left_out_unless_the_user_says_that_it_is_a_face(monkeypatch, fan_file):
    monkeypatch.setattr("nkf.finder.face_probability", lambda score, spread: 0.69)
    face = Face([10, 10, 90, 90], 0.8)
    assert FaceFinder(detector_of(face), str(fan_file), "cpu")(NOISE) == []
    assert len(FaceFinder(WholeImage(), str(fan_file), "cpu")(NOISE)) == 1


def test_broken_weights_are_named(save_network):
    file = save_network("fan", np.full((68, 2), np.nan, np.float32), name="broken")
    with pytest.raises(NkfError, match="model 'broken' gives values that are not finite"):
        FaceFinder("none", str(file), "cpu")(NOISE)


def test_boxes_on_parts_of_a_face_count_once():
    shape = MEAN_SHAPE * 60 + 20
    whole = Face([20, 20, 80, 80], 0.9, landmarks_px=shape)
    part = Face([20, 20, 60, 50], 0.5, landmarks_px=shape + 3)
    other = Face([90, 20, 170, 100], 0.4, landmarks_px=shape + [70, 0])
    both = Face([20, 20, 170, 170], 0.03, landmarks_px=MEAN_SHAPE * 105 + 12)  # loosely around two faces
    assert without_doubles([part, both, whole, other]) == [other, whole]
    assert without_doubles([]) == []


def test_our_detector_may_be_generous_only_for_the_finder(monkeypatch, fan_file):
    thresholds = []

    def detector(device, *, score_threshold, **options):
        thresholds.append(score_threshold)

    monkeypatch.setattr("nkf.finder.NkfDetector", detector)
    monkeypatch.setattr("nkf.finder.CANDIDATE_SCORE", CANDIDATE_SCORE)  # which the tests' networks have raised
    FaceFinder("auto", str(fan_file), "cpu")
    assert thresholds == [CANDIDATE_SCORE]
    assert CANDIDATE_SCORE < SCORE_THRESHOLD


def test_several_images_are_looked_at_together(fan_file):
    """Each face comes back to its own image, whatever the others hold."""
    boxes = {10: [], 20: [[5, 5, 30, 40]], 30: [[0, 0, 25, 25], [30, 30, 90, 95]]}
    finder = FaceFinder(lambda image: [Face(box, 0.9) for box in boxes[image[0, 0, 0]]], str(fan_file), "cpu")
    images = [np.full((100, 100, 3), number, np.uint8) for number in (30, 10, 20, 30)]
    found = finder.find(images)
    assert [len(faces) for faces in found] == [2, 0, 1, 2]
    for image, faces in zip(images, found, strict=True):
        for face, alone in zip(faces, finder(image), strict=True):
            np.testing.assert_allclose(face.landmarks_px, alone.landmarks_px, atol=1e-3)
            np.testing.assert_array_equal(face.box_xyxy, alone.box_xyxy)
    assert finder.find([]) == []


def test_small_faces_are_for_our_own_detector(fan_file):
    with pytest.raises(NkfError, match=r"min_face_px: for our own detector alone \(auto, nkf\)"):
        FaceFinder("none", str(fan_file), "cpu", min_face_px=24)


def test_the_surer_way_up_wins(monkeypatch, fan_file):
    """Five points that stand on their head, on a face that does not."""
    turned = []

    def look(fan, images, matrices, size):
        turned.append([matrix[0, 0] < 0 for matrix in matrices])  # upside down: the x axis points to the left
        spread = 5.0 if any(turned[-1]) else 0.5
        points = np.repeat((MEAN_SHAPE * 60 + 20)[None], len(matrices), axis=0) + spread
        return FoundLandmarks(points, np.full((len(matrices), 68), spread))

    monkeypatch.setattr("nkf.finder.first_look", look)
    monkeypatch.setattr("nkf.finder.second_look", lambda fan, images, matrices, found, size: found)
    upside_down = np.array([[60, 60], [40, 60], [50, 50], [58, 40], [42, 40]], float)
    face = Face([20, 20, 80, 80], 0.9, points5_px=upside_down)
    (found,) = FaceFinder(detector_of(face), str(fan_file), "cpu")(NOISE)
    assert turned == [[True], [False]]
    assert found.landmark_spread_px.max() == 0.5
    np.testing.assert_allclose(found.landmarks_px, MEAN_SHAPE * 60 + 20.5)


@pytest.mark.parametrize("points", [five_points(MEAN_SHAPE * 60 + 20), np.full((5, 2), 50.0)])
def test_where_five_points_tell_of_no_face_the_box_is_looked_at(monkeypatch, fan_file, points):
    looks = []

    def look(fan, images, matrices, size):
        in_box = [np.allclose(matrix, first_crop([0, 0, 90, 90], size)) for matrix in matrices]
        looks.append(in_box)
        spread = np.where(in_box, 0.5, 30.0)
        return FoundLandmarks(
            np.repeat((MEAN_SHAPE * 60 + 20)[None], len(matrices), axis=0), spread[:, None] + NO_SPREAD
        )

    monkeypatch.setattr("nkf.finder.first_look", look)
    monkeypatch.setattr("nkf.finder.second_look", lambda fan, images, matrices, found, size: found)
    face = Face([0, 0, 90, 90], 0.9, points5_px=points)
    (found,) = FaceFinder(detector_of(face), str(fan_file), "cpu")(NOISE)
    assert found.landmark_spread_px.max() == 0.5
    assert looks == ([[False], [True]] if np.ptp(points) else [[True], []])


def test_only_what_may_be_a_face_gets_a_second_look(monkeypatch, fan_file):
    looks = []

    def look(fan, images, matrices, size):
        looks.append(("first", len(matrices)))
        sure = np.array([matrix[0, 0] > size / 60 for matrix in matrices], bool)  # in small boxes
        return FoundLandmarks(
            np.repeat((MEAN_SHAPE * 60 + 20)[None], len(matrices), axis=0),
            np.repeat(np.where(sure, 0.5, 30.0)[:, None], 68, axis=1),
        )

    def look_again(fan, images, matrices, found, size):
        looks.append(("second", len(matrices)))
        return FoundLandmarks(found.points_px + 1, found.spread_px / 2)

    monkeypatch.setattr("nkf.finder.first_look", look)
    monkeypatch.setattr("nkf.finder.second_look", look_again)
    faces = [Face([5, 5, 95, 95], 0.9), Face([20, 20, 50, 50], 0.9), Face([0, 0, 100, 90], 0.3)]
    (found,) = FaceFinder(detector_of(*faces), str(fan_file), "cpu")(NOISE)
    assert found.box_xyxy.tolist() == [20, 20, 50, 50]
    assert looks == [("first", 3), ("second", 1), ("first", 0), ("second", 0)]
    np.testing.assert_allclose(found.landmarks_px, MEAN_SHAPE * 60 + 21)
    assert found.landmark_spread_px.max() == 0.25


BOX, OTHER_BOX = np.array([10, 12, 70, 75], np.float32), np.array([30, 5, 95, 60], np.float32)


def no_detector(**_):
    pytest.fail("the detector is loaded though it is not needed")


@pytest.mark.parametrize(
    ("shows", "boxes", "expected"),
    [
        ("face", [None, None], ["whole", "whole"]),
        ("face", [BOX, None], [BOX, "whole"]),
        ("face", [None, BOX], ["whole", BOX]),
        ("photo", [OTHER_BOX, BOX], [OTHER_BOX, BOX]),
        ("photo", [], []),
    ],
)
def test_landmarks_are_those_of_the_box_or_of_the_whole_face(monkeypatch, fake_package, shows, boxes, expected):
    monkeypatch.setattr("nkf.finder.FaceFinder", no_detector)
    images = [NOISE, NOISE[:60, :90]][: len(boxes)]
    found = LandmarkFinder("cpu")(images, boxes, shows)
    assert len(found) == len(expected)
    for points, image, box in zip(found, images, expected, strict=True):
        box = whole_box(image) if isinstance(box, str) else box
        wanted = find_landmarks(load_fan(device="cpu"), image, [box]).points_px[0]
        np.testing.assert_allclose(points, wanted, atol=1e-6)


def test_the_largest_face_of_a_photo_counts(monkeypatch, fake_package):
    faces = [Face([1, 1, 9, 9], 0.9), Face([10, 10, 90, 90], 0.8), Face([60, 1, 99, 40], 0.95)]
    monkeypatch.setattr("nkf.finder._detector", lambda *settings: detector_of(*faces))
    (points,) = LandmarkFinder("cpu")([NOISE], [None], "photo")
    wanted = find_landmarks(load_fan(device="cpu"), NOISE, [faces[1].box_xyxy]).points_px[0]
    np.testing.assert_allclose(points, wanted, atol=1e-6)


def test_photos_without_a_face_have_no_landmarks(fake_package, portrait_path):
    """Our own detector, loaded once for all photos."""
    portrait = decode_image(portrait_path.read_bytes(), "portrait")
    plain = np.full((120, 160, 3), 128, np.uint8)
    found = LandmarkFinder("cpu")([plain, portrait, portrait, plain], [None, None, [200, 70, 260, 170], None], "photo")
    assert [points is not None for points in found] == [False, True, True, False]
    assert found[1].shape == (68, 2)
    np.testing.assert_allclose(found[1].mean(axis=0), [225, 130], atol=25)  # where her landmarks are


def test_what_no_landmarks_fit_on_has_none(monkeypatch, fake_package):
    monkeypatch.setattr("nkf.finder.face_probability", lambda score, spread: 0.6)
    assert LandmarkFinder("cpu")([NOISE, NOISE], [None, BOX], "face") == [None, None]
