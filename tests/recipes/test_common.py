"""Crops as tensors: what a batch holds, and that no more is read than a batch needs."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nkf.data.dataset import CropRows
from nkf.recipes.common import FaceTensors

CPU = torch.device("cpu")
SIDE = 4


def crops_of(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


class Watched:
    """Crops that count how many of them are read at once."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images
        self.shape = images.shape
        self.read: list[int] = []

    def take(self, rows: NDArray[np.int64], axis: int, **_: Any) -> NDArray[np.uint8]:
        assert axis == 0
        return self[rows]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        self.read.append(len(rows))
        return self._images[rows]


FIRST, SECOND = crops_of(9, 1), crops_of(5, 2)
ROWS, OTHERS = np.array([8, 0, 3, 4]), np.array([2, 4, 1])
# caches with the rows that count, the same crops in one array
PARTS: dict[str, tuple[list[tuple[NDArray[np.uint8], NDArray[np.int64]]], NDArray[np.uint8]]] = {
    "one": ([(FIRST, ROWS)], FIRST[ROWS]),
    "two": ([(FIRST, ROWS), (SECOND, OTHERS)], np.concatenate([FIRST[ROWS], SECOND[OTHERS]])),
    "an empty one": ([(FIRST, ROWS[:0]), (SECOND, OTHERS)], SECOND[OTHERS]),
    "three": ([(FIRST, ROWS), (SECOND, OTHERS[:0]), (SECOND, OTHERS)],
              np.concatenate([FIRST[ROWS], SECOND[OTHERS]])),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_crops_of_several_caches_are_counted_through(name: str) -> None:
    parts, expected = PARTS[name]
    crops = CropRows(parts)
    assert len(crops) == len(expected)
    assert crops.nbytes == expected.nbytes
    for index in (np.arange(len(expected)), np.array([2, 0, 2, len(expected) - 1]), np.array([1]), np.zeros(0, int)):
        taken = crops.take(index)
        np.testing.assert_array_equal(taken, expected[index])
        assert taken.dtype == np.uint8


def test_what_is_taken_is_a_copy() -> None:
    for name in ("one", "two"):
        parts, expected = PARTS[name]
        crops = CropRows(parts)
        crops.take(np.array([0, 1]))[:] = 0
        np.testing.assert_array_equal(crops.take(np.array([0, 1])), expected[:2])


@pytest.mark.parametrize("name", PARTS)
def test_a_batch_has_crops_and_their_landmarks(name: str) -> None:
    parts, expected = PARTS[name]
    landmarks_px = np.random.default_rng(3).uniform(0, SIDE, (len(expected), 68, 2)).astype(np.float32)
    faces = FaceTensors(CropRows(parts), landmarks_px, CPU)
    rows = np.array([2, 0, 1])
    images, points = faces.batch(rows)
    assert len(faces) == len(expected)
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images.numpy(), expected[rows].transpose(0, 3, 1, 2) / 255, atol=1e-6)
    np.testing.assert_array_equal(points.numpy(), landmarks_px[rows])
    np.testing.assert_array_equal(faces.images_uint8(rows).numpy(), expected[rows])


def test_batches_cover_all_faces_in_order() -> None:
    images, landmarks_px = crops_of(150, 4), np.zeros((150, 68, 2), np.float32)
    faces = FaceTensors(CropRows([(images, np.arange(149, -1, -1))]), landmarks_px, CPU)
    batches = list(faces.batches())
    assert [(part.start, part.stop) for part, *_ in batches] == [(0, 64), (64, 128), (128, 150)]
    together = torch.cat([crops for _, crops, _ in batches]).permute(0, 2, 3, 1) * 255
    np.testing.assert_allclose(together.numpy(), images[::-1], atol=1e-3)


@pytest.mark.parametrize("several", [False, True])
def test_no_more_is_read_than_a_batch(several: bool) -> None:
    """A dataset may be larger than the memory."""
    watched = Watched(crops_of(200, 5))
    part: Any = (watched, np.arange(200))
    faces = FaceTensors(CropRows([part, part] if several else [part]), np.zeros((400, 68, 2), np.float32), CPU)
    assert watched.read == []
    faces.batch(np.array([3, 1, 199]))
    assert sum(watched.read) == 3
    watched.read.clear()
    for _ in faces.batches():
        assert sum(watched.read) <= 64
        watched.read.clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.0, 0.6])  # of its memory: crops stay on the disk, or go to the GPU
def test_a_gpu_gives_the_same_batches(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nkf.recipes.common.RESIDENT_SHARE", share)
    monkeypatch.setattr("nkf.recipes.common._UPLOAD", 3)
    parts, expected = PARTS["two"]
    landmarks_px = np.ones((len(expected), 68, 2), np.float32)
    rows = np.array([6, 0, 3])
    on_gpu = FaceTensors(CropRows(parts), landmarks_px, torch.device("cuda")).batch(rows)
    on_cpu = FaceTensors(CropRows(parts), landmarks_px, CPU).batch(rows)
    for found, wanted in zip(on_gpu, on_cpu, strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), wanted)
    nothing = FaceTensors(CropRows([(FIRST, ROWS[:0])]), landmarks_px[:0], torch.device("cuda"))  # of a split
    assert list(nothing.batches()) == []
