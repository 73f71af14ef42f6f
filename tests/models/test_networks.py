"""One set of checks over all networks: shapes, finite values, gradients, saving and loading, the ONNX twin."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nkf.config import NetworkConfig
from nkf.errors import NkfError
from nkf.export import PARITY_LIMIT, export
from nkf.models import count_parameters, create_model, load_model, save_model
from nkf.models.backbone import create_backbone
from nkf.models.fan import FAN, soft_argmax, spatial_softmax
from nkf.models.nkf import NKF
from nkf.runtime import OnnxModel, load_expression_model
from nkf.weights import EXPRESSION_KINDS, INPUTS, WeightsInfo, find_weights

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")


def architecture(**fields: Any) -> dict[str, Any]:
    return NetworkConfig(backbone="tiny", keypoint_channels=32).model_copy(update=fields).architecture()


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fan": ("fan", {"backbone": "mobile_narrow"}),
    "detector": ("detector", {}),
    "global_only": ("nkf", architecture(strides=())),
    "channel": ("nkf", architecture(attention="channel")),
    "spatial": ("nkf", architecture(attention="spatial", strides=(4, 16))),
    "three_strides": ("nkf", architecture(strides=(4, 8, 16))),
    "without_attention": ("nkf", architecture(attention="none", strides=(4, 8))),
    "nose_tip": ("nkf", architecture(representative="nose_tip")),
    "mean": ("nkf", architecture(representative="mean")),
    "learned_query": ("nkf", architecture(representative="learned", attention="spatial")),
    "both sources": ("nkf", architecture(sources="both")),
    "fan source": ("nkf", architecture(sources="fan")),
    "poster": ("poster", {"depth": 1}),
    "poster_pp": ("poster_pp", {}),
    "eac": ("eac", {"trunk": "tiny"}),
    "eac, resnet18": ("eac", {"trunk": "resnet18"}),
    "efficientface": ("efficientface", {}),
    "landmark_trunk": ("landmark_trunk", {}),
}
SIZES = {"poster": 112, "poster_pp": 112, "landmark_trunk": 112}  # sides of crops; the others take 64
FROZEN = ("fan.", "landmark_trunk.")  # parts without gradients


def info_of(kind: Any, fields: dict[str, Any], network: nn.Module, size: int = 64) -> WeightsInfo:
    return WeightsInfo(
        name="net",
        kind=kind,
        architecture=fields,
        classes=CLASSES if kind in EXPRESSION_KINDS else (),
        input_size=SIZES.get(kind, size),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        parameters=count_parameters(network),
        nkf_version="0",
    )


def inputs_of(kind: Any, count: int = 3) -> tuple[torch.Tensor, ...]:
    size = SIZES.get(kind, 64)
    crops, landmarks_px = torch.rand(count, 3, size, size), torch.rand(count, 68, 2) * size
    return (crops, landmarks_px)[: len(INPUTS[kind])]


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], nn.Module]:
    torch.manual_seed(0)
    kind, fields = VARIANTS[request.param]
    network = create_model(kind, fields, len(CLASSES))
    for module in network.modules():  # statistics that are not the neutral ones, so that a lost buffer shows
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return kind, fields, network


def test_forward_and_backward(variant: tuple[str, dict[str, Any], nn.Module]) -> None:
    kind, _, network = variant
    network.train()
    if kind == "fan":
        (points_px, spread_px), mesh = network.with_mesh(*inputs_of(kind), torch.arange(478))
        assert (points_px.shape, spread_px.shape, mesh.shape) == ((3, 68, 2), (3, 68), (3, 478, 2))
        assert (spread_px > 0).all()
        total = points_px.square().sum() + spread_px.sum() + mesh.square().sum()
    elif kind == "detector":
        total = network.raw_maps(*inputs_of(kind)).square().sum()
    elif kind == "landmark_trunk":
        total = network(*inputs_of(kind)).square().sum()
    else:
        output = network(*inputs_of(kind))
        assert output.shape == (3, len(CLASSES))
        total = output.square().sum()
    total.backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} gets no gradient"
            assert torch.isfinite(parameter.grad).all()
        else:
            assert name.startswith(FROZEN), f"only networks that were trained for landmarks are frozen, not {name}"


def test_saved_network_loads_to_the_same_function(
    variant: tuple[str, dict[str, Any], nn.Module], tmp_path: Path
) -> None:
    kind, fields, network = variant
    network.eval()
    save_model(network, tmp_path / "net.safetensors", info_of(kind, fields, network))
    loaded = load_model(*find_weights(str(tmp_path / "net.safetensors")))
    inputs = inputs_of(kind)
    with torch.no_grad():
        for ours, theirs in zip(loaded(*inputs), network(*inputs), strict=True):  # outputs, or rows of the only one
            assert torch.equal(ours, theirs)


# Shallow networks that have every kind of part: the exporter takes a second a layer.
EXPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "fan": ("fan", {"backbone": "tiny"}),
    "detector": ("detector", {"widths": (8,) * 6, "depths": (1,) * 5, "neck": 8, "head_depth": 1}),
    "channel": VARIANTS["channel"],
    "spatial, both sources": ("nkf", architecture(attention="spatial", sources="both", strides=(4, 16))),
    "global only": VARIANTS["global_only"],
}
WITHOUT_ATTENTION = {"fan", "detector", "global only"}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_exported_network_agrees_with_torch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nkf.models.create_backbone", lambda _: create_backbone("tiny"))  # for the alignment network
    torch.manual_seed(1)
    kind, fields = EXPORTED[name]
    network = create_model(kind, fields, len(CLASSES)).eval()
    save_model(network, tmp_path / "net.safetensors", info_of(kind, fields, network))
    info = export(str(tmp_path / "net.safetensors"), tmp_path / "out", name="twin")  # raises when they disagree
    assert PARITY_LIMIT["nkf"] == 1e-4
    assert set(info.sha256) == {"twin.onnx", "twin.safetensors"}
    assert find_weights(str(tmp_path / "out" / "twin.onnx"))[1] == info
    assert ("attention" in OnnxModel(tmp_path / "out" / "twin.onnx", "cpu").outputs) == (name not in WITHOUT_ATTENTION)
    if kind == "nkf":
        check_twins(tmp_path / "net.safetensors", tmp_path / "out" / "twin.onnx")


def check_twins(torch_file: Path, onnx_file: Path) -> None:
    """Both ways to predict give the same, with the attention and without."""
    crops, landmarks_px = (array.numpy() for array in inputs_of("nkf", 5))
    ours, theirs = (load_expression_model(str(file), "cpu")[0] for file in (torch_file, onnx_file))
    (probabilities, attention), (others, weights) = (m.with_attention(crops, landmarks_px) for m in (ours, theirs))
    np.testing.assert_allclose(probabilities, others, atol=2e-3)  # one has weights of float32, the other of float16
    np.testing.assert_allclose(probabilities, ours(crops, landmarks_px), atol=1e-6)
    np.testing.assert_allclose(others, theirs(crops, landmarks_px), atol=1e-6)
    assert (attention is None) == (weights is None)
    if attention is not None and weights is not None:
        assert attention.shape == (5, 68)
        np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(attention, weights, atol=2e-4)
        assert attention.std(axis=1).min() > 10 * np.abs(attention - weights).max()


@pytest.mark.parametrize("name", ["channel", "spatial", "without_attention", "fan source", "learned_query"])
def test_attention_comes_with_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    network = create_model(*VARIANTS[name], len(CLASSES)).eval()
    inputs = inputs_of("nkf")
    with torch.no_grad():
        logits, attention = network.with_attention(*inputs)
        torch.testing.assert_close(logits, network(*inputs))
    assert attention.shape == (3, 68)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "low", "high", "size"),
    [
        ("tiny", 0, 300_000, 64),
        ("mobile", 1_600_000, 2_200_000, 112),
        ("mobile_narrow", 800_000, 1_000_000, 112),
        ("base", 11_000_000, 14_000_000, 112),
        ("large", 30_000_000, 32_000_000, 64),
    ],
)
def test_backbone_sizes_and_maps(name: str, low: int, high: int, size: int) -> None:
    backbone = create_backbone(name).eval()
    assert low < count_parameters(backbone) < high
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, size, size))
    assert {stride: tuple(m.shape[1:]) for stride, m in maps.items()} == {
        stride: (backbone.channels[stride], size // stride, size // stride) for stride in (4, 8, 16)
    }


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'vgg'; known: tiny, mobile"):
        create_backbone("vgg")


def test_face_alignment_network_keeps_its_budget() -> None:
    assert count_parameters(FAN(create_backbone("mobile_narrow"))) <= 1_500_000


def test_soft_argmax_finds_the_centre_of_a_peaked_cell() -> None:
    heatmaps = torch.full((1, 2, 28, 28), -1e4)
    heatmaps[0, 0, 3, 10] = 1e4
    heatmaps[0, 1, 27, 0] = 1e4
    expected = torch.tensor([[[10.5 * 4, 3.5 * 4], [0.5 * 4, 27.5 * 4]]])
    torch.testing.assert_close(soft_argmax(spatial_softmax(heatmaps), 112), expected)


def test_a_part_of_the_mesh_is_the_same_as_all_of_it() -> None:
    torch.manual_seed(0)
    network = FAN(create_backbone("tiny")).eval()
    crops = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        landmarks, mesh = network.with_mesh(crops, torch.arange(478))
        _, part = network.with_mesh(crops, torch.tensor([470, 3]))
        torch.testing.assert_close(part, mesh[:, [470, 3]])
        torch.testing.assert_close(network(crops).points_px, landmarks.points_px)


@pytest.mark.parametrize(("sigma", "common_sigma"), [(0.5, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_landmarks_are_perturbed_in_training_only(sigma: float, common_sigma: float) -> None:
    torch.manual_seed(0)
    network = NKF(create_backbone("tiny"), num_classes=8, sigma=sigma, common_sigma=common_sigma, dropout=0.0)
    crops, landmarks_px = inputs_of("nkf")
    with torch.no_grad():
        for mode in (False, True):  # batch norms take the same statistics from the same batch
            network.train(mode)
            same = torch.equal(network(crops, landmarks_px), network(crops, landmarks_px))
            assert same == (not mode or sigma == common_sigma == 0)


def test_frozen_alignment_network_stays_in_evaluation_mode() -> None:
    network = NKF(create_backbone("tiny"), num_classes=8, fan=FAN(create_backbone("tiny")))
    network.train()
    assert network.training
    assert not network.fan.training


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    network = create_model("nkf", architecture(), len(CLASSES))
    info = info_of("nkf", architecture(keypoint_channels=64), network)
    save_model(network, tmp_path / "net.safetensors", info)
    with pytest.raises(NkfError, match="does not fit its sidecar"):
        load_model(*find_weights(str(tmp_path / "net.safetensors")))


@pytest.mark.parametrize("described", [{"backbone": "huge"}, {"keypoint_channels": -1}, {"keypoint_channels": 10**19}])
def test_sidecar_of_an_unknown_network_is_refused(described: dict[str, Any], tmp_path: Path) -> None:
    network = create_model("nkf", architecture(), len(CLASSES))
    save_model(network, tmp_path / "net.safetensors", info_of("nkf", architecture(**described), network))
    with pytest.raises(NkfError, match=r"describes no network that this nkf knows \(.{1,200}\)$"):
        load_model(*find_weights(str(tmp_path / "net.safetensors")))


def test_values_beyond_half_precision_are_not_exported(tmp_path: Path) -> None:
    network = create_model("nkf", architecture(), len(CLASSES))
    network.head.norm.running_var.fill_(1e6)
    save_model(network, tmp_path / "net.safetensors", info_of("nkf", architecture(), network))
    with pytest.raises(NkfError, match=r"head\.norm\.running_var: holds values beyond"):
        export(str(tmp_path / "net.safetensors"), tmp_path / "out")


def test_replaced_weights_are_noticed(tmp_path: Path) -> None:
    network = create_model("nkf", architecture(), len(CLASSES))
    save_model(network, tmp_path / "net.safetensors", info_of("nkf", architecture(), network))
    content = bytearray((tmp_path / "net.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(NkfError, match="SHA-256 is not the one in its sidecar"):
        find_weights(str(tmp_path / "net.safetensors"))


def test_mean_and_std_are_part_of_the_network() -> None:
    backbone = create_backbone("mobile_narrow").eval()
    crops = torch.rand(1, 3, 32, 32)
    expected = (crops - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    torch.testing.assert_close(backbone.normalize(crops), expected)


def test_sidecar_reads_back_as_it_was_written(tmp_path: Path) -> None:
    info = info_of("nkf", architecture(), create_model("nkf", architecture(), 8))
    info.write(tmp_path / "net.json")
    assert WeightsInfo.model_validate_json((tmp_path / "net.json").read_bytes()) == info
