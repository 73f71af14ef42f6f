"""Predictor: inputs in every form, result types, broken images and broken networks."""

import json

import numpy as np
import pytest
from PIL import Image

from nkf.errors import ImageError, NkfError
from nkf.explain import explain_face
from nkf.faces import Face
from nkf.geometry import upright_square
from nkf.images import align
from nkf.predict import BATCH_FILES, FacePrediction, Prediction, Predictor, best_status

BOX = np.array([10.0, 20.0, 60.0, 90.0])
SPREAD_PX = 0.5  # of the fake network


@pytest.fixture
def predictor(fan_file, model_file):
    return Predictor(str(model_file), fan=str(fan_file))


@pytest.fixture
def fixed_predictor(fan_file, model_file):
    """A predictor that finds two faces in every image, the smaller one first."""
    faces = [Face([1, 1, 5, 5], 0.8), Face(BOX, 0.9)]
    return Predictor(str(model_file), fan=str(fan_file), detector=lambda image_rgb: faces)


def test_portrait(predictor, portrait_path):
    prediction = predictor(portrait_path)
    assert (prediction.status, prediction.width, prediction.height) == ("ok", 512, 512)
    (face,) = prediction.faces
    assert face.expression == "happiness"
    assert face.confidence == max(face.probabilities.values())
    assert tuple(face.probabilities) == predictor.classes
    assert sum(face.probabilities.values()) == pytest.approx(1)
    assert face.landmarks_px.shape == (68, 2)


def test_landmarks_come_back_to_the_image_with_their_spread(fan_file, model_file, fake_landmarks):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    predictor = Predictor(str(model_file), fan=str(fan_file), detector=lambda image_rgb: [Face([20, 20, 80, 80], 0.9)])
    (face,) = predictor(noise).faces
    # The fake network finds the same in both passes, so the second crop decides: the first one's landmarks, upright.
    side = 60 * 1.15
    first = 50 + (fake_landmarks / 112 - 0.5) * side
    x, y, side, angle = upright_square(first)
    assert angle == pytest.approx(0, abs=0.01)
    np.testing.assert_allclose(face.landmarks_px, (x, y) + (fake_landmarks / 112 - 0.5) * side, atol=0.5)
    np.testing.assert_allclose(face.landmark_spread_px, SPREAD_PX * side / 112, rtol=1e-3)


def test_json_form_is_plain_and_complete(predictor, portrait_path):
    document = predictor(str(portrait_path)).to_dict()
    assert json.loads(json.dumps(document)) == document
    assert list(document) == ["path", "width", "height", "status", "faces"]
    assert document["path"] == str(portrait_path)
    (face,) = document["faces"]
    landmarks = {"landmarks_px", "landmark_spread_px"}
    assert set(face) == {"box_xyxy", "detection_score", *landmarks, "expression", "probabilities", "status", "problems"}
    assert (face["status"], face["problems"]) == ("ok", [])
    assert np.shape(face["landmarks_px"]) == (68, 2)
    assert all(round(value, 2) == value for value in face["box_xyxy"])


def test_every_form_of_the_same_image_gives_the_same(predictor, portrait_path):
    expected = predictor(portrait_path).to_dict()["faces"]
    with Image.open(portrait_path) as image:
        forms = [str(portrait_path), portrait_path.read_bytes(), np.asarray(image), image]
        assert [predictor(form).to_dict()["faces"] for form in forms] == [expected] * 4
        assert predictor(image).path is None


def test_exif_orientation_is_applied_to_files_and_pillow_images(predictor, portrait_path, tmp_path):
    with Image.open(portrait_path) as image:
        wide = image.crop((0, 0, 512, 400))
        exif = image.getexif()
        exif[0x0112] = 6  # to be turned by 90° clockwise for display
        wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    upright = predictor(wide)
    with Image.open(tmp_path / "turned.jpg") as turned:
        assert turned.size == (400, 512)
        for form in (tmp_path / "turned.jpg", turned):
            prediction = predictor(form)
            assert (prediction.width, prediction.height) == (512, 400)
            np.testing.assert_allclose(prediction.faces[0].box_xyxy, upright.faces[0].box_xyxy, atol=3)


def test_faces_come_largest_first_and_tell_their_problems(fixed_predictor):
    prediction = fixed_predictor(np.zeros((100, 100, 3), np.uint8))
    assert [face.detection_score for face in prediction.faces] == [0.9, 0.8]
    assert [face.problems for face in prediction.faces] == [("blurred",), ("small", "blurred")]
    assert prediction.status == prediction.to_dict()["faces"][0]["status"] == "low_quality"


def test_no_face(predictor):
    prediction = predictor(np.full((40, 60, 3), 200, np.uint8))
    expected = {"path": None, "width": 60, "height": 40, "status": "no_face", "faces": []}
    assert prediction.to_dict() == expected


def test_predict_files_goes_on_after_a_bad_one(predictor, portrait_path, tmp_path):
    (tmp_path / "empty.jpg").touch()
    paths = [tmp_path / "empty.jpg", portrait_path, str(tmp_path / "none.png")]
    first, second, third = predictor.predict_files(paths)
    assert first.to_dict() == {
        "path": str(paths[0]),
        "width": None,
        "height": None,
        "status": "error",
        "message": f"{paths[0]}: empty file, expected an image",
        "faces": [],
    }
    assert second.status == "ok"
    assert (third.status, third.message) == ("error", f"{paths[2]}: No such file or directory")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\) and type uint8; expected \(H, W, 3\) uint8 RGB"),
        (np.zeros((4, 4, 3)), "type float64; expected"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (None, "type NoneType; expected a path, bytes, a Pillow image or an RGB array"),
        ("none.jpg", "none.jpg: No such file"),
    ],
)
def test_what_is_no_image_raises(fixed_predictor, image, message):
    with pytest.raises(ImageError, match=message):
        fixed_predictor(image)


def test_a_truncated_pillow_image_raises(fixed_predictor, portrait_path, tmp_path):
    (tmp_path / "half.jpg").write_bytes(portrait_path.read_bytes()[:40_000])
    with Image.open(tmp_path / "half.jpg") as image, pytest.raises(ImageError, match="broken image"):
        fixed_predictor(image)


def test_landmarks_in_one_place_do_not_stop_it(save_network, model_file):
    fan = save_network("fan", np.full((68, 2), 50, np.float32))
    predictor = Predictor(str(model_file), fan=str(fan), detector="none")
    assert predictor(np.zeros((50, 50, 3), np.uint8)).faces[0].expression == "happiness"


@pytest.mark.parametrize("broken", ["fan", "nkf"])
def test_a_network_that_gives_nan_is_an_error_of_the_model(save_network, fan_file, model_file, broken):
    shape = (68, 2) if broken == "fan" else (8,)
    file = save_network(broken, np.full(shape, np.nan, np.float32), name="broken")
    files = {"fan": fan_file, "nkf": model_file, broken: file}
    predictor = Predictor(str(files["nkf"]), fan=str(files["fan"]), detector="none")
    with pytest.raises(NkfError, match="model 'broken' gives values that are not finite"):
        predictor(np.zeros((50, 50, 3), np.uint8))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_files_come_in_their_order_however_many_work_at_once(predictor, portrait_path, tmp_path, workers):
    (tmp_path / "empty.jpg").touch()
    Image.new("RGB", (40, 30)).save(tmp_path / "plain.png")
    paths = [
        tmp_path / "empty.jpg",
        portrait_path,
        tmp_path / "plain.png",
        *[portrait_path, tmp_path / "empty.jpg"] * 9,
    ]
    predictions = list(predictor.predict_files(paths, workers=workers))
    assert [prediction.path for prediction in predictions] == [str(path) for path in paths]
    assert [prediction.status for prediction in predictions] == ["error", "ok", "no_face", *["ok", "error"] * 9]
    alone = predictor(portrait_path).to_dict()
    assert [prediction.to_dict() for prediction in predictions if prediction.status == "ok"] == [alone] * 10


def test_files_are_taken_as_they_are_needed(fixed_predictor, portrait_path):
    taken = []

    def paths():
        while True:
            taken.append(portrait_path)
            yield portrait_path

    going = fixed_predictor.predict_files(paths(), workers=2)
    for _ in range(3):
        next(going)
    going.close()
    assert len(taken) <= 4 * BATCH_FILES


def test_a_batch_with_many_pixels_is_predicted_in_parts(predictor, portrait_path, monkeypatch):
    sizes = []
    whole = Predictor.predict_batch
    monkeypatch.setattr("nkf.predict.BATCH_PIXELS", 2 * 512 * 512)
    monkeypatch.setattr(
        Predictor, "predict_batch", lambda self, images, paths: sizes.append(len(images)) or whole(self, images, paths)
    )
    assert len(list(predictor.predict_files([portrait_path] * 8))) == 8
    assert sizes == [3, 3, 2]


@pytest.mark.parametrize(("min_confidence", "status"), [(0.0, "ok"), (0.5, "ok"), (1.0, "uncertain"), (None, "ok")])
def test_improbable_expressions_are_uncertain(fan_file, model_file, portrait_path, min_confidence, status):
    predictor = Predictor(str(model_file), fan=str(fan_file), min_confidence=min_confidence)
    prediction = predictor(portrait_path)
    assert 0.5 < prediction.faces[0].confidence < 1
    assert prediction.status == prediction.faces[0].status == status


def test_the_models_own_confidence_is_the_default():
    predictor = Predictor()
    assert predictor.info.calibration is not None
    assert predictor.min_confidence == predictor.info.calibration.min_confidence > 0.5


@pytest.mark.parametrize("number", [-0.1, 1.1, float("nan")])
def test_a_confidence_out_of_range_is_refused(number):
    with pytest.raises(NkfError, match="expected 0 to 1"):
        Predictor(min_confidence=number)


@pytest.mark.parametrize(
    ("statuses", "best"),
    [
        (["low_quality", "uncertain", "ok"], "ok"),
        (["low_quality", "uncertain"], "uncertain"),
        (["low_quality", "low_quality"], "low_quality"),
    ],
)
def test_the_best_face_counts(statuses, best):
    fields = {"ok": {}, "uncertain": {"min_confidence": 0.9}, "low_quality": {"problems": ("small",)}}
    faces = tuple(
        FacePrediction(BOX, 0.9, np.zeros((68, 2)), np.zeros(68), "happiness", {"happiness": 0.8}, **fields[status])
        for status in statuses
    )
    assert [face.status for face in faces] == statuses
    assert best_status(faces) == best
    with pytest.raises(ValueError, match=f"expected {best}"):
        Prediction("a.jpg", 1, 1, "no_face", faces=faces)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "ok"}, "status 'ok' with no face; expected no_face or error"),
        ({"status": "uncertain"}, "status 'uncertain' with no face"),
        ({"status": "low_quality"}, "status 'low_quality' with no face"),
        ({"status": "error"}, "status 'error' with message None"),
        ({"status": "no_face", "message": "why"}, "status 'no_face' with message 'why'"),
    ],
)
def test_prediction_is_checked_when_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Prediction("a.jpg", 1, 1, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expression": "joy"}, "expression 'joy' is none of happiness"),
        ({"landmarks_px": np.zeros((5, 2))}, r"landmarks_px has shape \(5, 2\)"),
        ({"landmark_spread_px": np.zeros(5)}, r"landmark_spread_px has shape \(5,\)"),
    ],
)
def test_face_prediction_is_checked_when_made(fields, message):
    good = {"expression": "happiness", "probabilities": {"happiness": 1.0}}
    good |= {"landmarks_px": np.zeros((68, 2)), "landmark_spread_px": np.zeros(68)}
    with pytest.raises(ValueError, match=message):
        FacePrediction(BOX, 0.9, **(good | fields))


def test_explain_asks_the_network_about_the_faces_as_they_were_predicted(predictor, portrait_path, monkeypatch):
    seen = []

    def explain(model, crop_rgb, landmarks_px, index):
        seen.append((crop_rgb, landmarks_px, index))
        return explain_face(model, crop_rgb, landmarks_px, index)

    predicted = []
    monkeypatch.setattr("nkf.predict.explain_face", explain)
    monkeypatch.setattr("nkf.predict.align", lambda *a: predicted.append(align(*a)) or predicted[-1])
    prediction = predictor(portrait_path)
    explained = predictor.explain(portrait_path, prediction)
    ((crop_rgb, landmarks_px, index),) = seen
    assert len(predicted) == 2  # once for each
    np.testing.assert_array_equal(crop_rgb, predicted[0][0])
    np.testing.assert_allclose(landmarks_px, predicted[0][1])
    assert predictor.classes[index] == prediction.faces[0].expression
    (face,) = explained.to_dict()["faces"]
    assert face.pop("explanation") == explained.faces[0].explanation.to_dict()
    assert [face] == prediction.to_dict()["faces"]
    assert json.loads(json.dumps(explained.to_dict()))["faces"][0]["explanation"]["attention"] is None


def test_a_batch_takes_what_a_call_takes(predictor, portrait_path):
    with Image.open(portrait_path) as image:
        array = np.asarray(image.convert("RGB"))
        images = [portrait_path, portrait_path.read_bytes(), image, array]
        predictions = predictor.predict_batch(images)
    assert [prediction.path for prediction in predictions] == [str(portrait_path), None, None, None]
    assert len({str(prediction.to_dict()["faces"]) for prediction in predictions}) == 1
    with pytest.raises(ImageError, match="an image of type int"):
        predictor.predict_batch([array, 1])
    with pytest.raises(NkfError, match="1 paths for 2 images"):
        predictor.predict_batch([array, array], ["a"])


def test_one_string_is_no_list_of_files(predictor):
    with pytest.raises(NkfError, match=r"predict_files\('a.jpg'\): expected a list of files"):
        next(predictor.predict_files("a.jpg"))
