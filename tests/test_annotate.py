"""Annotated pictures."""

import numpy as np
import pytest
from made_predictions import make_prediction

from nkf.annotate import MIN_ANNOTATED_SIDE, annotate

ACCENT, DARK = (255, 193, 37), (18, 20, 26)


def colours(picture):
    return {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_annotate_is_readable_on_any_background(grey):
    image = np.full((600, 800, 3), grey, np.uint8)
    picture = annotate(image, make_prediction((300, 200, 420, 350)))
    assert picture.size == (800, 600)
    assert {ACCENT, DARK} <= colours(picture.crop((290, 160, 600, 220)))  # dark text on a bright plate


def test_annotate_leaves_the_rest_of_the_picture_alone():
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    picture = np.asarray(annotate(image, make_prediction((300, 200, 420, 350))))
    changed = np.argwhere((picture != image).any(axis=2))
    assert (changed.min(axis=0) > (150, 280)).all()
    assert (changed.max(axis=0) < (420, 720)).all()


@pytest.mark.parametrize("size", [(48, 48), (100, 30), (1, 1), (1, 400)])
def test_annotate_enlarges_small_images(size):
    boxes = [(0, 0, size[1], size[0])]
    picture = annotate(np.zeros((*size, 3), np.uint8), make_prediction(*boxes, size=size))
    assert max(picture.size) == MIN_ANNOTATED_SIDE


def test_annotate_large_image_keeps_its_size():
    image = np.zeros((2100, 2000, 3), np.uint8)
    assert annotate(image, make_prediction((900, 900, 1300, 1400))).size == (2000, 2100)


def test_annotate_draws_charts_for_few_faces_that_hide_no_other():
    image = np.full((400, 900, 3), 255, np.uint8)
    pair = [(100, 100, 180, 200), (300, 100, 380, 200)]
    picture = np.asarray(annotate(image, make_prediction(*pair)))
    for x0, y0, x1, y1 in pair:
        inside = picture[y0 + 10 : y1 - 10, x0 + 10 : x1 - 10]
        assert (inside == 255).all(axis=2).mean() > 0.5  # only the landmarks are on the face


def test_annotate_says_when_there_is_no_face():
    picture = annotate(np.zeros((300, 600, 3), np.uint8), make_prediction())
    assert ACCENT in colours(picture.crop((0, 0, 100, 40)))
