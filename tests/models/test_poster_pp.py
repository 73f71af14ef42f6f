import pytest
import torch
import torch.nn.functional as F
from gradients import without_gradient
from plain_transformer import State, cross_attention, gate, layer_norm, linear, mlp, part, scatter_parameters
from torch import Tensor, nn

from nkf.costs import macs_by_part, parameters_by_part
from nkf.models import count_parameters
from nkf.models.poster import StochasticDepth
from nkf.models.poster_pp import Level, PositionBias, POSTERPlusPlus, Transformer

PARTS = {
    "landmark trunk": ["landmark_trunk", "landmark_head"],
    "image trunk": ["image_trunk"],
    "landmark conv": ["landmark_reduce"],
    "transformer, gate, classifier": ["transformer", "gate", "classifier"],
}
for _n in range(3):
    PARTS |= {
        f"strided conv {_n + 1}": [f"levels.{_n}.halve"],
        f"input norm {_n + 1}": [f"levels.{_n}.norm"],
        f"cross attention {_n + 1}": [f"levels.{_n}.attention"],
        f"feed-forward {_n + 1}": [f"levels.{_n}.feed_forward"],
        f"token convs {_n + 1}": [f"embeddings.{_n}"],
    }
# parameters, and multiply-adds of a crop
PUBLISHED = {
    "landmark trunk": (1_007_248, 220_969_472),
    "image trunk": (30_459_584, 5_467_979_776),
    "strided conv 1": (36_928, 28_901_376),
    "strided conv 2": (147_584, 28_901_376),
    "strided conv 3": (590_080, 28_901_376),
    "landmark conv": (1_179_904, 57_802_752),
    "input norm 1": (128, 0),
    "input norm 2": (256, 0),
    "input norm 3": (512, 0),
    "cross attention 1": (18_530, 88_309_760),
    "cross attention 2": (52_452, 19_468_288),
    "cross attention 3": (198_728, 10_863_104),
    "feed-forward 1": (33_344, 25_690_112),
    "feed-forward 2": (132_224, 25_690_112),
    "feed-forward 3": (526_592, 25_690_112),
    "token convs 1": (5_752_320, 346_816_512),
    "token convs 2": (885_504, 43_352_064),
    "token convs 3": (197_376, 9_633_792),
    "transformer, gate, classifier": (17_097_300, 2_163_528_960),
}
DEAD = {
    "tail": (["image_trunk.dead_tail"], 12_847_616),
    "landmark head": (["landmark_head"], 96_016),
    "patch projection": (["transformer.dead.patch_embedding"], 197_376),
    "1x1 conv": (["transformer.dead.pointwise"], 196_608),
    "linears": (["transformer.dead.linear_1", "transformer.dead.linear_2"], 787_200 + 393_728),
    "channel attention": (["transformer.dead.channel_attention"], 5),
    "token mixing": (["transformer.dead.token_mixing"], 2 * 22_052),
}


@pytest.fixture(scope="module")
def published() -> POSTERPlusPlus:
    torch.manual_seed(0)
    return POSTERPlusPlus(num_classes=7, dead_parts=True)


def test_parameters_are_the_published_ones(published: POSTERPlusPlus) -> None:
    assert parameters_by_part(published, PARTS) == {part: count for part, (count, _) in PUBLISHED.items()}
    assert count_parameters(published) == 58_316_594
    assert sum(p.numel() for p in published.parameters() if p.requires_grad) == 57_309_346


def test_fresh_values_are_the_published_ones(published: POSTERPlusPlus) -> None:
    transformer, levels = published.transformer, published.levels
    parts = (transformer.blocks, published.gate, published.classifier)
    linears = [module for part in parts for module in part.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 2 * 4 + 2 + 1
    for layer in linears:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not layer.bias.any()
    tables = [level.attention.position_bias.table for level in levels]
    for table in (transformer.class_token, transformer.position, *tables):
        assert table.std().item() == pytest.approx(0.02, rel=0.1)
    for level, rate in zip(levels, (0, 0.125, 0.25), strict=True):
        assert (level.feed_forward.attended_scale == 1e-5).all()
        assert (level.feed_forward.mlp_scale == 1e-5).all()
        assert [module.rate for module in level.modules() if isinstance(module, StochasticDepth)] == [rate]
        weight = level.attention.attention.project.weight  # torch's own start, uniform up to 1 / sqrt(inputs)
        assert weight.abs().max().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.01)


def test_macs_are_the_published_ones(published: POSTERPlusPlus) -> None:
    ours = macs_by_part(published.eval(), PARTS, torch.rand(1, 3, 224, 224))
    assert ours == {part: macs for part, (_, macs) in PUBLISHED.items() if macs} | {"total": 8_592_498_944}


def test_dead_parts_get_no_gradient_and_are_left_out_by_default(published: POSTERPlusPlus) -> None:
    live = POSTERPlusPlus(num_classes=8)
    sizes = parameters_by_part(published, {part: names for part, (names, _) in DEAD.items()})
    assert sizes == {part: size for part, (_, size) in DEAD.items()}
    assert count_parameters(live) == 58_317_363 - sum(sizes.values()) == 43_753_941 + 769  # published for 8 classes
    dead = without_gradient(published, torch.rand(1, 3, 112, 112))
    kept = {name for name, _ in live.named_parameters()}
    assert set(dead) == {name for name, p in published.named_parameters() if p.requires_grad} - kept
    assert all(name.startswith(("image_trunk.dead_tail.", "transformer.dead.")) for name in dead)


def test_position_bias_depends_on_the_offset() -> None:
    bias = PositionBias(3, 2)
    places = [(y, x) for y in range(3) for x in range(3)]
    with torch.no_grad():
        values = bias()
        for i, (y, x) in enumerate(places):
            for j, (other_y, other_x) in enumerate(places):
                row = 5 * (y - other_y + 2) + (x - other_x + 2)
                assert torch.equal(values[:, i, j], bias.table[row])
    assert "index" not in bias.state_dict()


def fuse(image_map: Tensor, landmark_map: Tensor, state: State, bias: Tensor) -> Tensor:
    """The level's equations, place by place: (B, D, 2W, 2W) and (B, D, W, W) to tokens (B, W^2, D)."""
    halved = F.conv2d(image_map, state["halve.weight"], state["halve.bias"], stride=2, padding=1)
    side = landmark_map.shape[-1]
    places = [(y, x) for y in range(side) for x in range(side)]
    s = torch.stack([halved[:, :, y, x] for y, x in places], dim=1)
    s = layer_norm(s, part(state, "norm"), 1e-5)
    queries = torch.stack([landmark_map[:, :, y, x] for y, x in places], dim=1)
    ffn = part(state, "feed_forward")
    attended = cross_attention(queries, s, part(state, "attention.attention"), s.shape[-1] // 32, bias)
    o = s + ffn["attended_scale"] * attended
    return o + ffn["mlp_scale"] * mlp(layer_norm(o, part(ffn, "norm"), 1e-5), part(ffn, "mlp"))


def test_level_follows_its_equations() -> None:
    torch.manual_seed(0)
    level = scatter_parameters(Level(64, 3, 0.1)).double()
    nn.init.constant_(level.feed_forward.attended_scale, 0.7)
    nn.init.constant_(level.feed_forward.mlp_scale, -0.4)
    image_map = torch.randn(2, 64, 6, 6, dtype=torch.double)
    landmark_map = torch.randn(2, 64, 3, 3, dtype=torch.double)
    with torch.no_grad():
        fused = level(image_map, landmark_map)
        expected = fuse(image_map, landmark_map, level.state_dict(), level.attention.position_bias())
        for place in range(9):
            torch.testing.assert_close(fused[:, :, place // 3, place % 3], expected[:, place])
        channels_last = level(*(m.to(memory_format=torch.channels_last) for m in (image_map, landmark_map)))
    torch.testing.assert_close(channels_last, fused)


def test_transformer_is_the_usual_one() -> None:
    torch.manual_seed(0)
    ours = scatter_parameters(Transformer(dead_parts=False))
    names = {
        "norm": "norm1", "to_queries_keys_values": "self_attn.in_proj", "project": "self_attn.out_proj",
        "mlp_norm": "norm2", "mlp.0": "linear1", "mlp.2": "linear2",
    }  # fmt: skip
    tokens = torch.randn(1, 147, 768)
    x = torch.cat([ours.class_token, tokens], dim=1) + ours.position
    for block in ours.blocks:
        layer = nn.TransformerEncoderLayer(
            768, 8, 3072, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        state = {}
        for name, value in block.state_dict().items():
            module, kind = name.rsplit(".", 1)
            joint = "_" if names[module].endswith("in_proj") else "."
            state[f"{names[module]}{joint}{kind}"] = value
        layer.load_state_dict(state)
        x = layer(x)  # in training mode, where torch takes no short cut
    with torch.no_grad():
        expected = F.layer_norm(x[:, 0], (768,), ours.norm.weight, ours.norm.bias, 1e-6)
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-4)


def test_logits_are_put_together_from_the_levels(published: POSTERPlusPlus) -> None:
    torch.manual_seed(0)
    network = published.eval()
    for level in network.levels:
        for scale in (level.feed_forward.attended_scale, level.feed_forward.mlp_scale):
            nn.init.constant_(scale, 0.5)  # else the landmarks would not show
    crops = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        image_maps, landmark_maps = network.trunk_maps(crops)
        reduced = [*landmark_maps[:2], network.landmark_reduce(landmark_maps[2])]
        maps = [level(*pair) for level, *pair in zip(network.levels, image_maps, reduced, strict=True)]
        first, second, third = maps
        one, two = network.embeddings[0]
        first = F.conv2d(first, one.weight, one.bias, stride=2, padding=1)
        first = F.conv2d(first, two.weight, two.bias, stride=2, padding=1)
        second = F.conv2d(second, network.embeddings[1].weight, network.embeddings[1].bias, stride=2, padding=1)
        third = F.conv2d(third, network.embeddings[2].weight, network.embeddings[2].bias)
        tokens = [torch.stack([m[:, :, t // 7, t % 7] for t in range(49)], dim=1) for m in (first, second, third)]
        y = network.transformer(torch.cat(tokens, dim=1))
        expected = linear(gate(y, network.gate.state_dict()), network.classifier.state_dict())
        large = torch.rand(1, 3, 224, 224)
        large[..., ::2, ::2] = crops
        for given in (crops, large.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(network(given, torch.rand(1, 68, 2)), expected, rtol=1e-3, atol=1e-5)
        assert (expected - network(crops.flip(-1))).abs().max() > 1e-3  # so that the bounds above mean something


def test_level_trains_in_bfloat16() -> None:
    level = Level(64, 3, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        level(torch.randn(3, 64, 6, 6), torch.randn(3, 64, 3, 3)).float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in level.parameters())
