import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from nkf import corruptions
from nkf.corruptions import CORRUPTIONS, REFERENCE_PX, SEVERITIES, corrupt, damage_generator, is_grey, to_grey
from nkf.errors import NkfError
from nkf.geometry import MEAN_SHAPE
from nkf.images import read_image
from nkf.quality import face_size

EVERY = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def face_of(size: float, centre: tuple[float, float]) -> NDArray[np.float64]:
    """Landmarks (68, 2) of a face whose box has that longer side, around `centre`."""
    shape = MEAN_SHAPE - (MEAN_SHAPE.min(axis=0) + MEAN_SHAPE.max(axis=0)) / 2
    return shape * size / np.ptp(MEAN_SHAPE, axis=0).max() + centre


@pytest.fixture(scope="module")
def portrait(portrait_path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """256x256 around the face, 128 px large."""
    return read_image(portrait_path)[16:272, 96:352].copy(), face_of(128, (128, 128))


def halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).reduce(2))


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def test_the_table_in_the_docstring_is_complete() -> None:
    rows = re.findall(r"^\| (\w+) \| (.*) \|$", corruptions.__doc__ or "", re.MULTILINE)[1:]
    assert [name for name, _ in rows] == list(CORRUPTIONS)
    for name, text in rows:
        told = [float(number) / (100 if "%" in text else 1) for number in re.findall(r"[\d.]+", text)[:5]]
        assert told == pytest.approx(CORRUPTIONS[name].amounts)


@pytest.mark.parametrize(("name", "severity"), EVERY)
def test_damage_is_a_function_of_its_generator(portrait: Any, name: str, severity: int) -> None:
    image, landmarks = halved(portrait[0]), portrait[1] / 2
    before = image.copy(), landmarks.copy()
    one, moved = corrupt(image, landmarks, name, severity, generator())
    again, moved_again = corrupt(image, landmarks, name, severity, generator())
    assert (one.shape, one.dtype, moved.shape) == (image.shape, np.uint8, (68, 2))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(moved, moved_again)
    assert name == "rotation" or moved is landmarks
    assert distance(one, image) > 0.1
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(landmarks, before[1])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_grows_with_severity(portrait: Any, name: str) -> None:
    image, landmarks = halved(portrait[0]), portrait[1] / 2
    steps = [
        np.mean([distance(corrupt(image, landmarks, name, severity, generator(seed))[0], image) for seed in range(6)])
        for severity in SEVERITIES
    ]
    assert (np.diff(steps) > 0).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_grey_picture_stays_grey(portrait: Any, name: str) -> None:
    image, landmarks = portrait
    assert is_grey(corrupt(to_grey(image), landmarks, name, 4, generator())[0])
    assert not is_grey(image)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"noise"}))
def test_small_and_large_pictures_are_damaged_alike(portrait: Any, name: str) -> None:
    image, landmarks = portrait
    large, large_points = corrupt(image, landmarks, name, 4, generator())
    small, small_points = corrupt(halved(image), landmarks / 2, name, 4, generator())
    np.testing.assert_allclose(small_points, large_points / 2)
    damage = distance(halved(large), halved(image))
    assert distance(small, halved(large)) < (0.5 if name == "jpeg" else 0.1) * damage  # its rounding is coarse


@pytest.mark.parametrize(("severity", "degrees"), [(1, 10), (2, 20), (3, 30), (4, 45), (5, 60)])
def test_rotation_moves_the_landmarks_with_the_picture(severity: int, degrees: float) -> None:
    landmarks = face_of(60, (70, 55))
    image = np.full((120, 140, 3), 50, np.uint8)
    y, x = np.mgrid[:120, :140] + 0.5
    for number in (36, 45, 8):
        px, py = landmarks[number]
        image[(x - px) ** 2 + (y - py) ** 2 < 9] = 250
    angles = set()
    for seed in range(6):
        turned, moved = corrupt(image, landmarks, "rotation", severity, generator(seed))
        (bx, by), (ax, ay) = landmarks[45] - landmarks[36], moved[45] - moved[36]
        angles.add(round(math.degrees(math.atan2(bx * ay - by * ax, bx * ax + by * ay)), 6))
        radii = [np.linalg.norm(points - [70, 55], axis=1) for points in (landmarks, moved)]
        np.testing.assert_allclose(*radii)
        for number in (36, 45, 8):
            px, py = moved[number]
            assert (turned[(x - px) ** 2 + (y - py) ** 2 < 3] > 200).all()
    assert angles == {degrees, -degrees}


def test_rotation_repeats_the_edge() -> None:
    image = np.full((40, 80, 3), 200, np.uint8)
    image[15:25, 35:45] = 90  # far from the edges
    turned, _ = corrupt(image, face_of(30, (40, 20)), "rotation", 5, generator())
    assert turned.shape == image.shape
    assert turned[[0, 0, -1, -1], [0, -1, 0, -1]].min() == 200
    assert 0.8 < (turned < 145).sum() / (image < 145).sum() < 1.2


@pytest.mark.parametrize(("severity", "share"), [(1, 0.05), (2, 0.1), (3, 0.2), (4, 0.3), (5, 0.4)])
def test_occlusion_covers_its_share_of_the_face(severity: int, share: float) -> None:
    landmarks = face_of(200, (150, 150))
    (x0, y0), (x1, y1) = landmarks.min(axis=0), landmarks.max(axis=0)
    image = generator(9).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    centres = []
    for seed in range(5):
        covered, _ = corrupt(image, landmarks, "occlusion", severity, generator(seed))
        rows, columns = np.nonzero((covered != image).any(axis=2))
        assert (columns.min() >= math.floor(x0)) & (columns.max() <= math.ceil(x1))
        assert (rows.min() >= math.floor(y0)) & (rows.max() <= math.ceil(y1))
        assert len(rows) == pytest.approx(share * (x1 - x0) * (y1 - y0), rel=0.04)
        assert len(np.unique(covered[rows, columns], axis=0)) == 1
        centres.append((rows.mean(), columns.mean()))
    assert np.std(centres, axis=0).min() > 3


def test_occlusion_of_a_face_outside_its_picture_covers_nothing() -> None:
    image = generator().integers(0, 256, (20, 20, 3)).astype(np.uint8)
    np.testing.assert_array_equal(corrupt(image, face_of(10, (50, 50)), "occlusion", 5, generator())[0], image)


def test_blur_is_gaussian(portrait: Any) -> None:
    image, landmarks = portrait
    sigma = CORRUPTIONS["blur"].amounts[2] * 128
    expected = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest")
    assert distance(corrupt(image, landmarks, "blur", 3, generator())[0], np.rint(expected).astype(np.uint8)) < 1


def test_motion_blur_is_a_line_of_its_length() -> None:
    landmarks = face_of(100, (100, 100))
    image = np.zeros((200, 200, 3), np.uint8)
    image[96:105, 96:105] = 240  # a square of 9 px: its own variance is known
    for seed in range(4):
        smeared = corrupt(image, landmarks, "motion_blur", 5, generator(seed))[0][..., 0].astype(float)
        y, x = np.nonzero(smeared)
        weights = smeared[y, x]
        variances = np.linalg.eigvalsh(np.cov(np.stack([x, y]), aweights=weights, ddof=0))
        assert weights.sum() == pytest.approx(81 * 240, rel=0.02)
        assert (np.average(x, weights=weights), np.average(y, weights=weights)) == pytest.approx((100, 100), abs=0.1)
        assert variances[0] == pytest.approx(80 / 12, rel=0.1)  # across
        assert variances[1] == pytest.approx(80 / 12 + 36**2 / 12, rel=0.1)  # along: of a line of 36 px


def test_low_resolution_loses_fine_patterns_alone() -> None:
    left = []
    for period in (6, 80):
        wave = 127 + 100 * np.cos(2 * np.pi * np.arange(100) / period)
        image = np.broadcast_to(wave[None, :, None], (100, 100, 3)).astype(np.uint8)
        small, _ = corrupt(image, face_of(100, (50, 50)), "low_resolution", 5, generator())
        left.append(small.std() / image.std())
    assert left[0] < 0.05
    assert left[1] > 0.85


def test_low_resolution_leaves_a_smaller_face(portrait: Any) -> None:
    image, _ = portrait
    same, _ = corrupt(image, face_of(20, (128, 128)), "low_resolution", 1, generator())
    np.testing.assert_array_equal(same, image)


@pytest.mark.parametrize(("severity", "gain"), [(1, 0.6), (2, 0.4), (3, 0.25), (4, 0.15), (5, 0.08)])
def test_darkness_leaves_its_share_of_the_light_and_noise(severity: int, gain: float) -> None:
    image = np.full((200, 200, 3), 200, np.uint8)
    image[..., 1] = 180
    dark, _ = corrupt(image, face_of(80, (100, 100)), "darkness", severity, generator())
    np.testing.assert_allclose(dark.mean(axis=(0, 1)), image[0, 0] * gain, atol=0.1)
    assert dark[..., 0].std() == pytest.approx(math.hypot(2, 1 / math.sqrt(12)), rel=0.03)  # and rounding


def test_overexposure_clips_at_white() -> None:
    image = np.array([[[0, 50, 100], [150, 182, 255]]], np.uint8)
    bright, _ = corrupt(image, face_of(2, (1, 0.5)), "overexposure", 1, generator())
    assert bright.tolist() == [[[0, 70, 140], [210, 255, 255]]]


def test_contrast_shrinks_around_the_mean_of_the_face_alone(portrait: Any) -> None:
    image, landmarks = portrait
    inside = slice(70, 186), slice(70, 186)
    flat, _ = corrupt(image, landmarks, "contrast", 3, generator())
    before, after = image[inside].astype(float), flat[inside].astype(float)
    np.testing.assert_allclose(np.polyfit(before.ravel(), after.ravel(), 1)[0], 0.35, atol=0.005)
    framed = np.full_like(image, 255)
    framed[60:196, 60:196] = image[60:196, 60:196]
    np.testing.assert_array_equal(corrupt(framed, landmarks, "contrast", 3, generator())[0][inside], flat[inside])


@pytest.mark.parametrize(("face", "factor"), [(80, 1), (160, 1), (320, 1), (40, 2), (20, 4)])
def test_noise_has_the_same_power_per_area_of_a_face(face: int, factor: int) -> None:
    """Seen at the reference size: σ of a larger face's blocks, σ / factor of a smaller one's pixels."""
    image = np.full((320, 320, 3), 128, np.uint8)
    image[0, 0, 0] = 0  # so that it is not grey
    noisy = corrupt(image, face_of(face, (160, 160)), "noise", 2, generator())[0].astype(float)
    block = max(1, face // 80)
    means = noisy.reshape(320 // block, block, 320 // block, block, 3).mean(axis=(1, 3))
    assert means.std() == pytest.approx(20 / factor, rel=0.03)
    assert np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.03)


def test_jpeg_at_the_reference_size_is_what_pillow_saves(portrait: Any) -> None:
    image, _ = portrait
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=12)
    landmarks = face_of(REFERENCE_PX, (128, 128))
    assert face_size(landmarks) == pytest.approx(80)
    saved, _ = corrupt(image, landmarks, "jpeg", 4, generator())
    np.testing.assert_array_equal(saved, np.asarray(Image.open(stream)))


def test_a_tiny_face_does_not_make_jpeg_enlarge_a_photo(monkeypatch: pytest.MonkeyPatch, portrait: Any) -> None:
    image, _ = portrait
    monkeypatch.setattr(corruptions, "MAX_ENLARGED_PIXELS", 256 * 256 * 4)
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *a: sizes.append(size) or resize(self, size, *a))
    corrupt(image, face_of(4, (100, 100)), "jpeg", 5, generator())
    assert sizes == [(512, 512), (256, 256)]


MISTAKES = [
    (("fog", 1), "corruption 'fog': unknown; known are rotation, occlusion, .*, jpeg$"),
    (("blur", 0), "severity 0: expected 1 to 5$"),
    (("blur", 6), "severity 6: expected 1 to 5$"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_one_line(portrait: Any, arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(NkfError, match=message):
        corrupt(*portrait, *arguments, generator())


@pytest.mark.parametrize("landmarks", [np.full((68, 2), 5.0), np.full((68, 2), np.nan)])
def test_a_face_without_size_cannot_be_damaged(portrait: Any, landmarks: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="all in one place, or not finite"):
        corrupt(portrait[0], landmarks, "blur", 1, generator())


def test_every_picture_and_condition_has_its_own_generator() -> None:
    keys = [(0, "blur", 1, "a"), (1, "blur", 1, "a"), (0, "noise", 1, "a"), (0, "blur", 2, "a"), (0, "blur", 1, "b")]
    keys += [(0, "blur", 1, 0), (0, "blur", 1, 1)]
    drawn = [damage_generator(*key).random() for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [damage_generator(*key).random() for key in keys]
