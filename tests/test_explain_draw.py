"""The picture of an explanation: its size, and that a disc is where its keypoint is, in the colour of its sign."""

import numpy as np
import pytest

from nkf.explain import REGIONS, Explanation
from nkf.explain_draw import MAX_FACES, draw_explanations
from nkf.geometry import MEAN_SHAPE
from nkf.predict import FacePrediction, Prediction

FACE, LEFT, SECOND, TOP = 360, 20, 400, 44  # side of a face in the picture, and where the two of them begin
WARM, COLD, GIVEN = (255, 150, 46), (74, 150, 255), (72, 214, 160)
LANDMARKS = MEAN_SHAPE * 200 + 30  # of a face in a grey picture of 260 pixels


def drawn(contributions=None, attention=None, landmarks_px=LANDMARKS, faces=1):
    contributions = np.linspace(-1, 1, 68) if contributions is None else np.asarray(contributions, np.float64)
    explanation = Explanation("fear", contributions, attention, dict.fromkeys(REGIONS, 0.0))
    face = FacePrediction(
        np.array([30, 30, 230, 230.0]), 0.9, landmarks_px, np.ones(68), "fear", {"fear": 1.0}, explanation=explanation
    )
    prediction = Prediction("a.jpg", 260, 260, "ok", faces=(face,) * faces)
    return draw_explanations(np.full((260, 260, 3), 90, np.uint8), prediction)


def one(keypoint, value):
    values = np.zeros(68)
    values[keypoint] = value
    return values


@pytest.mark.parametrize(
    ("faces", "attention", "size"),
    [
        (1, None, (710, 424)),
        (2, np.full(68, 1 / 68), (1090, 848)),
        (MAX_FACES + 2, None, (710, 424 * MAX_FACES)),
    ],
)
def test_faces_stand_below_each_other(faces, attention, size):
    picture = drawn(attention=attention, faces=faces)
    assert picture.mode == "RGB"
    assert picture.size == size


def middle_of(picture, colour, left):
    """Middle of the pixels of nearly a colour in the face that begins at `left`, in shares of the face's side."""
    face = np.asarray(picture, np.int32)[TOP : TOP + FACE, left : left + FACE]
    y, x = np.nonzero(np.abs(face - colour).max(axis=2) < 40)
    return None if not len(x) else np.array([x.mean() + 0.5, y.mean() + 0.5]) / FACE


@pytest.mark.parametrize("keypoint", [8, 30, 36, 45, 54])
@pytest.mark.parametrize(("value", "colour", "other"), [(2.5, WARM, COLD), (-0.3, COLD, WARM)])
def test_the_disc_of_a_contribution_is_where_its_keypoint_is(keypoint, value, colour, other):
    picture = drawn(one(keypoint, value))
    expected = (MEAN_SHAPE[keypoint] - 0.5) * 0.9 + 0.5  # the mean shape lies in the crop as it is
    np.testing.assert_allclose(middle_of(picture, colour, LEFT), expected, atol=0.03)
    assert middle_of(picture, other, LEFT) is None


def test_the_attention_has_a_face_of_its_own():
    picture = drawn(one(8, 1.0), one(54, 1.0))
    assert middle_of(picture, GIVEN, LEFT) is None
    np.testing.assert_allclose(middle_of(picture, GIVEN, SECOND), (MEAN_SHAPE[54] - 0.5) * 0.9 + 0.5, atol=0.03)


def test_larger_contributions_have_larger_discs():
    def area(values):
        face = np.asarray(drawn(values), np.int32)[TOP : TOP + FACE, LEFT : LEFT + FACE]
        warm = face[..., 0] - face[..., 2] > 20
        return warm[: FACE // 2].sum(), warm[FACE // 2 :].sum()  # the eye, the mouth

    eye, mouth = area(one(36, 1.0) + one(54, 0.25))
    assert 1.8 * mouth < eye < 8 * mouth


@pytest.mark.parametrize("landmarks_px", [np.full((68, 2), 100.0), LANDMARKS + 400])
def test_odd_landmarks_and_no_contributions_are_drawn_too(landmarks_px):
    assert drawn(np.zeros(68), landmarks_px=landmarks_px).size == (710, 424)


def test_there_must_be_an_explanation():
    with pytest.raises(ValueError, match="0 faces, none with an explanation"):
        draw_explanations(np.zeros((9, 9, 3), np.uint8), Prediction("a.jpg", 9, 9, "no_face"))
