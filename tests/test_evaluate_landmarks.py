"""Measuring landmarks: placement of the crops, figures, files."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest

from nkf.cli import main
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.evaluate_landmarks import (
    CONDITIONS,
    Condition,
    KnownFaces,
    blur,
    coverage,
    darken,
    describe,
    evaluate_landmarks,
    first_crop,
    measure,
    shrink,
    subsets,
)
from nkf.geometry import MEAN_SHAPE, loose_square, transform_points
from nkf.runtime import FoundLandmarks

SHAPE = MEAN_SHAPE * 60 + 20
STILL = Condition(rotation_deg=0, scale=0, shift=0)


@pytest.fixture
def faces(mini_pack):
    return KnownFaces.choose([Pack(mini_pack)], "train", "all", None)


class Blind:
    """A network that always says where the mean face lies in an unchanged loose crop, and expects 2 px of error."""

    info = SimpleNamespace(input_size=112, name="blind")

    def __call__(self, crops):
        x, y, side, _ = loose_square(MEAN_SHAPE)
        shape = ((MEAN_SHAPE - [x, y]) / side + 0.5) * 112
        return FoundLandmarks(np.repeat(shape[None], len(crops), axis=0), np.full((len(crops), 68), 2.0))


def test_first_crop_turns_scales_and_shifts_the_face():
    plain = transform_points(first_crop(SHAPE, 112, 0, 1, 0, 0), SHAPE)
    assert np.ptp(plain, axis=0).max() == pytest.approx(112 / 1.3)
    moved = transform_points(first_crop(SHAPE, 112, 0, 1.2, 0.1, -0.05), SHAPE)
    np.testing.assert_allclose(moved - 56, (plain - 56) * 1.2 + [11.2, -5.6], atol=1e-9)
    quarter = transform_points(first_crop(SHAPE, 112, 90, 1, 0, 0), SHAPE)
    np.testing.assert_allclose(quarter - 56, (plain - 56) @ [[0, 1], [-1, 0]], atol=1e-9)  # clockwise: x to y


def test_a_blind_network_errs_with_the_placement(faces):
    still, turned, loose = (
        measure(Blind(), faces, condition, passes=1).per_face.mean()
        for condition in (STILL, Condition(rotation_deg=30, scale=0, shift=0, exact=True), CONDITIONS["loose"])
    )
    assert still < 0.03  # the drawn faces are mean faces
    assert turned > 0.2
    assert loose > 0.2


def test_the_same_seed_places_the_same_crops(faces):
    first, again, other = (measure(Blind(), faces, CONDITIONS["loose"], seed=seed).per_face for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_degraded_pictures_keep_their_truth(faces):
    for name, degrade in {"shrink": shrink(20), "blur": blur(0.05), "dark": darken}.items():
        errors = measure(Blind(), faces, Condition(0, 0, 0, degrade=degrade), passes=1)
        assert errors.per_face.mean() < 0.05, name
    image, factor = shrink(20)(np.zeros((48, 48, 3), np.uint8), 40.0)
    assert image.shape == (24, 24, 3)
    assert factor == 0.5
    assert shrink(99)(image, 20.0)[1] == 1


def test_describe():
    row = describe(np.array([0.02, 0.03, 0.04, 0.19]))
    assert (row["n"], row["mean"], row["median"], row["failures"]) == (4, 0.07, 0.035, 0.25)
    low, high = row["mean_ci95"]
    assert low < 0.07 < high


def test_coverage_of_distances_that_follow_the_model():
    radius = np.random.default_rng(0).gamma(2, 1.5, (500, 68))  # b = 1.5, so the mean is 3
    good = SimpleNamespace(distances=radius, spread=np.full_like(radius, 3.0))
    for name, share in coverage(good).items():
        assert share == pytest.approx(float(name.rstrip("%")) / 100, abs=0.01)
    overconfident = SimpleNamespace(distances=radius, spread=np.full_like(radius, 1.0))
    assert coverage(overconfident)["95%"] < 0.7


def test_subsets_cover_every_face_once_in_each_kind(faces):
    masks = subsets(faces, measure(Blind(), faces, CONDITIONS["loose"]))
    for kind in ("pack", "rotation", "yaw", "size"):
        total = sum(mask.astype(int) for title, mask in masks.items() if title.startswith(kind))
        np.testing.assert_array_equal(total, 1)


def test_choose_takes_faces_with_landmarks_only(mini_pack):
    pack = Pack(mini_pack)
    everything = KnownFaces.choose([pack, pack], "train", "all", None)
    assert len(everything.rows) == 2 * 28  # every eighth has none
    held_out = KnownFaces.choose([pack], "train", "held_out", None)
    assert 0 < len(held_out.rows) < 28
    assert len(KnownFaces.choose([pack], "train", "all", 7).rows) == 7
    with pytest.raises(NkfError, match="no face with landmarks in the test split"):
        KnownFaces.choose([pack], "test", "all", None)


def test_files(mini_pack, fan_file, tmp_path):
    result = evaluate_landmarks([mini_pack], tmp_path / "out", model=str(fan_file), which="all", limit=4, device="cpu")
    names = {"landmarks.json", "faces.csv", "cumulative.png", "calibration.png", "cases.png", "random.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    assert json.loads((tmp_path / "out" / "landmarks.json").read_text()) == json.loads(json.dumps(result))
    assert set(result["conditions"]) == set(CONDITIONS)
    assert result["conditions"]["loose"]["n"] == 28
    assert result["conditions"]["dark"]["n"] == 4
    with (tmp_path / "out" / "faces.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert np.mean([float(row["error"]) for row in rows]) == pytest.approx(
        result["conditions"]["loose"]["mean"], abs=1e-4
    )


def test_command(mini_pack, fan_file, tmp_path, capsys):
    options = ["--which", "all", "--limit", "2", "--model", str(fan_file), "--out", str(tmp_path / "out")]
    assert main(["evaluate-landmarks", str(mini_pack), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("turned 45°") for line in lines)
    assert any(line.startswith("inner_lip") for line in lines)
    assert lines[-1] == f"written to {tmp_path / 'out'}"
    assert main(["evaluate-landmarks", str(tmp_path / "none"), *options]) == 2
