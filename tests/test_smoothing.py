"""Smoothed landmarks: steady at rest, quick in motion, for each face its own."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nkf.faces import Face
from nkf.geometry import interocular_distance
from nkf.pose import MEAN_SHAPE_3D
from nkf.smoothing import MOTION, SHAPE, LandmarkSmoother, OneEuroSettings, SmoothedFinder

FACE = MEAN_SHAPE_3D[:, :2] * 100 + 300  # (68, 2), outer eye corners 100 px apart
IMAGE = np.zeros((8, 8, 3), np.uint8)


def smooth(frames, times=None, **options):
    smoother = LandmarkSmoother(**options)
    times = np.arange(len(frames)) / 30 if times is None else times
    return np.array([smoother(points, time) for points, time in zip(frames, times, strict=True)])


def noisy(frames, sd_px, seed=0):
    return frames + np.random.default_rng(seed).normal(0, sd_px, (len(frames), 68, 2))


def still(count):
    return np.repeat(FACE[None], count, axis=0)


def moving(times, speed_px=120.0):
    """To the right from 0.5 s to 2 s."""
    return FACE + np.clip(np.asarray(times) - 0.5, 0, 1.5)[:, None, None] * [speed_px, 0]


def rms(values):
    return math.sqrt((values**2).mean())


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(0.05, 50),
    angle=st.floats(-math.pi, math.pi),
    shift=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
    gaps=st.lists(st.floats(1e-3, 0.4), min_size=1, max_size=8),
)
def test_a_face_at_rest_stays_where_it_is(scale, angle, shift, gaps):
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = FACE @ turn.T * scale + shift
    times = np.cumsum([0.0, *gaps])
    np.testing.assert_allclose(smooth([points] * len(times), times), np.stack([points] * len(times)), atol=1e-5 * scale)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 10), shift=st.floats(-500, 500))
def test_the_settings_mean_the_same_at_every_size(scale, shift):
    frames = noisy(moving(np.arange(20) / 30), 2)
    np.testing.assert_allclose(smooth(frames * scale + shift), smooth(frames) * scale + shift, atol=1e-6 * scale)


def test_a_turned_picture_gives_turned_landmarks():
    frames = noisy(moving(np.arange(20) / 30), 2)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_allclose(smooth(frames @ turn.T), smooth(frames) @ turn.T, atol=1e-6)


@pytest.mark.parametrize("offset", [np.array([30.0, 0.0]), np.where(np.arange(68)[:, None] >= 48, [0.0, 20.0], 0)])
def test_a_step_is_followed_without_overshoot(offset):
    frames = np.concatenate([still(10), np.repeat((FACE + offset)[None], 90, axis=0)])
    along = (smooth(frames) - FACE) * np.sign(np.abs(offset)) / np.maximum(np.abs(offset), 1)
    moved = along[:, np.broadcast_to(offset != 0, (68, 2))].mean(axis=1)
    assert np.all(np.diff(moved) > -1e-9)
    assert moved[9] == pytest.approx(0, abs=1e-9)
    assert 0.95 < moved[-1] <= 1 + 1e-9


def test_noise_at_rest_goes_down():
    frames = noisy(still(300), 1.0)
    result = smooth(frames)[30:]
    assert rms(result - FACE) < 0.5 * rms(frames[30:] - FACE)
    assert rms(np.diff(result, n=2, axis=0)) < 0.25 * rms(np.diff(frames[30:], n=2, axis=0))


def test_a_face_in_motion_lags_little():
    times = np.arange(75) / 30
    truth = moving(times)
    result = smooth(noisy(truth, 1.0))
    in_motion = (times > 1) & (times < 2)
    lag_s = (truth - result)[in_motion, :, 0].mean() / 120
    assert abs(lag_s) < 0.01
    assert rms((result - truth)[in_motion]) < 1.0


def test_a_turn_of_the_head_is_a_motion_and_lags_little():
    times = np.arange(45) / 30
    yaw = np.radians(40) * np.clip((times - 0.5) / 0.4, 0, 1)
    x = np.cos(yaw)[:, None] * MEAN_SHAPE_3D[:, 0] - np.sin(yaw)[:, None] * MEAN_SHAPE_3D[:, 2]
    truth = np.stack([x, np.broadcast_to(MEAN_SHAPE_3D[:, 1], x.shape)], axis=-1) * 100
    assert rms(smooth(truth) - truth) < 1.5


@pytest.mark.parametrize("step", [2, 3])
def test_fewer_frames_give_about_the_same_way(step):
    times = np.arange(121) / 60
    fine, coarse = smooth(moving(times), times), smooth(moving(times)[::step], times[::step])
    assert rms(fine[::step] - coarse) < 1.0


def test_a_gap_and_a_jump_start_anew():
    smoother = LandmarkSmoother()
    smoother(FACE, 0.0)
    assert np.abs(smoother(FACE + 2, 0.1) - (FACE + 2)).min() > 0.1
    np.testing.assert_array_equal(smoother(FACE + 60, 0.9), FACE + 60)  # after a gap
    np.testing.assert_array_equal(smoother(FACE + 260, 0.93), FACE + 260)  # a jump


def test_uncertain_landmarks_are_smoothed_more():
    spread = np.where(np.arange(68) < 17, 16.0, 2.0)
    frames = noisy(still(200), spread[:, None] / 2)
    results = []
    for given_spread in (spread, np.full(68, 2.0)):
        smoother = LandmarkSmoother()
        result = [smoother(points, k / 30, spread_px=given_spread) for k, points in enumerate(frames)]
        results.append(np.diff(result[50:], axis=0))
    told, untold = results
    assert rms(told[:, :17]) < 0.7 * rms(untold[:, :17])
    assert rms(told[:, 17:]) < rms(untold[:, 17:])  # the others gain too: the motion is known better


def test_an_uncertain_landmark_does_not_drag_the_face():
    frames = still(60).copy()
    frames[30:, :9] += [80, 0]  # half of the jaw is lost behind a hand
    spread = np.full((60, 68), 2.0)
    spread[:, :9] = 40.0
    smoother = LandmarkSmoother()
    with_spread = np.array(
        [smoother(p, k / 30, spread_px=s) for k, (p, s) in enumerate(zip(frames, spread, strict=True))]
    )
    assert np.abs(with_spread[:, 17:] - FACE[17:]).max() < 0.25 * np.abs(smooth(frames)[:, 17:] - FACE[17:]).max()


def test_landmarks_in_one_place_pass_and_are_forgotten():
    smoother = LandmarkSmoother()
    np.testing.assert_array_equal(smoother(np.ones((68, 2)), 0.0), np.ones((68, 2)))
    np.testing.assert_array_equal(smoother(FACE, 0.1), FACE)


@pytest.mark.parametrize("time", [1.0, 0.5, math.nan, math.inf])
def test_time_has_to_go_on(time):
    smoother = LandmarkSmoother()
    smoother(FACE, 1.0)
    with pytest.raises(ValueError, match="expected a later time"):
        smoother(FACE, time)
    finder = SmoothedFinder(lambda image: [])
    finder(IMAGE, 1.0)
    with pytest.raises(ValueError, match="expected a later time"):
        finder(IMAGE, time)


@pytest.mark.parametrize(
    ("points", "spread", "message"),
    [
        (FACE[:5], None, r"landmarks_px has shape \(5, 2\)"),
        (FACE * np.nan, None, "not finite"),
        (FACE, np.ones(5), r"spread_px has shape \(5,\)"),
    ],
)
def test_arrays_are_checked(points, spread, message):
    with pytest.raises(ValueError, match=message):
        LandmarkSmoother()(points, 0.0, spread_px=spread)


@pytest.mark.parametrize("values", [(0, 1, 1), (1, -1, 1), (1, 1, 0), (1, math.inf, 1)])
def test_settings_are_checked(values):
    with pytest.raises(ValueError, match="expected"):
        OneEuroSettings(*values)


def test_stronger_settings_are_steadier():
    frames = noisy(still(100), 1.0)
    strong = smooth(frames, motion=replace(MOTION, cutoff_per_speed=1.0), shape=replace(SHAPE, cutoff_per_speed=0.5))
    assert rms(np.diff(strong, axis=0)[30:]) < 0.7 * rms(np.diff(smooth(frames), axis=0)[30:])


def face_at(points, spread=None):
    low, high = points.min(axis=0), points.max(axis=0)
    return Face(np.concatenate([low, high]), 0.9, landmarks_px=points, landmark_spread_px=spread)


def test_two_faces_that_change_their_order_keep_their_own_smoothing():
    left, right = noisy(still(40), 1.0), noisy(still(40) * 1.02 + [400, 0], 1.0, seed=1)
    frames = [[face_at(a), face_at(b)][:: 1 if k % 2 else -1] for k, (a, b) in enumerate(zip(left, right, strict=True))]
    waiting = iter(frames)
    finder = SmoothedFinder(lambda image: next(waiting))
    results = [finder(IMAGE, k / 30) for k in range(40)]
    for frame, result in zip(frames, results, strict=True):
        for found, smoothed in zip(frame, result, strict=True):
            np.testing.assert_array_equal(smoothed.box_xyxy, found.box_xyxy)
            assert np.abs(smoothed.landmarks_px - found.landmarks_px).max() < 10
    ordered = np.array([sorted((f.landmarks_px for f in faces), key=lambda p: p[0, 0]) for faces in results])
    np.testing.assert_allclose(ordered[:, 0], smooth(left))
    np.testing.assert_allclose(ordered[:, 1], smooth(right))


def test_faces_come_go_and_return():
    first, second = FACE, FACE + [500, 0]
    script = [[first], [first + 1, second], [second], [], [first + 2, second], [Face([0, 0, 9, 9], 0.5)]]
    waiting = iter([[face if isinstance(face, Face) else face_at(face) for face in faces] for faces in script])
    finder = SmoothedFinder(lambda image: next(waiting))
    results = [finder(IMAGE, k / 30) for k in range(len(script))]
    assert [len(faces) for faces in results] == [1, 2, 1, 0, 2, 1]
    np.testing.assert_array_equal(results[1][1].landmarks_px, second)  # new, as it was found
    assert np.abs(results[4][0].landmarks_px - (first + 2)).min() > 0.05  # remembered for three frames
    assert results[5][0].landmarks_px is None


def test_a_face_that_was_away_for_long_starts_anew():
    waiting = iter([[face_at(FACE)], [], [face_at(FACE + 8)]])
    finder = SmoothedFinder(lambda image: next(waiting), max_gap_s=0.2)
    results = [finder(IMAGE, time) for time in (0.0, 0.15, 0.3)]
    np.testing.assert_array_equal(results[2][0].landmarks_px, FACE + 8)


def test_the_finder_hands_the_spread_on():
    spread = np.where(np.arange(68) < 17, 20.0, 2.0)
    frames = noisy(still(10), 2.0)
    waiting = iter([[face_at(points, spread)] for points in frames])
    finder = SmoothedFinder(lambda image: next(waiting))
    smoother = LandmarkSmoother()
    for k, points in enumerate(frames):
        (face,) = finder(IMAGE, k / 30)
        np.testing.assert_array_equal(face.landmarks_px, smoother(points, k / 30, spread_px=spread))
        np.testing.assert_array_equal(face.landmark_spread_px, spread)


def test_a_finder_that_fails_leaves_the_smoothing_as_it_was():
    def fail(image):
        raise OSError("camera")

    finder = SmoothedFinder(fail)
    for _ in range(2):  # the same frame can be tried again
        with pytest.raises(OSError, match="camera"):
            finder(IMAGE, 1.0)


def test_the_size_of_a_face_is_that_of_its_outer_eye_corners():
    assert interocular_distance(FACE) == pytest.approx(100, abs=0.5)
    smoother = LandmarkSmoother()
    smoother(FACE, 0.0)
    assert smoother.distance(FACE + [50, 0]) == pytest.approx(0.5, abs=0.01)
