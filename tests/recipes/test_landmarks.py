"""The landmark recipe: its loss."""

import torch

from nkf.recipes.landmarks import landmark_loss


def test_loss_is_least_where_the_spread_is_the_expected_distance() -> None:
    target = torch.zeros(1, 2000, 2)
    b = 3.0
    generator = torch.Generator().manual_seed(0)
    radius = b * -(torch.rand(2, 1, 2000, generator=generator)).log().sum(dim=0)  # Gamma(2, b)
    points = torch.stack([radius, torch.zeros_like(radius)], dim=-1)
    gradients = []  # the weight is constant for the gradient, so the best spread is where it vanishes
    for value in (0.8 * 2 * b, 2 * b, 1.25 * 2 * b):
        spread = torch.full((1, 2000), value, requires_grad=True)
        landmark_loss(points, spread, target, torch.ones(1, 1)).backward()
        gradients.append(float(spread.grad.sum()))
    assert gradients[0] < 0 < gradients[2]
    assert abs(gradients[1]) < 0.2 * min(-gradients[0], gradients[2])


def test_uncertain_points_pull_less_but_are_not_given_up() -> None:
    points = torch.zeros(1, 2, 2, requires_grad=True)
    target = torch.full((1, 2, 2), 5.0)
    landmark_loss(points, torch.tensor([[1.0, 16.0]]), target, torch.ones(1, 1)).backward()
    certain, uncertain = points.grad.norm(dim=-1)[0]
    torch.testing.assert_close(certain / uncertain, torch.tensor(4.0))  # the root of the ratio, not the ratio
