"""The detector network: what its maps mean, any picture size, gradients."""

import numpy as np
import pytest
import torch

from nkf.models import count_parameters
from nkf.models.detector import MULTIPLE, NUM_POINTS, STRIDE, FaceDetector, decode


@pytest.fixture(scope="module")
def network() -> FaceDetector:
    torch.manual_seed(0)
    return FaceDetector().eval()


def test_it_is_small(network):
    assert count_parameters(network) < 400_000


@pytest.mark.parametrize("size_hw", [(MULTIPLE, MULTIPLE), (128, 320)])
def test_maps_have_a_cell_for_every_eight_pixels(network, size_hw):
    with torch.no_grad():
        scores, boxes, points = network(torch.rand(2, 3, *size_hw))
    cells = (2, size_hw[0] // STRIDE, size_hw[1] // STRIDE)
    assert scores.shape == cells
    assert boxes.shape == (*cells, 4)
    assert points.shape == (*cells, NUM_POINTS, 2)
    assert ((scores > 0) & (scores < 0.1)).all()  # fresh scores are low
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_decode_reads_cells_in_pixels():
    raw = torch.zeros(1, 15, 2, 3)
    raw[0, :, 1, 2] = torch.tensor([2.0, *np.log([1, 0.5, 2, 1.5]), *np.arange(10) / 10])
    scores, boxes, points = decode(raw)
    assert scores[0, 1, 2] == pytest.approx(1 / (1 + np.exp(-2)))
    assert boxes[0, 1, 2].tolist() == pytest.approx([20 - 8, 12 - 4, 20 + 16, 12 + 12])
    # Box 12 to 36 by 8 to 24: its centre is (24, 16), its sides 24 and 16.
    assert points[0, 1, 2, 1].tolist() == pytest.approx([24 + 0.2 * 24, 16 + 0.3 * 16])


def test_every_weight_gets_a_gradient():
    network = FaceDetector().train()
    network.raw_maps(torch.rand(2, 3, 128, 128)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
