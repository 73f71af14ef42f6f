"""Face-identity weights are not in the repository; files of the same layout are made here."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nkf.errors import NkfError
from nkf.models.backbone import create_backbone
from nkf.models.layers import ConvBN
from nkf.models.pretrained import load_pretrained

FOAMLIU_STAGES = {(0, 0): "stage1.0", (1, 0): "stage2.0", (2, 0): "stage4.0"}


def randomized(name: str) -> nn.Module:
    torch.manual_seed(0)
    backbone = create_backbone(name)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return backbone.eval()


def espdl_tensors(backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Fold the batch norms, and name tensors as the source does."""
    tensors = {}
    for name, layer in backbone.named_modules():
        if isinstance(layer, ConvBN):
            scale = layer.bn.weight / (layer.bn.running_var + layer.bn.eps).sqrt()
            new = name
            if name.startswith("stages."):
                _, stage, block, part = name.split(".")
                new = (
                    f"down{int(stage) + 1}.{part}" if block == "0" else f"stage{int(stage) + 1}.{int(block) - 1}.{part}"
                )
            tensors[f"{new}.weight"] = layer.conv.weight * scale.view(-1, 1, 1, 1)
            tensors[f"{new}.bias"] = layer.bn.bias - layer.bn.running_mean * scale
            if isinstance(layer.act, nn.PReLU):
                tensors[f"{new}.prelu"] = layer.act.weight
    tensors["embed_fc.weight"] = torch.zeros(3)
    return {name: value.detach().clone() for name, value in tensors.items()}


def foamliu_tensors(backbone: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, value in backbone.state_dict().items():
        if name.startswith("normalize") or name.endswith("num_batches_tracked"):
            continue
        if name.startswith("stages."):
            _, stage, block, rest = name.split(".", 3)
            source = {"0": ("stage1", 0), "1": ("stage3", 1), "2": ("stage5", 1)}[stage]
            first = FOAMLIU_STAGES.get((int(stage), int(block)), f"{source[0]}.{int(block) - source[1]}")
            name = f"{first}.{rest}"
        tensors[name] = value.clone()
    return tensors


@pytest.mark.parametrize(("name", "rename"), [("mobile", espdl_tensors), ("mobile_narrow", foamliu_tensors)])
def test_loaded_backbone_computes_what_the_source_did(name: str, rename: object, tmp_path: Path) -> None:
    source = randomized(name)
    save_file(rename(source), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    backbone = create_backbone(name)
    load_pretrained(backbone, tmp_path / "weights.safetensors", torch.rand(8, 3, 64, 64))
    crops = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for stride, expected in source(crops).items():
            found = backbone.eval()(crops)[stride]
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_batch_norms_put_back_have_the_statistics_of_the_crops(tmp_path: Path) -> None:
    save_file(espdl_tensors(randomized("mobile")), tmp_path / "weights.safetensors")
    backbone = create_backbone("mobile")
    crops = torch.rand(8, 3, 64, 64)
    load_pretrained(backbone, tmp_path / "weights.safetensors", crops)
    with torch.no_grad():
        before = backbone.eval()(crops)[16]
        after = backbone.train()(crops)[16]  # statistics of this batch instead of the stored ones: the same
    torch.testing.assert_close(after, before, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("backbone", "content", "message"),
    [
        ("tiny", {}, "fit the backbones mobile and mobile_narrow only"),
        ("mobile", {"stem.weight": torch.zeros(1)}, "does not fit this backbone"),
        ("mobile", {"backbone.normalize.mean": torch.zeros(3)}, "not one of the two known sources"),
        ("mobile", None, "not a readable safetensors file"),
    ],
)
def test_unfit_weights_are_refused(backbone: str, content: dict | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    if content is None:
        file.write_bytes(b"no weights")
    else:
        save_file(content or {"x": torch.zeros(1)}, file)
    with pytest.raises(NkfError, match=message):
        load_pretrained(create_backbone(backbone), file, torch.rand(2, 3, 64, 64))
