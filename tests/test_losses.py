"""Losses of the compared systems, against numbers computed by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nkf.losses import attention_consistency, eac_loss, label_distribution_loss, poster_loss

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
TARGETS = {
    "labels": torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    "vote shares": torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.0, 0.5]]),
}
by_targets = pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)


def log_probabilities(logits: Tensor) -> NDArray[np.float64]:
    exponentials = np.exp(logits.double().numpy())
    return np.log(exponentials / exponentials.sum(axis=1, keepdims=True))


@by_targets
def test_poster_loss_is_cross_entropy_and_twice_the_smoothed_one(targets: Tensor) -> None:
    log_p, t = log_probabilities(LOGITS), targets.double().numpy()
    own = -(t * log_p).sum(axis=1)
    smoothed = 0.8 * own + 0.2 * -log_p.mean(axis=1)
    assert float(poster_loss(LOGITS, targets)) == pytest.approx((own + 2 * smoothed).mean(), rel=1e-6)


@by_targets
def test_poster_loss_is_three_times_a_smoothing_by_two_fifteenths(targets: Tensor) -> None:
    expected = 3 * F.cross_entropy(LOGITS, targets, label_smoothing=2 / 15)
    torch.testing.assert_close(poster_loss(LOGITS, targets), expected)


def test_consistency_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]])  # a face, two classes, one row of two cells
    mirrored = torch.tensor([[[[2.0, 0.0]], [[3.0, 1.0]]]])  # mirrored back: 0 2 and 1 3
    assert float(attention_consistency(maps, mirrored)) == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_consistency_mirrors_columns_and_not_rows() -> None:
    maps = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    assert float(attention_consistency(maps, maps.flip(-1))) == 0
    assert float(attention_consistency(maps, maps)) > 0
    assert float(attention_consistency(maps, maps.flip(-2))) > 0


def test_consistency_teaches_both_maps() -> None:
    torch.manual_seed(0)
    maps, mirrored = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    attention_consistency(maps, mirrored).backward()
    expected = 2 * (maps - mirrored.flip(-1)).detach() / maps.numel()
    torch.testing.assert_close(maps.grad, expected)
    torch.testing.assert_close(mirrored.grad, -expected.flip(-1))


@by_targets
def test_eac_loss_adds_five_times_the_consistency(targets: Tensor) -> None:
    torch.manual_seed(0)
    maps, mirrored = torch.randn(2, 2, 3, 4, 4)
    consistency = np.square((maps - mirrored.flip(-1)).numpy()).mean()
    cross_entropy = -(targets.numpy() * log_probabilities(LOGITS)).sum(axis=1).mean()
    assert float(eac_loss(LOGITS, targets, maps, mirrored)) == pytest.approx(cross_entropy + 5 * consistency, rel=1e-5)


def test_label_distribution_loss_by_hand() -> None:
    teacher = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0]])  # probabilities 1/2, 1/2 and 3/4, 1/4
    expected = (np.log(2) + np.log(4 / 3)) / (2 * 2)
    assert float(label_distribution_loss(logits, teacher)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("classes", [3, 7, 8])
def test_label_distribution_loss_is_a_share_of_the_usual_one(classes: int) -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, classes), torch.randn(4, classes).softmax(dim=1)
    expected = F.cross_entropy(logits, teacher) / classes
    torch.testing.assert_close(label_distribution_loss(logits, teacher), expected)


def test_label_distribution_loss_is_finite_where_a_logarithm_of_the_softmax_is_not() -> None:
    logits, teacher = torch.tensor([[200.0, 0.0]], requires_grad=True), torch.tensor([[0.5, 0.5]])
    assert torch.isinf(logits.softmax(dim=1).log()).any()
    loss = label_distribution_loss(logits, teacher)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(50)
    torch.testing.assert_close(logits.grad, torch.tensor([[0.25, -0.25]]))
