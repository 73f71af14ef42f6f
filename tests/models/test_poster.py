from typing import Any

import pytest
import torch
from gradients import without_gradient
from plain_transformer import State, cross_attention, gate, layer_norm, linear, mlp, part, scatter_parameters
from torch import Tensor, nn

from nkf.costs import macs_by_part, parameters_by_part
from nkf.models import count_parameters
from nkf.models.poster import POSTER, CrossFusion, Gate, Pyramid, StochasticDepth, image_tokens, map_tokens

PARTS = {
    "landmark trunk": ["landmark_trunk", "landmark_head"],
    "image trunk": ["image_trunk"],
    "1024 to 512": ["image_embedding"],
    "fusion": ["fusion"],
    "gate": ["gate"],
    "classifier": ["classifier"],
}
DEAD = {"landmark head": ["landmark_head"], "tail": ["image_trunk.dead_tail"], "class token": ["fusion.dead_summary"]}
TRUNKS = {"landmark trunk": 1_007_248, "image trunk": 30_459_584, "1024 to 512": 524_800, "gate": 525_312}
TRUNK_MACS = {
    "landmark trunk": 220_969_472, "image trunk": 5_467_979_776, "1024 to 512": 25_690_112, "gate": 524_288,
}  # fmt: skip
# options, then parameters: total, fusion, classifier; then multiply-adds of a crop: the same
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[int, int, int], tuple[int, int, int]]] = {
    "large": ({}, (71_850_399, 39_329_864, 3_591), (7_856_965_632, 2_141_798_400, 3_584)),
    "base": ({"depth": 6}, (62_039_767, 29_519_232, 3_591), (7_324_076_032, 1_608_908_800, 3_584)),
    "small": ({"depth": 4}, (52_229_135, 19_708_600, 3_591), (6_791_186_432, 1_076_019_200, 3_584)),
    "AffectNet-7": (
        {"token_mixing": False}, (71_607_999, 39_087_464, 3_591), (7_785_285_632, 2_070_118_400, 3_584),
    ),
    "AffectNet-8": (
        {"token_mixing": False, "num_classes": 8}, (71_608_512, 39_087_464, 4_104),
        (7_785_286_144, 2_070_118_400, 4_096),
    ),
}  # fmt: skip


def on_meta(**options: Any) -> POSTER:
    with torch.device("meta"):
        return POSTER(**({"num_classes": 7} | options))


@pytest.fixture(scope="module")
def published() -> POSTER:
    return POSTER(num_classes=7, dead_parts=True)


@pytest.fixture(scope="module")
def network() -> POSTER:
    torch.manual_seed(0)
    return scatter_parameters(POSTER(num_classes=7, depth=2))


@pytest.fixture(scope="module")
def example(network: POSTER) -> tuple[Tensor, Tensor]:
    """A crop and its logits."""
    crops = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        return crops, network(crops)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    options, (total, fusion, classifier), _ = PUBLISHED[name]
    network = on_meta(**options, dead_parts=True)
    assert parameters_by_part(network, PARTS) == TRUNKS | {"fusion": fusion, "classifier": classifier}
    assert count_parameters(network) == total
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == total - 1_007_248


def test_macs_are_the_published_ones(published: POSTER) -> None:
    _, _, (total, fusion, classifier) = PUBLISHED["large"]
    ours = macs_by_part(published.eval(), PARTS, torch.rand(1, 3, 224, 224))
    assert ours == TRUNK_MACS | {"fusion": fusion, "classifier": classifier, "total": total}


@pytest.mark.parametrize("name", ["base", "small", "AffectNet-7", "AffectNet-8"])
def test_macs_of_the_variants_differ_in_the_fusion(name: str) -> None:
    options, _, (total, fusion, classifier) = PUBLISHED[name]
    pyramid = Pyramid(options.get("depth", 8), token_mixing="token_mixing" not in options, drop_rate=0, dead_parts=True)
    assert macs_by_part(pyramid.eval(), {}, torch.rand(1, 49, 512), torch.rand(1, 49, 512)) == {"total": fusion}
    assert sum(TRUNK_MACS.values()) + fusion + classifier == total


def test_dead_parts_get_no_gradient_and_are_left_out_by_default(published: POSTER) -> None:
    live = on_meta()
    sizes = parameters_by_part(published, DEAD)
    assert sizes == {"landmark head": 96_016, "tail": 12_847_616, "class token": 512}
    assert count_parameters(published) - count_parameters(live) == sum(sizes.values()) == 12_944_144
    assert count_parameters(live) == 58_906_255
    dead = without_gradient(published, torch.rand(1, 3, 112, 112))
    kept = {name for name, _ in live.named_parameters()}
    assert set(dead) == {name for name, p in published.named_parameters() if p.requires_grad} - kept
    assert all(name.startswith(("image_trunk.dead_tail.", "fusion.dead_summary")) for name in dead)


def test_image_tokens_are_runs_of_memory_not_places() -> None:
    feature_map = torch.randn(2, 256, 14, 14)
    tokens = image_tokens(feature_map)
    assert tokens.shape == (2, 49, 1024)
    for token, place in ((0, 0), (17, 3), (48, 1023)):
        channel, y, x = (1024 * token + place) // 196, (1024 * token + place) // 14 % 14, (1024 * token + place) % 14
        assert torch.equal(tokens[:, token, place], feature_map[:, channel, y, x])
    assert torch.equal(tokens, image_tokens(feature_map.to(memory_format=torch.channels_last)))
    places = feature_map.reshape(2, 256, 7, 2, 7, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 49, 1024)
    assert not torch.equal(tokens, places)


def cross_fusion(x: Tensor, state: State) -> Tensor:
    """The block's equations: both streams are renewed from the block's input."""
    image, landmarks = x[:, :50], x[:, 50:]
    renewed = []
    for name, own, other in (("image", image, landmarks), ("landmarks", landmarks, image)):
        s = part(state, name)
        queries, source = (layer_norm(x, part(s, "norm"), 1e-6) for x in (other, own))
        own = own + cross_attention(queries, source, part(s, "attention"), heads=8)
        renewed.append(own + mlp(layer_norm(own, part(s, "mlp_norm"), 1e-6), part(s, "mlp")))
    y = torch.cat(renewed, dim=1)
    if "mix.weight" in state:
        y = torch.einsum("ot,btd->bod", state["mix.weight"][..., 0], y) + state["mix.bias"][:, None]
    return y


def narrowed(x: Tensor, layer: State) -> Tensor:
    """Convolution over the features with stride = kernel: a matrix for every place in the kernel."""
    kernel = layer["weight"].shape[-1]
    runs = x.reshape(len(x), 100, -1, kernel)
    return torch.einsum("otk,btdk->bod", layer["weight"], runs) + layer["bias"][:, None]


def widened(x: Tensor, layer: State) -> Tensor:
    y = torch.einsum("tok,btd->bodk", layer["weight"], x).flatten(2)
    return y + layer["bias"][:, None]


def pyramid(image: Tensor, landmarks: Tensor, state: State, depth: int) -> Tensor:
    with_means = [torch.cat([tokens.mean(dim=1)[:, None], tokens], dim=1) for tokens in (image, landmarks)]
    large = torch.cat([with_means[0] + state["position"], with_means[1]], dim=1)
    medium, small = narrowed(large, part(state, "to_medium")), narrowed(large, part(state, "to_small"))
    for number in range(depth):
        layer = part(state, f"layers.{number}")
        large, medium, small = (
            cross_fusion(x, part(layer, name)) for x, name in ((large, "large"), (medium, "medium"), (small, "small"))
        )
        medium = medium + widened(small, part(layer, "small_to_medium"))
        large = large + widened(medium, part(layer, "medium_to_large"))
    return layer_norm(large, part(state, "norm"), 1e-6)[:, 0]


@pytest.mark.parametrize("token_mixing", [True, False])
def test_cross_fusion_follows_its_equations(token_mixing: bool) -> None:
    torch.manual_seed(0)
    block = scatter_parameters(CrossFusion(16, 0.1, token_mixing=token_mixing)).double()
    x = torch.randn(2, 100, 16, dtype=torch.double)
    assert count_parameters(block) == 14 * 16**2 + 20 * 16 + (10_100 if token_mixing else 0)
    with torch.no_grad():
        torch.testing.assert_close(block(x), cross_fusion(x, block.state_dict()))


def test_logits_follow_the_equations(network: POSTER, example: tuple[Tensor, Tensor]) -> None:
    crops, logits = example
    with torch.no_grad():
        image_maps, landmark_maps = network.trunk_maps(crops)
        image = network.image_embedding(image_maps[-1].flatten(1).reshape(1, 49, 1024))
        landmarks = torch.stack([landmark_maps[-1][:, :, t // 7, t % 7] for t in range(49)], dim=1)
        y = pyramid(image, landmarks, network.fusion.state_dict(), depth=2)
        expected = linear(gate(y, network.gate.state_dict()), network.classifier.state_dict())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_only_every_second_pixel_of_224_counts(network: POSTER, example: tuple[Tensor, Tensor]) -> None:
    crops, logits = example
    large = torch.rand(1, 3, 224, 224)
    large[..., ::2, ::2] = crops
    with torch.no_grad():
        torch.testing.assert_close(network(large), logits)


def test_landmarks_and_memory_format_do_not_matter(network: POSTER, example: tuple[Tensor, Tensor]) -> None:
    crops, logits = example
    with torch.no_grad():
        ours = network(crops.to(memory_format=torch.channels_last), torch.rand(1, 68, 2))
        features = network.features(crops, torch.rand(1, 68, 2))
        torch.testing.assert_close(network.classifier(features), logits)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_without_token_mixing_half_of_the_last_large_fusion_has_no_effect() -> None:
    torch.manual_seed(0)
    fusion = Pyramid(1, token_mixing=False, drop_rate=0.0, dead_parts=False)
    fusion(torch.randn(1, 49, 512), torch.randn(1, 49, 512)).square().sum().backward()
    idle = [name for name, parameter in fusion.named_parameters() if not parameter.grad.any()]
    assert idle
    assert all(name.startswith("layers.0.large.landmarks.") for name in idle)
    assert sum(fusion.get_parameter(name).numel() for name in idle) == 7 * 512**2 + 10 * 512


def test_only_the_image_stream_has_positions() -> None:
    torch.manual_seed(0)
    fusion = Pyramid(1, token_mixing=True, drop_rate=0.0, dead_parts=True).double().eval()
    assert fusion.position.shape == (1, 50, 512)
    assert not fusion.position.any()
    nn.init.normal_(fusion.position)
    image, landmarks = torch.randn(2, 1, 49, 512, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(fusion(image, landmarks), pyramid(image, landmarks, fusion.state_dict(), depth=1))


def test_map_tokens_are_places_row_by_row() -> None:
    assert map_tokens(torch.arange(12.0).reshape(1, 2, 2, 3)).tolist() == [[[n, n + 6] for n in range(6)]]


def test_gate_multiplies() -> None:
    fresh, y = Gate(4), torch.tensor([[1.0, -2.0, 3.0, 0.0]])
    nn.init.zeros_(fresh.weigh[2].weight)
    nn.init.constant_(fresh.weigh[2].bias, 1.0)
    torch.testing.assert_close(fresh(y), y / (1 + torch.exp(torch.tensor(-1.0))))


def test_stochastic_depth_rises_evenly_and_drops_whole_faces() -> None:
    layers = on_meta().fusion.layers
    for number, layer in enumerate(layers):
        rates = {module.rate for module in layer.modules() if isinstance(module, StochasticDepth)}
        assert list(rates) == [pytest.approx(0.1 * number / 7)]
    torch.manual_seed(0)
    drop, branch = StochasticDepth(0.25), torch.randn(4000, 3, 2)
    dropped = drop(branch)
    zero = (dropped == 0).all(dim=(1, 2))
    assert 0.22 < zero.float().mean() < 0.28
    torch.testing.assert_close(dropped[~zero], branch[~zero] / 0.75)
    assert torch.equal(drop.eval()(branch), branch)


def test_fusion_trains_in_bfloat16() -> None:
    block = CrossFusion(16, 0.5, token_mixing=True)
    with torch.autocast("cpu", torch.bfloat16):
        block(torch.randn(3, 100, 16)).float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in block.parameters())
