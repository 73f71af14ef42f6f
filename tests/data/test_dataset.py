from pathlib import Path

import numpy as np
import pytest

from nkf.data.dataset import load_crops, training_targets
from nkf.data.pack import Pack
from nkf.geometry import CROP_TEMPLATE, MEAN_SHAPE, five_points

VOTES = np.array([[0.8, 0.2, 0.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("soft", "smoothing", "expected"),
    [
        (True, 0.0, [0.8, 0.2, 0.0, 0.0]),
        (False, 0.0, [1.0, 0.0, 0.0, 0.0]),
        (False, 0.2, [0.85, 0.05, 0.05, 0.05]),
        (True, 0.2, [0.69, 0.21, 0.05, 0.05]),
    ],
)
def test_targets(soft: bool, smoothing: float, expected: list[float]) -> None:
    targets = training_targets(np.array([0]), VOTES, soft=soft, smoothing=smoothing)
    np.testing.assert_allclose(targets, [expected], atol=1e-6)


def test_aligned_crops_put_the_landmarks_on_the_template(mini_pack: Path) -> None:
    crops = load_crops(Pack(mini_pack), "aligned", 32)
    assert crops.images.shape == (48, 32, 32, 3)
    assert crops.found.sum() == 42
    error = five_points(crops.landmarks_px[crops.found]) / 32 - CROP_TEMPLATE
    assert np.abs(error).max() < 0.05  # a similarity fits the mean shape's five points to the template only nearly
    np.testing.assert_allclose(
        crops.landmarks_px[~crops.found], np.broadcast_to(MEAN_SHAPE * 32, (6, 68, 2)), atol=1e-4
    )


def test_crops_are_cut_once(mini_pack: Path) -> None:
    first = load_crops(Pack(mini_pack), "whole", 48)
    files = sorted((mini_pack / "cache").glob("whole48-*"))
    written = [file.stat().st_mtime_ns for file in files]
    again = load_crops(Pack(mini_pack), "whole", 48)
    assert [file.stat().st_mtime_ns for file in files] == written
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.images[0], Pack(mini_pack).image(0))  # 48 pixels, shown as they are
