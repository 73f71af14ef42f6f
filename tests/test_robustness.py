import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nkf.corruptions import CORRUPTIONS, SEVERITIES, corrupt, damage_generator
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError
from nkf.geometry import MEAN_SHAPE
from nkf.machine import machine
from nkf.metrics import wilson_interval
from nkf.report_curves import draw_landmark_noise, draw_robustness
from nkf.robustness import (
    NOISES,
    choose,
    colour_agreement,
    corrupted_crops,
    measure_robustness,
    noise_curve,
    noisy_landmarks,
    relative_drop,
)
from nkf.runtime import ExpressionModel, load_expression_model
from nkf.views import View

Judge = Callable[[NDArray[np.float32]], NDArray[np.bool_]]


@pytest.fixture
def sees(monkeypatch: pytest.MonkeyPatch, model_file: Path) -> Callable[[Judge], list[Any]]:
    """Have the network answer happiness where a function of the crops (B, 3, S, S) holds, else disgust."""

    def use(judge: Judge) -> list[Any]:
        crops_seen: list[Any] = []

        def network(crops: NDArray[np.float32], landmarks_px: NDArray[np.float32]) -> NDArray[np.float32]:
            crops_seen.extend(crops)
            return np.eye(8, dtype=np.float32)[np.where(judge(crops), 1, 5)]

        def load(model: str, device: str) -> Any:
            info = load_expression_model(str(model_file), "cpu")[1]
            return ExpressionModel(info, network), info

        monkeypatch.setattr("nkf.robustness.load_expression_model", load)
        return crops_seen

    return use


def measured(pack: Path, out: Path, **options: Any) -> dict[str, Any]:
    return measure_robustness(pack, out, landmarks="pack", device="cpu", **options)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write empty files in the place of pictures, which take seconds."""
    for name in ("draw_robustness", "draw_landmark_noise"):
        monkeypatch.setattr(f"nkf.robustness.{name}", lambda results, file: file.write_bytes(b""))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, undrawn: None) -> Callable[..., None]:
    """Measure some conditions alone."""
    return lambda *conditions: monkeypatch.setattr("nkf.robustness.CONDITIONS", conditions)


def test_files_hold_every_condition(mini_pack: Path, model_file: Path, tmp_path: Path, undrawn: None) -> None:
    """The fake model answers happiness whatever it sees: right for every second face."""
    result = measured(mini_pack, tmp_path / "out", model=str(model_file), seed=3, limit=4)
    saved = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert saved == json.loads(json.dumps(result))
    table = list(csv.DictReader((tmp_path / "out" / "robustness.csv").read_text().splitlines()))
    assert [row["label"] for row in table].count("happiness") == 2
    assert list(table[0])[:4] == ["name", "label", "clean", "rotation-1"]
    assert [list(row.values())[2:] for row in table] == [["happiness"] * 51] * 4
    known = [row["label"] for row in table if int(row["name"][4:6]) % 8 != 7]  # see `mini_pack`
    head = {"schema": 1, "model": "nkf", "data": "mini", "split": "valid", "rule": "majority", "landmarks": "pack"}
    assert head.items() <= saved.items()
    assert (saved["seed"], saved["n"], saved["n_in_split"]) == (3, 4, 16)
    assert saved["machine"] == machine("cpu")
    assert saved["seconds"] > 0
    half = {"n": 4, "accuracy": 0.5, "accuracy_ci95": list(wilson_interval(2, 4))}
    half |= {"landmarks_missing": 4 - len(known)}
    none = {"relative_drop": 0, "relative_drop_ci95": [0, 0]}
    assert saved["clean"] == half
    assert saved["mean"] == {"accuracy": 0.5} | none
    assert list(saved["corruptions"]) == list(CORRUPTIONS) == list(saved["units"])
    for name, rows in saved["corruptions"].items():
        amounts = zip(SEVERITIES, CORRUPTIONS[name].amounts, strict=True)
        assert rows == [{"severity": severity, "amount": amount} | half | none for severity, amount in amounts]
    right = known.count("happiness")
    point = {"n": len(known), "accuracy": right / len(known), "accuracy_ci95": [*wilson_interval(right, len(known))]}
    curve = [{"noise": noise} | point for noise in NOISES]
    assert saved["landmark_noise"] == {"n": len(known), "features": curve, "alignment": curve}
    written = {"robustness.json", "robustness.csv", "robustness.png", "landmark_noise.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == written


def test_what_the_network_cannot_see_costs_accuracy(mini_pack: Path, sees: Any, only: Any, tmp_path: Path) -> None:
    """It sees where there is light: severe darkness costs all accuracy, which is a third of what the mean tells."""
    only(("darkness", 5), ("blur", 5), ("rotation", 5))
    sees(lambda crops: crops.mean(axis=(1, 2, 3)) > 0.3)
    result = measured(mini_pack, tmp_path)
    (dark,), (blurred,), (turned,) = (result["corruptions"][name] for name in ("darkness", "blur", "rotation"))
    assert (result["clean"]["accuracy"], dark["accuracy"], blurred["accuracy"], turned["accuracy"]) == (
        0.5,
        0,
        0.5,
        0.5,
    )
    assert (dark["relative_drop"], dark["relative_drop_ci95"]) == (1, (1, 1))
    assert (blurred["relative_drop"], blurred["relative_drop_ci95"]) == (0, (0, 0))
    assert result["mean"]["accuracy"] == pytest.approx(1 / 3)
    assert result["mean"]["relative_drop"] == pytest.approx(1 / 3)


def test_nothing_right_has_no_drop(mini_pack: Path, sees: Any, only: Any, tmp_path: Path) -> None:
    only(("blur", 1))
    sees(lambda crops: np.zeros(len(crops), bool))
    result = measured(mini_pack, tmp_path, limit=2)
    assert (result["clean"]["accuracy"], result["mean"]["relative_drop"]) == (0, None)
    assert result["corruptions"]["blur"][0]["relative_drop_ci95"] is None


def test_a_picture_gets_the_same_damage_whatever_else_is_measured(
    mini_pack: Path, sees: Any, only: Any, tmp_path: Path
) -> None:
    crops, seen = sees(lambda crops: np.ones(len(crops), bool)), []
    for limit, seed, conditions in ((4, 0, "noise occlusion"), (2, 0, "occlusion"), (4, 1, "noise occlusion")):
        only(*((name, 3) for name in conditions.split()))
        crops.clear()
        measured(mini_pack, tmp_path, limit=limit, seed=seed)
        seen.append({crop.tobytes() for crop in crops[: limit * (1 + len(conditions.split()))]})
    most, few, other = seen
    assert [len(one) for one in seen] == [12, 4, 12]
    assert few <= most
    assert len(other & most) <= 4  # clean ones, as far as both seeds chose them


class Asked:
    """A finder that remembers what it is asked, and finds nothing."""

    def __init__(self) -> None:
        self.images: list[Any] = []
        self.boxes: list[Any] = []

    def __call__(self, images: Any, boxes_xyxy: Any, shows: str) -> list[None]:
        self.images += images
        self.boxes += boxes_xyxy
        return [None] * len(images)


def photo_pack(path: Path, **fields: Any) -> Pack:
    """One picture of 80x40."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3)).astype(np.uint8)).save(stream, "PNG")
    with PackWriter(path, {"dataset": "photos", "shows": "photo"}) as writer:
        writer.add(Sample("a", "test", stream.getvalue(), label="happiness", **fields))
    return Pack(path)


def test_boxes_turn_with_the_face(model_file: Path, tmp_path: Path) -> None:
    """By 60°, about the middle of the landmarks' box, which is 10 px right of the middle of the given box."""
    landmarks = MEAN_SHAPE - (MEAN_SHAPE.min(axis=0) + MEAN_SHAPE.max(axis=0)) / 2
    landmarks = (landmarks * 30 + [40, 20]).astype(np.float32)
    box = np.array([20, 8, 40, 32], np.float32)
    pack, finder = photo_pack(tmp_path / "pack", box_xyxy=box, landmarks_px=landmarks), Asked()
    view = View(pack, load_expression_model(str(model_file), "cpu")[0], finder)
    rows = np.array([0])
    view.classify(rows)
    for number in range(6):
        view.classify(rows, lambda _, *face, n=number: corrupt(*face, "rotation", 5, np.random.default_rng(n)))
    np.testing.assert_array_equal(finder.boxes[0], box)
    turned = {tuple(np.round(one, 3).tolist()) for one in finder.boxes[1:]}
    middles = [(40 - 10 * 0.5, 20 - sign * 10 * math.sqrt(0.75)) for sign in (1, -1)]
    expected = [(x - 10, y - 12, x + 10, y + 12) for x, y in middles]
    np.testing.assert_allclose(sorted(turned), sorted(expected), atol=0.01)


@pytest.mark.parametrize(("box", "side", "middle"), [(None, 40, (40, 20)), ((50, 10, 80, 30), 20, (65, 20))])
def test_a_face_without_landmarks_is_damaged_by_its_box(
    model_file: Path, tmp_path: Path, box: tuple[int, ...] | None, side: int, middle: tuple[int, int]
) -> None:
    fields = {} if box is None else {"box_xyxy": np.array(box, np.float32)}
    shown: list[Any] = []

    def change(row: int, image: Any, points: Any) -> Any:
        shown.append(points)
        return image, points

    view = View(photo_pack(tmp_path / "pack", **fields), load_expression_model(str(model_file), "cpu")[0], None)
    _, missing = view.classify(np.array([0]), change)
    assert missing == 1
    np.testing.assert_allclose(shown[0], (MEAN_SHAPE - 0.5) * side + middle)


def test_our_own_landmarks_are_found_in_the_damaged_pictures(
    model_file: Path, only: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(("jpeg", 1))
    pack, finder = photo_pack(tmp_path / "pack"), Asked()
    monkeypatch.setattr("nkf.robustness.LandmarkFinder", lambda device: finder)
    result = measure_robustness(pack.path, tmp_path / "out", model=str(model_file), split="test", device="cpu")
    clean, damaged, again = finder.images  # the last one for the noise on its landmarks
    np.testing.assert_array_equal(clean, pack.image(0))
    np.testing.assert_array_equal(again, clean)
    # A face of the whole picture's box is 40 px, times what the mean shape takes of it.
    face = (MEAN_SHAPE - 0.5) * 40 + [40, 20]
    expected, _ = corrupt(clean, face, "jpeg", 1, damage_generator(0, "jpeg", 1, "test/a"))
    np.testing.assert_array_equal(damaged, expected)
    assert (result["landmarks"], result["clean"]["landmarks_missing"]) == ("fan", 1)
    assert result["corruptions"]["jpeg"][0]["landmarks_missing"] == 1
    assert result["landmark_noise"] == {"n": 0, "features": [], "alignment": []}


def test_features_read_beside_their_place_cost_what_the_normal_distribution_says() -> None:
    """Right where the nasal base lies within 2 px of its place: with σ = noise * 3.6 px, P(|x| < 2) = erf(...)."""
    count, noises = 4000, (0.0, 0.2, 0.5, 1.0)
    landmarks = np.repeat((MEAN_SHAPE * 10)[None], count, axis=0)
    crops = np.zeros((count, 8, 8, 3), np.uint8)

    def network(crops: Any, landmarks_px: Any) -> tuple[Any]:
        near = np.abs(landmarks_px[:, 33, 0] - MEAN_SHAPE[33, 0] * 10) < 2
        return (np.stack([~near, near], axis=1).astype(np.float32),)

    curve = noise_curve(network, crops, landmarks, np.ones(count, int), noises, seed=1)
    assert [row["noise"] for row in curve] == list(noises)
    eyes = MEAN_SHAPE[42:48].mean(axis=0) - MEAN_SHAPE[36:42].mean(axis=0)
    sigmas = [noise * 10 * np.linalg.norm(eyes) for noise in noises]
    expected = [math.erf(2 / sigma / math.sqrt(2)) if sigma else 1 for sigma in sigmas]
    assert [row["accuracy"] for row in curve] == pytest.approx(expected, abs=0.02)
    right = round(curve[2]["accuracy"] * count)
    assert curve[2]["accuracy_ci95"] == wilson_interval(right, count)
    plain = noise_curve(lambda *batch: network(*batch)[0], crops, landmarks, np.ones(count, int), noises, seed=1)
    assert plain == curve


def test_noise_of_a_face_keeps_its_direction() -> None:
    landmarks = np.repeat((MEAN_SHAPE * 100)[None], 5, axis=0)
    small, large = (noisy_landmarks(landmarks, noise, seed=2) - landmarks for noise in (0.01, 0.2))
    np.testing.assert_allclose(large, 20 * small, atol=1e-9)
    np.testing.assert_allclose(noisy_landmarks(landmarks[:3], 0.2, seed=2), (landmarks + large)[:3])
    assert not np.allclose(noisy_landmarks(landmarks, 0.2, seed=3), landmarks + large)


def test_crops_are_damaged_by_their_number() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    landmarks = np.repeat((MEAN_SHAPE * 32)[None], 3, axis=0).astype(np.float32)
    damaged, moved = corrupted_crops(crops, landmarks, "rotation", 2, seed=7)
    assert (damaged.shape, moved.shape, moved.dtype) == (crops.shape, landmarks.shape, np.float32)
    expected, points = corrupt(crops[2], landmarks[2], "rotation", 2, damage_generator(7, "rotation", 2, 2))
    np.testing.assert_array_equal(damaged[2], expected)
    np.testing.assert_allclose(moved[2], points, rtol=1e-6)
    np.testing.assert_array_equal(corrupted_crops(crops[:2], landmarks[:2], "rotation", 2, seed=7)[0], damaged[:2])


def test_interval_of_the_drop_is_that_of_a_paired_bootstrap() -> None:
    generator = np.random.default_rng(0)
    clean = generator.random(300) < 0.8
    damaged = np.where(generator.random(300) < 0.7, clean, generator.random(300) < 0.3)
    drop, interval = relative_drop(clean, damaged)
    assert drop == pytest.approx((clean.sum() - damaged.sum()) / clean.sum())
    resampled = generator.integers(0, 300, (4000, 300))
    before, after = clean[resampled].mean(axis=1), damaged[resampled].mean(axis=1)
    assert interval == pytest.approx(np.percentile((before - after) / before, [2.5, 97.5]), abs=0.01)


def test_limit_draws_in_proportion_to_the_classes() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    chosen = choose(labels, 50, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [30, 15, 5]
    assert (np.diff(chosen) > 0).all()
    assert not np.array_equal(chosen, choose(labels, 50, seed=1))
    for limit in (None, 1000, 2000):
        np.testing.assert_array_equal(choose(labels, limit, seed=0), np.arange(1000))
    with pytest.raises(NkfError, match="limit 0: expected at least 1 image"):
        choose(labels, 0, seed=0)
    with pytest.raises(NkfError, match="seed -1: expected 0 or more"):
        choose(labels, None, seed=-1)


COLOURS = [(200, 40, 40), (60, 60, 60), (30, 160, 30), (40, 200, 40), (220, 30, 60), (20, 120, 60)]


def colour_pack(path: Path, colours: list[tuple[int, int, int]]) -> Path:
    with PackWriter(path, {"dataset": "colours"}) as writer:
        for number, colour in enumerate(colours):
            stream = io.BytesIO()
            Image.new("RGB", (20, 20), colour).save(stream, "PNG")
            writer.add(Sample(f"{number}", "train", stream.getvalue()))
    return path


def test_agreement_of_colour_and_grey(sees: Any, tmp_path: Path) -> None:
    """The network sees red: without colour it changes its mind on the two red pictures, on the three green ones not."""
    sees(lambda crops: (crops[:, 0] > crops[:, 1] + 0.1).all(axis=(1, 2)))
    pack = colour_pack(tmp_path / "pack", COLOURS)
    result = colour_agreement(pack, tmp_path, landmarks="pack", device="cpu")
    assert json.loads((tmp_path / "colour.json").read_text()) == json.loads(json.dumps(result))
    assert (result["schema"], result["n"], result["n_grey_left_out"], result["agreement"]) == (1, 5, 1, 3 / 5)
    assert result["agreement_ci95"] == wilson_interval(3, 5)
    assert result["mean_absolute_difference"] == pytest.approx(2 * 2 / (5 * 8))
    assert result["landmarks_missing"] == {"colour": 5, "grey": 5}
    assert colour_agreement(pack, tmp_path, landmarks="pack", device="cpu", limit=2)["n"] == 2


def test_a_grey_pack_has_no_colour_agreement(model_file: Path, tmp_path: Path) -> None:
    pack = colour_pack(tmp_path / "pack", COLOURS[1:2])
    with pytest.raises(NkfError, match="pack: no picture in colour in the train split; it has 1 images"):
        colour_agreement(pack, tmp_path / "out", model=str(model_file))
    with pytest.raises(NkfError, match="limit 0: expected at least 1 image"):
        colour_agreement(pack, tmp_path / "out", model=str(model_file), limit=0)
    (tmp_path / "out").write_text("")
    with pytest.raises(NkfError, match="out: a file, expected a folder for the results"):
        colour_agreement(pack, tmp_path / "out", model=str(model_file))


def drawn(result: dict[str, Any], draw: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure that a function saves."""
    figures: list[Any] = []
    from matplotlib.figure import Figure

    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or savefig(self, *a, **k))
    draw({"one": result, "two": result}, file)
    with Image.open(file) as picture:
        assert picture.width > 600
    return figures[0]


def rows(accuracies: list[float], **fields: list[float]) -> list[dict[str, Any]]:
    return [
        {"accuracy": a, "accuracy_ci95": [a - 0.1, a + 0.1], **{name: values[n] for name, values in fields.items()}}
        for n, a in enumerate(accuracies)
    ]


def test_pictures_show_the_saved_numbers_of_each_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    severities = {"amount": [1, 2, 3, 4, 5]}
    result = {
        "clean": rows([0.9])[0],
        "units": dict.fromkeys("abcdef", "px"),
        "corruptions": {name: rows([0.8, 0.7, 0.6, 0.5, 0.4], **severities) for name in "abcdef"},
        "landmark_noise": {"features": rows([0.9, 0.5], noise=[0, 0.2]), "alignment": rows([0.9, 0.3], noise=[0, 0.2])},
    }
    figure = drawn(result, draw_robustness, tmp_path / "a.png", monkeypatch)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == list("abcdef")
    assert [line.get_label() for line in panels[5].lines] == ["one", "two"]
    assert panels[5].lines[0].get_ydata().tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["clean", "1", "2", "3", "4", "5"]
    figure = drawn(result, draw_landmark_noise, tmp_path / "b.png", monkeypatch)
    assert [axes.lines[1].get_xydata().tolist() for axes in figure.axes] == [
        [[0, 0.9], [0.2, 0.5]],
        [[0, 0.9], [0.2, 0.3]],
    ]
