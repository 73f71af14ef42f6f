"""Contributions of keypoints, on networks that look at one spot only."""

import json

import numpy as np
import pytest

from nkf.explain import RADIUS, REGIONS, Explanation, blurred, cover, explain_face, soft_discs
from nkf.geometry import MEAN_SHAPE, NUM_LANDMARKS
from nkf.runtime import ExpressionModel, load_expression_model
from nkf.weights import read_info

SIZE = 112
POINTS = (MEAN_SHAPE * SIZE).astype(np.float32)
ALONE = (0, 8, 17, 27, 30, 36, 48, 57)  # landmarks of all regions


def spot_model(model_file, keypoint, *, sign=1.0, sure=0.0, attention=None):
    """Happiness is as likely as the pixels at a landmark are bright; its batches are counted in ``calls``."""
    info = read_info(model_file.with_suffix(".json"))

    def network(crops, landmarks_px):
        np.testing.assert_array_equal(landmarks_px, np.tile(POINTS, (len(crops), 1, 1)))
        x, y = np.floor(landmarks_px[0, keypoint]).astype(int)
        logits = np.zeros((len(crops), len(info.classes)), np.float32)
        logits[:, 1] = sure + sign * crops[:, :, y - 1 : y + 2, x - 1 : x + 2].mean(axis=(1, 2, 3))
        odds = np.exp(logits)
        return odds / odds.sum(axis=1, keepdims=True)

    def explained(crops, landmarks_px):
        return network(crops, landmarks_px), np.tile(np.float32(attention), (len(crops), 1))

    return ExpressionModel(info, network, None if attention is None else explained)


def dotted_face():
    """Grey, with a bright dot at each landmark."""
    crop = np.full((SIZE, SIZE, 3), 60, np.uint8)
    for x, y in np.floor(POINTS).astype(int):
        crop[y - 1 : y + 2, x - 1 : x + 2] = 250
    return crop


@pytest.mark.parametrize("keypoint", ALONE)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_only_keypoint_that_counts_has_the_highest_contribution(model_file, keypoint, sign):
    explanation = explain_face(spot_model(model_file, keypoint, sign=sign), dotted_face(), POINTS, 1)
    assert np.argmax(sign * explanation.contributions) == keypoint
    assert sign * explanation.contributions[keypoint] > 0.2
    far = np.linalg.norm(POINTS - POINTS[keypoint], axis=1) > 1.5 * RADIUS * SIZE + 3
    np.testing.assert_allclose(explanation.contributions[far], 0, atol=1e-6)
    assert explanation.expression == "happiness"
    strongest = max(explanation.regions, key=lambda name: sign * explanation.regions[name])
    assert keypoint in REGIONS[strongest]


def test_what_speaks_for_one_expression_speaks_against_another(model_file):
    model = spot_model(model_file, 30)
    assert explain_face(model, dotted_face(), POINTS, 1).contributions[30] > 0.2
    assert explain_face(model, dotted_face(), POINTS, 0).contributions[30] < -0.02


def test_contribution_is_the_drop_of_the_log_odds(model_file):
    crop = dotted_face()
    x, y = np.floor(POINTS[30]).astype(int)
    spot = (slice(y - 1, y + 2), slice(x - 1, x + 2))
    share = soft_discs(POINTS[[30]], SIZE)[0][spot][..., None]
    after = (1 - share) * crop[spot] + share * blurred(crop)[spot]
    expected = (crop[spot].mean() - after.mean()) / 255  # the logit of the only class that moves
    assert expected > 0.2
    for sure in (0, 30):  # with 30 the probability is 1 in float32, covered or not
        explanation = explain_face(spot_model(model_file, 30, sure=sure), crop, POINTS, 1)
        assert explanation.contributions[30] == pytest.approx(expected, rel=0.02)


def test_attention_is_handed_on(model_file):
    attention = np.arange(68) / np.arange(68).sum()
    explanation = explain_face(spot_model(model_file, 30, attention=attention), dotted_face(), POINTS, 1)
    np.testing.assert_allclose(explanation.attention, attention, rtol=1e-6)
    assert explanation.attention.sum() == pytest.approx(1)


def test_a_network_without_attention_is_explained_too(model_file):
    model, info = load_expression_model(str(model_file), "cpu")  # tells the same of every crop
    explanation = explain_face(model, dotted_face(), POINTS, info.classes.index("sadness"))
    assert explanation.expression == "sadness"
    assert explanation.attention is None
    np.testing.assert_allclose(explanation.contributions, 0, atol=1e-6)


@pytest.mark.parametrize("attention", [None, np.full(68, 1 / 68)])
def test_to_dict_is_plain_and_rounded(attention):
    told = Explanation("fear", np.linspace(-1, 1, 68), attention, {"mouth": 1 / 3}).to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["regions"] == {"mouth": 0.3333}
    assert len(told["contributions"]) == 68
    assert told["contributions"][1] == -0.9701
    assert told["attention"] == (None if attention is None else [0.014706] * 68)


@pytest.mark.parametrize(
    ("contributions", "attention", "named"),
    [
        (np.zeros(67), None, r"contributions has shape \(67,\)"),
        (np.full(68, np.nan), None, "contributions .* not finite"),
        (np.zeros(68), np.zeros((1, 68)), r"attention has shape \(1, 68\)"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(contributions, attention, named):
    with pytest.raises(ValueError, match=named):
        Explanation("fear", contributions, attention, {})


@pytest.mark.parametrize("crop", [np.zeros((64, 64, 3), np.uint8), np.zeros((112, 112), np.uint8)])
def test_a_crop_of_another_size_is_refused(model_file, crop):
    with pytest.raises(ValueError, match=r"expected \(112, 112, 3\) and \(68, 2\)"):
        explain_face(spot_model(model_file, 30), crop, POINTS, 1)


def test_regions_take_every_landmark_once():
    assert sorted(k for keypoints in REGIONS.values() for k in keypoints) == list(range(NUM_LANDMARKS))


def test_discs_are_soft_and_cover_what_they_should():
    disc = soft_discs(np.array([[40.5, 60.5]]), SIZE)[0]
    radius = RADIUS * SIZE
    assert disc[60, 40] == 1
    assert disc[60, round(40 + radius)] == pytest.approx(0.5, abs=0.1)
    assert np.abs(np.diff(disc, axis=1)).max() < 0.2
    y, x = np.nonzero(disc)
    assert np.hypot(x - 40, y - 60).max() <= 1.5 * radius
    crop, fill = np.full((SIZE, SIZE, 3), 255, np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)
    np.testing.assert_allclose(cover(crop, disc[None], fill)[0], np.stack([1 - disc] * 3), atol=1e-6)
