"""Scenes: the same for the same seed, true about their faces, distractors included."""

import numpy as np
import pytest
from PIL import Image

from nkf.data.patches import FOREHEAD, cover, face_boxes, face_mask, fade_out, faded_border, scramble
from nkf.data.scene_pool import load_pool, read_pictures
from nkf.data.scenes import _TIGHT, MAX_FACES, Faces, SceneMaker
from nkf.errors import NkfError
from nkf.geometry import MEAN_SHAPE, five_points
from nkf.pose import MEAN_SHAPE_3D

SIDE = 64


@pytest.fixture(scope="module")
def faces():
    images = np.full((4, SIDE, SIDE, 3), 255, np.uint8)
    return Faces(images, np.repeat(MEAN_SHAPE[None] * SIDE, 4, axis=0).astype(np.float32))


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    stamp = np.zeros((30, 40, 4), np.uint8)
    stamp[5:25, 5:35] = 200
    noise = [Image.fromarray(generator.integers(0, 99, (50, 70, 3)).astype(np.uint8)) for _ in range(3)]
    return [*noise, Image.fromarray(stamp)]


@pytest.fixture
def maker(faces, pictures):
    return SceneMaker(faces, pictures, (160, 120), face_px=(20, 80))


def test_a_scene_is_a_function_of_its_seed(maker):
    one, same, other = (maker.compose(np.random.default_rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.boxes, same.boxes)
    assert (one.image != other.image).any()


@pytest.mark.parametrize("seed", range(30))
def test_what_is_said_about_faces_is_consistent(maker, seed):
    scene = maker.compose(np.random.default_rng(seed))
    assert scene.image.shape == (120, 160, 3)
    n = len(scene.boxes)
    assert n <= MAX_FACES
    assert scene.points.shape == (n, 5, 2)
    assert len(scene.rotation_deg) == len(scene.occlusion) == len(scene.visible) == n
    assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
    assert (scene.visible > 0.4).all()
    assert (np.abs(scene.rotation_deg) <= 75).all()


def test_rotation_is_the_angle_of_the_eyes(maker):
    for seed in range(20):
        scene = maker.compose(np.random.default_rng(seed), faces=1)
        x, y = (scene.points[:, 1] - scene.points[:, 0]).T
        level = np.degrees(np.arctan2(*(five_points(MEAN_SHAPE)[1] - five_points(MEAN_SHAPE)[0])[::-1]))
        np.testing.assert_allclose(np.degrees(np.arctan2(y, x)) - level, scene.rotation_deg, atol=0.1)


def test_scenes_without_faces(maker):
    assert not len(maker.compose(np.random.default_rng(0), faces=0).boxes)


def test_plain_scenes_show_whole_pictures_and_no_face(maker):
    scene = maker.plain(np.random.default_rng(0))
    assert scene.image.shape == (120, 160, 3)
    assert np.ptp(scene.image) > 0
    assert scene.boxes.shape == (0, 4)


def test_boxes_turn_with_the_forehead():
    x0, y0, x1, y1 = face_boxes(MEAN_SHAPE)
    brow = MEAN_SHAPE[17:27].min(axis=0)[1]
    assert y0 == pytest.approx(brow + FOREHEAD * (MEAN_SHAPE[27] - MEAN_SHAPE[8])[1])
    assert (x0, x1, y1) == pytest.approx((MEAN_SHAPE[:, 0].min(), MEAN_SHAPE[:, 0].max(), MEAN_SHAPE[:, 1].max()))
    np.testing.assert_allclose(face_boxes(1 - MEAN_SHAPE), [1 - x1, 1 - y1, 1 - x0, 1 - y0])


def test_scrambling_keeps_pixels_and_destroys_order():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (60, 60, 3)).astype(np.uint8)
    scrambled = scramble(generator, image, tiles=5)
    assert (scrambled != image).mean() > 0.5
    np.testing.assert_array_equal(np.sort(scrambled, axis=None), np.sort(image, axis=None))


def test_masks_cover_the_middle_of_the_face():
    landmarks = MEAN_SHAPE * SIDE
    for seed in range(20):
        mask = np.asarray(face_mask(np.random.default_rng(seed), landmarks, SIDE))
        assert mask.shape == (SIDE, SIDE)
        assert mask[int(landmarks[30, 1]), int(landmarks[30, 0])] > 200


def test_a_border_fades_around_the_picture():
    image = np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.uint8)
    wide, mask = faded_border(image, 8)
    np.testing.assert_array_equal(np.asarray(wide)[8:-8, 8:-8], image)
    outwards = np.asarray(mask)[18, 28:]
    assert (np.asarray(mask)[8:-8, 8:-8] == 255).all()
    assert outwards[0] > 240
    assert outwards[-1] < 15
    assert (np.diff(outwards.astype(int)) < 0).all()


@pytest.mark.parametrize(("faded", "portrait"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_faces_are_where_their_points_are(faces, pictures, monkeypatch, faded, portrait):
    """White faces and black ones in the same scenes: at the tip of the nose, and not all over, these differ."""
    tight = np.ptp(face_boxes(faces.landmarks_px[0]).reshape(2, 2), axis=0).max() > _TIGHT * SIDE
    assert tight  # so that the border is tried at all
    monkeypatch.setattr("nkf.data.scenes._FADED", faded)
    monkeypatch.setattr("nkf.data.scenes._PORTRAIT", portrait)
    colours = [Faces(np.full_like(faces.images, value), faces.landmarks_px) for value in (255, 0)]
    makers = [SceneMaker(one, pictures, (160, 120), face_px=(20, 80)) for one in colours]
    at_nose, anywhere = [], []
    for seed in range(30):
        white, black = (maker.compose(np.random.default_rng(seed), faces=1) for maker in makers)
        np.testing.assert_array_equal(white.points, black.points)
        differ = (white.image.astype(int) - black.image).max(axis=-1) > 60
        for (x, y), occlusion in zip(white.points[:, 2].astype(int), white.occlusion, strict=True):
            if not occlusion and 0 <= x < 160 and 0 <= y < 120:
                at_nose.append(differ[y, x])
                anywhere.append(differ.mean())
    assert len(at_nose) > 5
    assert all(at_nose)
    assert np.mean(anywhere) < 0.6


def test_portraits_without_a_face_hold_none(maker, monkeypatch):
    monkeypatch.setattr("nkf.data.scenes._PORTRAIT", 1.0)
    monkeypatch.setattr(SceneMaker, "_put", lambda *_, **__: pytest.fail("a face is pasted that nobody is told of"))
    drawn = []
    monkeypatch.setattr(SceneMaker, "_draw_person", lambda *_: drawn.append(1))
    for seed in range(10):
        maker.compose(np.random.default_rng(seed), faces=0)
    assert len(drawn) > 5


def test_turned_faces_are_drawn_more_often(faces, pictures):
    yaw = np.deg2rad(40)
    x, y, z = MEAN_SHAPE_3D.T
    turned = np.column_stack([np.cos(yaw) * x + np.sin(yaw) * z, y]) * SIDE / 4 + SIDE / 2
    landmarks = np.concatenate([faces.landmarks_px[:3], turned[None]]).astype(np.float32)
    maker = SceneMaker(Faces(faces.images, landmarks), pictures, (160, 120))
    rng = np.random.default_rng(0)
    drawn = np.bincount([maker._row(rng) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(drawn / drawn[0], [1, 1, 1, 5], rtol=0.2)


@pytest.mark.parametrize("seed", range(6))
def test_hands_and_patches_cover_a_part_of_the_face(seed):
    rng = np.random.default_rng(seed)
    face = Image.new("RGB", (SIDE, SIDE), (180, 140, 120))
    covered = cover(rng, face, MEAN_SHAPE * SIDE, "patch", lambda side: Image.new("RGB", (side, side)))
    changed = (np.asarray(covered) != np.asarray(face)).any(axis=-1)
    assert 0.005 < changed.mean() < 0.6


def test_a_border_leaves_the_picture_where_it_was():
    matrix = np.array([[0.5, -0.2, 30.0], [0.2, 0.5, 10.0]])
    wide, _, moved = fade_out(np.random.default_rng(0), Image.new("RGB", (SIDE, SIDE)), matrix)
    border = (wide.width - SIDE) / 2
    corner = np.array([border + 3, border + 7, 1.0])
    np.testing.assert_allclose(moved @ corner, matrix @ [3, 7, 1])


def test_a_pool_is_composed_once(maker, tmp_path):
    pool = load_pool(lambda: maker, tmp_path / "cache", 3, 7, "key")
    scene = maker.compose(np.random.default_rng([7, 2]))
    np.testing.assert_array_equal(pool.images[2], scene.image)
    np.testing.assert_array_equal(pool.boxes[2, : len(scene.boxes)], scene.boxes)
    assert np.isnan(pool.points[2, len(scene.boxes) :]).all()

    def fail():
        raise AssertionError("composed again")

    again = load_pool(fail, tmp_path / "cache", 3, 7, "key")
    np.testing.assert_array_equal(again.images, pool.images)
    plain = load_pool(lambda: maker, tmp_path / "cache", 3, 7, "key", plain=True)
    assert np.isnan(plain.boxes).all()


def test_pictures_are_read_with_their_transparency(tmp_path, pictures):
    pictures[0].save(tmp_path / "b.png")
    pictures[3].save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [picture.mode for picture in read_pictures(tmp_path)] == ["RGBA", "RGB"]
    with pytest.raises(NkfError, match="no pictures; see"):
        read_pictures(tmp_path / "nowhere")
