"""Tracks of faces on drawn ways, and probabilities that are averaged over time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nkf.geometry import MEAN_SHAPE
from nkf.quality import face_size
from nkf.tracking import FaceTracker, ProbabilitySmoother, nearest_pairs

FACE = (MEAN_SHAPE - MEAN_SHAPE.mean(axis=0)) * 100  # (68, 2), about 70 px, its centre at the origin
SIZE = face_size(FACE)


def at(x, y=0.0, scale=1.0):
    return FACE * scale + [x, y]


def tracks(frames, fps=30.0, **options):
    """Numbers of the faces of each frame; frame k is taken at k / fps."""
    tracker = FaceTracker(**options)
    return [tracker(faces, k / fps) for k, faces in enumerate(frames)]


@pytest.mark.parametrize(
    ("distances", "limit", "pairs"),
    [
        (np.zeros((0, 3)), 1.0, {}),
        (np.zeros((2, 0)), 1.0, {}),
        ([[0.5]], 0.5, {0: 0}),
        ([[0.6]], 0.5, {}),
        ([[math.inf]], 9.0, {}),
        ([[0.2, 0.3], [0.1, 0.9]], 1.0, {0: 1, 1: 0}),  # the nearest pair leaves the other two to each other
        ([[0.2, 0.3], [0.1, 0.9]], 0.25, {0: 1}),
        ([[0.3, 0.1, 0.2]], 1.0, {1: 0}),
    ],
)
def test_nearest_pairs(distances, limit, pairs):
    assert nearest_pairs(distances, limit) == pairs


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_pairs_are_one_to_one_and_leave_no_near_pair_over(rows, columns, seed):
    distances = np.random.default_rng(seed).random((rows, columns))
    pairs = nearest_pairs(distances, 0.5)
    assert len(set(pairs.values())) == len(pairs)
    free = np.delete(np.delete(distances, list(pairs.values()), axis=0), list(pairs), axis=1)
    assert not (free <= 0.5).any()


def test_two_faces_that_stay_keep_their_numbers_in_any_order():
    frames = [[at(0), at(200)][:: 1 if k % 3 else -1] for k in range(20)]
    assert tracks(frames)[0] == [0, 1]  # as they came
    assert all(found == ([1, 0] if k % 3 else [0, 1]) for k, found in enumerate(tracks(frames)))


@pytest.mark.parametrize("fps", [30, 15, 5])
@pytest.mark.parametrize("apart", [0.45, 0.9])  # face sizes between the ways: half hidden, and beside each other
def test_faces_that_pass_each_other_keep_their_numbers(fps, apart):
    ways = [(-200 + 130 * t, 200 - 130 * t) for t in np.arange(0, 3, 1 / fps)]
    frames = [[at(left, -apart * SIZE / 2), at(right, apart * SIZE / 2)] for left, right in ways]
    assert tracks(frames, fps) == [[0, 1]] * len(frames)


def test_faces_that_pass_on_one_line_are_told_apart_by_their_motion():
    ways = [(-200 + 130 * t, 200 - 130 * t) for t in np.arange(0, 3, 1 / 30)]
    assert tracks([[at(left), at(right)] for left, right in ways]) == [[0, 1]] * len(ways)


def test_one_face_that_is_hidden_while_it_passes_keeps_its_number():
    frames = []
    for t in np.arange(0, 3, 1 / 30):
        near, far = at(-200 + 130 * t), at(200 - 130 * t, scale=0.8)
        frames.append([near] if abs(-400 + 260 * t) < 0.4 * SIZE else [near, far])
    hidden = [k for k, faces in enumerate(frames) if len(faces) == 1]
    assert 3 < len(hidden) < 15
    assert tracks(frames) == [[0] if k in hidden else [0, 1] for k in range(len(frames))]


@pytest.mark.parametrize(("gap_s", "number"), [(0.3, 0), (0.95, 0), (1.1, 1)])
def test_a_face_that_is_not_found_for_a_while(gap_s, number):
    tracker = FaceTracker()
    assert tracker([at(0)], 0.0) == [0]
    assert tracker([], gap_s / 2) == []
    assert tracker([at(2)], gap_s) == [number]


def test_a_face_in_motion_is_expected_further_on():
    tracker = FaceTracker()
    for k in range(10):
        tracker([at(6 * k)], k / 30)  # 180 px a second
    assert tracker([at(54 + 50), at(54 - 50)], 0.3 + 0.3) == [0, 1]  # the one behind it is new


def test_new_faces_get_new_numbers_and_none_is_given_again():
    script = [[at(0)], [at(1), at(300)], [at(300)], [at(1), at(300), at(600)]]
    assert tracks(script) == [[0], [0, 1], [1], [0, 1, 2]]
    tracker = FaceTracker()
    numbers = [tracker([at(0)] if k % 2 == 0 else [], 1.0 * k) for k in range(7)]
    assert numbers == [[0], [], [1], [], [2], [], [3]]
    assert tracker.alive == {3}


def test_frames_far_apart_do_not_end_a_track():
    assert tracks([[at(0), at(200)], [at(5)], [at(9), at(200)]], fps=0.2) == [[0, 1], [0], [0, 2]]


def test_a_large_face_may_move_further_than_a_small_one():
    assert tracks([[at(0, scale=3)], [at(0.5 * 3 * SIZE, scale=3)]]) == [[0], [0]]
    assert tracks([[at(0)], [at(0.5 * 3 * SIZE)]]) == [[0], [1]]


def test_another_face_in_the_same_place_is_another_track():
    assert tracks([[at(0)], [at(0, scale=4)]]) == [[0], [1]]


@pytest.mark.parametrize("time_s", [1.0, 0.5])
def test_a_time_that_does_not_increase_is_no_reason_to_lose_a_face(time_s):
    tracker = FaceTracker()
    tracker([at(0)], 0.9)
    tracker([at(3)], 1.0)
    assert tracker([at(4)], time_s) == [0]
    assert tracker([at(5)], time_s + 0.1) == [0]


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((68, 2), np.nan)])
def test_landmarks_are_checked(points):
    with pytest.raises(ValueError, match=r"expected \(68, 2\), finite"):
        FaceTracker()([points], 0.0)


def test_landmarks_in_one_place_are_a_track_of_their_own():
    assert tracks([[np.ones((68, 2))], [np.ones((68, 2)), at(0)]]) == [[0], [0, 1]]


def reference(values, times, seconds, weights):
    """The formula of the docstring, term by term."""
    before = [times[0] - 1 / 30, *times[:-1]]
    result = []
    for n, now in enumerate(times):
        terms = [
            w * (1 - math.exp(-(t - b) / seconds)) * math.exp(-(now - t) / seconds)
            for w, t, b in zip(weights[: n + 1], times, before, strict=False)
        ]
        result.append(sum(term * np.array(p) for term, p in zip(terms, values, strict=False)) / sum(terms))
    return np.array(result)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.001, 3), min_size=1, max_size=20),
    st.floats(0.05, 5),
    st.integers(0, 2**32 - 1),
)
def test_smoothing_is_the_documented_formula(gaps, seconds, seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(gaps).tolist()
    values = rng.dirichlet(np.ones(8), len(times))
    weights = rng.choice([0.1, 1.0], len(times))
    smoother = ProbabilitySmoother(seconds)
    found = [smoother(p, t, weight=w) for p, t, w in zip(values, times, weights, strict=True)]
    np.testing.assert_allclose(found, reference(values, times, seconds, weights), atol=1e-9)
    np.testing.assert_allclose(np.sum(found, axis=1), 1)


def test_the_first_frame_is_itself_and_no_smoothing_changes_nothing():
    values = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    np.testing.assert_allclose(ProbabilitySmoother()(values[0], 7.0), values[0])
    raw = ProbabilitySmoother(0.0)
    for k, value in enumerate(values):
        np.testing.assert_allclose(raw(value, k / 30), value)


def test_a_time_constant_without_end_gives_the_mean():
    smoother = ProbabilitySmoother(1e15)
    for k, value in enumerate(([1.0, 0.0], [0.0, 1.0])):
        found = smoother(value, k / 30)
    np.testing.assert_allclose(found, [0.5, 0.5])


def test_the_frame_rate_does_not_matter():
    """A step from one class to the other, seen at 60 and at 12 frames a second."""
    results = []
    for fps in (60, 12):
        smoother = ProbabilitySmoother(0.5)
        for k in range(-3 * fps, fps + 1):
            value = smoother([1.0, 0.0] if k <= 0 else [0.0, 1.0], k / fps)
        results.append(value[1])
    assert results == pytest.approx([1 - math.exp(-2)] * 2, abs=0.005)


def test_a_face_of_low_quality_counts_less():
    def after(weight):
        smoother = ProbabilitySmoother()
        for k in range(30):
            smoother([1.0, 0.0], k / 30)
        return smoother([0.0, 1.0], 1.0, weight=weight)[1]

    assert after(0.1) == pytest.approx(after(1.0) / 10, rel=0.15)


@pytest.mark.parametrize(("fps", "speed"), [(30, 10.0), (3, 3.0), (2, 2.5)])
def test_a_moving_face_keeps_its_number_where_frames_are_left_out(fps, speed):
    """Speed in face sizes a second: with few frames it moves by more than `MAX_DISTANCE` from one to the next."""
    frames = [[at(k * speed * SIZE / fps)] for k in range(8)]
    assert tracks(frames, fps) == [[0]] * 8


def test_a_face_that_appears_far_away_is_a_new_one_however_few_frames():
    assert tracks([[at(0)], [at(0)], [at(2.5 * SIZE)]], fps=1.5) == [[0], [0], [1]]
