import math

import pytest
import torch
import torch.nn.functional as F

from nkf.geometry import MEAN_SHAPE, NASAL_BASE
from nkf.models.keypoints import RKFA, AttentionForm, perturb_landmarks, sample_keypoints
from nkf.models.nkf import KeypointFeatures


def bilinear_by_hand(feature_map: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Bilinear value of (C, H, W) at a point in cells, cell centres at (i + 0.5, j + 0.5), edges repeated."""
    _, height, width = feature_map.shape
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    x0, y0 = math.floor(x), math.floor(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    fx, fy = x - x0, y - y0
    top = feature_map[:, y0, x0] * (1 - fx) + feature_map[:, y0, x1] * fx
    bottom = feature_map[:, y1, x0] * (1 - fx) + feature_map[:, y1, x1] * fx
    return top * (1 - fy) + bottom * fy


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_sampling_equals_a_computation_by_hand(stride: int) -> None:
    torch.manual_seed(stride)
    feature_map = torch.randn(2, 5, 112 // stride, 112 // stride)
    points = torch.rand(2, 9, 2) * 130 - 9  # some lie outside
    sampled = sample_keypoints(feature_map, points, 112)
    for face in range(2):
        for k in range(9):
            x, y = (points[face, k] / stride).tolist()
            expected = bilinear_by_hand(feature_map[face], x, y)
            torch.testing.assert_close(sampled[face, k], expected, atol=1e-4, rtol=0)


def test_a_point_is_the_same_fraction_at_every_stride() -> None:
    """Maps that hold their own x coordinate give it back, whatever their stride."""
    points = torch.rand(1, 20, 2) * 80 + 16
    for stride in (4, 8, 16):
        cells = 112 // stride
        x = ((torch.arange(cells) + 0.5) * stride).expand(1, 1, cells, cells)
        torch.testing.assert_close(sample_keypoints(x, points, 112)[..., 0], points[..., 0])


def test_perturbation_has_the_spread_that_was_asked_for() -> None:
    landmarks = torch.tensor(MEAN_SHAPE * 112).float().expand(400, 68, 2)
    distance = (landmarks[0, 42:48].mean(0) - landmarks[0, 36:42].mean(0)).norm()
    moved = perturb_landmarks(landmarks, 0.05, 112, generator=torch.Generator().manual_seed(0)) - landmarks
    inner = moved[:, 17:]  # the jaw is near the border, where noise is clipped
    assert float(inner.std()) == pytest.approx(0.05 * float(distance), rel=0.02)
    assert inner.mean().abs() < 0.02
    between_landmarks = torch.corrcoef(inner[:, :2, 0].T)[0, 1]
    assert between_landmarks.abs() < 0.15


def test_common_shift_moves_all_landmarks_of_a_face_alike() -> None:
    landmarks = torch.tensor(MEAN_SHAPE * 112).float().expand(2000, 68, 2)
    distance = (landmarks[0, 42:48].mean(0) - landmarks[0, 36:42].mean(0)).norm()
    generator = torch.Generator().manual_seed(0)
    moved = perturb_landmarks(landmarks, 0.0, 112, common_sigma=0.02, generator=generator) - landmarks
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-4, rtol=0)
    assert float(moved[:, 0].std()) == pytest.approx(0.02 * float(distance), rel=0.05)
    assert torch.corrcoef(moved[:, 0].T)[0, 1].abs() < 0.1  # of x and y


def test_perturbed_landmarks_stay_inside_the_crop() -> None:
    moved = perturb_landmarks(torch.tensor(MEAN_SHAPE * 112).float()[None], 2.0, 112)
    assert moved.min() >= 0
    assert moved.max() <= 112


def test_channel_attention_is_a_gate_that_the_nasal_base_drives() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 68, 16)
    attention = RKFA(16, "channel")
    gate = attention.gate(features[:, NASAL_BASE])
    torch.testing.assert_close(attention(features), features * gate[:, None])
    assert ((gate > 0) & (gate < 1)).all()


def test_spatial_attention_follows_its_formula() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 68, 16)
    attention = RKFA(16, "spatial")
    query = features[:, NASAL_BASE] @ attention.to_query.weight.T
    keys = features @ attention.to_key.weight.T
    weights = torch.einsum("bd,bkd->bk", query, keys).div(4**0.5).softmax(dim=1)
    values = features @ attention.to_value.weight.T
    expected = features + 68 * weights[..., None] * values
    torch.testing.assert_close(attention(features), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["channel", "none"])
def test_emphasis_is_the_share_of_what_passes_the_gate(form: AttentionForm) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 68, 16)
    features[:, 40] *= 9
    attention = RKFA(16, form)
    sizes = attention(features).square().sum(dim=2).sqrt()
    shares = attention.emphasis(features)
    torch.testing.assert_close(shares, torch.stack([row / row.sum() for row in sizes]))
    assert (shares.argmax(dim=1) == 40).all()


def test_emphasis_of_spatial_attention_is_its_weights() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 68, 16)
    attention = RKFA(16, "spatial")
    weights = attention.emphasis(features)
    added = weights[..., None] * attention.to_value(features) * 68
    torch.testing.assert_close(attention(features), features + added)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("representative", "landmark", "moves"),
    [
        ("nasal_base", 33, True),
        ("nasal_base", 30, False),
        ("nose_tip", 30, True),
        ("nose_tip", 33, False),
        ("mean", 5, True),
        ("learned", 33, False),
    ],
)
def test_representative_decides_what_drives_the_attention(representative: str, landmark: int, moves: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 68, 16)
    attention = RKFA(16, "channel", representative)
    changed = features.clone()
    changed[:, landmark] += 3
    others = [k for k in range(68) if k != landmark]
    same = torch.allclose(attention(features)[:, others], attention(changed)[:, others])
    assert same != moves


def test_no_attention_changes_nothing_and_unknown_forms_are_refused() -> None:
    features = torch.randn(1, 68, 8)
    assert RKFA(8, "none")(features) is features
    with pytest.raises(ValueError, match="unknown attention form 'squeeze'"):
        RKFA(8, "squeeze")
    with pytest.raises(ValueError, match="unknown representative 'chin'; known: nasal_base, nose_tip, mean, learned"):
        RKFA(8, "channel", "chin")


def test_learned_query_starts_even_and_is_learnt() -> None:
    torch.manual_seed(0)
    features, attention = torch.randn(2, 68, 16), RKFA(16, "spatial", "learned")
    torch.testing.assert_close(
        attention.attention_weights(features, attention.query.expand(2, -1)), torch.ones(2, 68) / 68
    )
    attention(features).square().sum().backward()
    assert attention.query.grad.abs().sum() > 0


def test_keypoint_features_are_those_of_projected_maps_side_by_side() -> None:
    """Projecting the map before reading it, as the literature does, gives the same."""
    torch.manual_seed(0)
    maps, points = [torch.randn(2, 5, 28, 28), torch.randn(2, 7, 7, 7)], torch.rand(2, 68, 2) * 112
    module = KeypointFeatures([5, 7], 9)
    parts = [
        sample_keypoints(F.conv2d(one, project.weight[:, :, None, None]), points, 112)
        for one, project in zip(maps, module.projections, strict=True)
    ]
    together = torch.cat(parts, dim=2)  # 4 channels of each: 9 are not even
    mean, variance = together.mean(dim=(0, 1)), together.var(dim=(0, 1), correction=0)
    expected = (together - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(module(maps, points, 112), expected, atol=1e-4, rtol=1e-4)
