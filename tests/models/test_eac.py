"""EAC: the published counts, the attention maps and where their gradient goes."""

import pytest
import torch
from gradients import without_gradient

from nkf.costs import macs_by_part, parameters_by_part
from nkf.losses import eac_loss
from nkf.models import count_parameters
from nkf.models.eac import EAC
from nkf.models.layers import ImageNormalization

PARTS = {"features": ("trunk",), "fc": ("classifier",)}  # published name -> ours
# trunk -> parameters of the two, and their multiply-adds; 7 classes, 224 pixels.
PUBLISHED = {
    "resnet50": ((23_508_032, 14_343), (3_855_925_248, 14_336)),
    "resnet18": ((11_176_512, 3_591), (1_813_561_344, 3_584)),
    "resnet50_standard": ((23_508_032, 14_343), (4_087_136_256, 14_336)),  # EfficientFace's teacher
}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> tuple[str, EAC]:
    with torch.device("meta"):
        return request.param, EAC(num_classes=7, trunk=request.param)


def test_counts_are_the_published_ones(published: tuple[str, EAC]) -> None:
    trunk, network = published
    parameters, macs = (dict(zip(PARTS, counts, strict=True)) for counts in PUBLISHED[trunk])
    assert parameters_by_part(network, PARTS) == parameters
    assert count_parameters(network) == sum(parameters.values())
    assert macs_by_part(network.eval(), PARTS, torch.empty(1, 3, 224, 224, device="meta")) == macs | {
        "total": sum(macs.values())
    }


def test_nothing_is_dead(published: tuple[str, EAC]) -> None:
    assert without_gradient(published[1], torch.empty(2, 3, 64, 64, device="meta")) == []


@pytest.fixture
def network() -> EAC:
    torch.manual_seed(0)
    return EAC(num_classes=5, trunk="tiny").eval()


def test_maps_are_the_classifier_at_every_cell(network: EAC) -> None:
    crops = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        logits, maps = network.logits_and_maps(crops)
        last_map = network.trunk(crops)[16]
        expected = torch.einsum("nc,bchw->bnhw", network.classifier.weight, last_map)
        torch.testing.assert_close(maps, expected)  # so without bias, ReLU or normalisation
        assert maps.shape == (3, 5, 4, 4)
        assert (maps < 0).any()
        torch.testing.assert_close(logits, expected.mean(dim=(2, 3)) + network.classifier.bias)
        assert torch.equal(logits, network(crops))
        assert torch.equal(logits, network.classifier(network.features(crops)))


def test_maps_teach_the_trunk_and_not_the_classifier(network: EAC) -> None:
    _, maps = network.logits_and_maps(torch.rand(2, 3, 64, 64))
    maps.square().sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == {"classifier.weight", "classifier.bias"}


def test_classifier_learns_from_the_labelled_crops_alone(network: EAC) -> None:
    crops, targets = torch.rand(2, 3, 64, 64), torch.eye(5)[:2]
    gradients = []
    for weight in (0.0, 5.0):
        network.zero_grad()
        logits, maps = network.logits_and_maps(crops)
        _, maps_of_mirrored = network.logits_and_maps(crops.flip(-1))
        eac_loss(logits, targets, maps, maps_of_mirrored, weight=weight).backward()
        stem = network.trunk.stem.conv.weight.grad.clone()
        gradients.append((network.classifier.weight.grad.clone(), network.classifier.bias.grad.clone(), stem))
    (weight, bias, stem), (other_weight, other_bias, other_stem) = gradients
    assert torch.equal(weight, other_weight)
    assert torch.equal(bias, other_bias)
    assert not torch.allclose(stem, other_stem)


@pytest.mark.parametrize(
    ("trunk", "stride", "mean"), [("resnet18", 32, 0.485), ("tiny", 16, 0.5), ("mobile_narrow", 16, 0.485)]
)
def test_trunk_decides_map_and_normalisation(trunk: str, stride: int, mean: float) -> None:
    network = EAC(num_classes=8, trunk=trunk).eval()
    assert isinstance(network.normalize, ImageNormalization)
    assert float(network.normalize.mean.flatten()[0]) == pytest.approx(mean)
    assert network.backbone is network.trunk
    with torch.no_grad():
        _, maps = network.logits_and_maps(torch.rand(1, 3, 64, 64))
    assert maps.shape == (1, 8, 64 // stride, 64 // stride)
    assert sum(name.endswith("normalize.mean") for name in network.state_dict()) == 1  # saved once


def test_landmarks_and_memory_format_change_nothing(network: EAC) -> None:
    crops = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(crops)
        assert torch.equal(network(crops, torch.rand(1, 68, 2)), expected)
        torch.testing.assert_close(network(crops.to(memory_format=torch.channels_last)), expected)


def test_unknown_trunk_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'vgg'; known: tiny, .*, large, resnet18, resnet50, "):
        EAC(num_classes=7, trunk="vgg")
