"""Frames to tracked faces: order, batches, smoothing for each track, and what happens where a video breaks."""

import itertools

import numpy as np
import pytest
from made_videos import CLASSES, FakePredictor, grey_frames, two_faces

from nkf.errors import ImageError, NkfError
from nkf.tracking import LOW_QUALITY_WEIGHT, ProbabilitySmoother
from nkf.video import VideoFrame
from nkf.video_predict import VideoPredictor


def video_frames(count, fps=25.0):
    return [VideoFrame(k, k / fps, image) for k, image in enumerate(grey_frames(count))]


def predict(frames, faces=two_faces, **options):
    return [prediction for _, prediction in VideoPredictor(FakePredictor(faces), **options).predict(frames, "a.mp4")]


def test_faces_keep_their_tracks_and_frames_their_order():
    predictions = predict(video_frames(20))
    assert [prediction.frame for prediction in predictions] == list(range(20))
    assert [prediction.time_s for prediction in predictions] == [k / 25 for k in range(20)]
    tracks = [[face.track for face in prediction.faces] for prediction in predictions]
    assert tracks == [[0] if 5 <= k <= 7 else [0, 1] for k in range(20)]
    assert {prediction.status for prediction in predictions} == {"ok"}


def test_each_track_is_smoothed_for_itself_and_low_quality_counts_less():
    predictions = predict(video_frames(20), smooth_seconds=0.3)
    for track in (0, 1):
        smoother = ProbabilitySmoother(0.3)
        for prediction in predictions:
            for face in prediction.faces:
                if face.track == track:
                    raw = list(face.face.probabilities.values())
                    weight = LOW_QUALITY_WEIGHT if face.face.problems else 1.0
                    expected = smoother(raw, prediction.time_s, weight=weight)
                    np.testing.assert_allclose(list(face.smooth_probabilities.values()), expected)
    blurred = predictions[3].faces[1]
    assert (blurred.face.expression, blurred.smooth_expression) == ("happiness", "anger")


def test_no_smoothing():
    for prediction in predict(video_frames(4), smooth_seconds=0):
        for face in prediction.faces:
            assert face.smooth_probabilities == pytest.approx(face.face.probabilities)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_smoothing_is_checked(seconds):
    with pytest.raises(NkfError, match="expected 0 or more seconds"):
        VideoPredictor(FakePredictor(two_faces), smooth_seconds=seconds)


def test_only_a_batch_is_held():
    taken = itertools.count()

    def frames():
        for frame in video_frames(30):
            next(taken)
            yield frame

    predictor = FakePredictor(two_faces)
    results = VideoPredictor(predictor).predict(frames(), "a.mp4", batch=4)
    next(results)
    assert next(taken) == 4
    assert len(list(results)) == 29
    assert predictor.batches == [4] * 7 + [2]


def test_large_frames_make_small_batches(monkeypatch):
    monkeypatch.setattr("nkf.video_predict.BATCH_PIXELS", 96 * 64 * 3)
    predictor = FakePredictor(two_faces)
    list(VideoPredictor(predictor).predict(video_frames(7), "a.mp4"))
    assert predictor.batches == [3, 3, 1]


@pytest.mark.parametrize("count", [0, 3, 8, 10])
def test_frames_before_the_damage_are_predicted(count):
    def frames():
        yield from video_frames(count)
        raise ImageError("a.mp4: cut off")

    results = VideoPredictor(FakePredictor(two_faces)).predict(frames(), "a.mp4")
    assert [next(results)[1].frame for _ in range(count)] == list(range(count))
    with pytest.raises(ImageError, match="cut off"):
        next(results)


def test_the_json_form():
    prediction = predict([VideoFrame(7, 1 / 3, grey_frames(4)[3])])[0]
    document = prediction.to_dict()
    assert {name: document[name] for name in ("path", "frame", "time_s", "status")} == {
        "path": "a.mp4",
        "frame": 7,
        "time_s": 0.333333,
        "status": "ok",
    }
    assert [face["track"] for face in document["faces"]] == [0, 1]
    face = document["faces"][1]
    assert (face["status"], face["problems"], face["smooth_expression"]) == ("low_quality", ["blurred"], "happiness")
    assert face["smooth_probabilities"] == dict(zip(CLASSES, (0.1, 0.8, 0.1), strict=True))
