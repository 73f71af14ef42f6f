"""Start a backbone from face-identity weights: rename their tensors, put batch norm back where it was folded.

Two sources with permissive licences are known: ``foamliu_mobilefacenet`` (Apache-2.0) fits ``mobile_narrow`` and keeps
its batch norms; ``espdl_mbf`` (MIT) fits ``mobile``, and its batch norms are folded into convolutions with bias.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nkf.errors import NkfError
from nkf.models.backbone import MobileFaceNet
from nkf.models.layers import ConvBN


def load_pretrained(backbone: nn.Module, file: Path, crops: Tensor) -> None:
    """Load face-identity weights into a MobileFaceNet, in place; every tensor of the backbone must be filled.

    Args:
        backbone: ``mobile`` or ``mobile_narrow`` with fresh weights.
        file: ``weights.safetensors`` of one of the two known sources.
        crops: (B, 3, S, S) RGB in [0, 1], a few hundred aligned faces, from which folded batch norms are estimated.

    Raises:
        NkfError: when the file can't be read or does not fit the backbone.
    """
    if not isinstance(backbone, MobileFaceNet):
        raise NkfError(f"{file}: these weights fit the backbones mobile and mobile_narrow only")
    try:
        source = load_file(file)
    except (OSError, SafetensorError) as error:
        raise NkfError(f"{file}: not a readable safetensors file ({error})") from error
    try:
        renamed = {_our_name(name): value.float() for name, value in source.items() if not name.startswith("embed")}
    except (KeyError, ValueError, IndexError) as error:
        raise NkfError(f"{file}: not one of the two known sources of starting weights (tensor {error})") from error
    folded = {name: value for name, value in renamed.items() if name.endswith(".folded_bias")}
    expected = backbone.state_dict()
    kept = {name: expected[name] for name in expected if name.startswith("normalize.") or name.endswith("_tracked")}
    if folded:
        kept |= {name: expected[name] for name in expected if ".bn." in name}
    try:
        backbone.load_state_dict(kept | {n: v for n, v in renamed.items() if n not in folded}, strict=True)
    except RuntimeError as error:
        raise NkfError(f"{file}: does not fit this backbone ({str(error).splitlines()[-1].strip()})") from error
    if folded:
        _unfold_batch_norms(backbone, folded, crops)


_FOLDED_TENSORS = {"weight": ["conv", "weight"], "bias": ["folded_bias"], "prelu": ["act", "weight"]}
_ESPDL_STAGES = {"stage1": (0, 1), "stage2": (1, 1), "stage3": (2, 1)}  # our stage, and block that its block 0 becomes
_FOAMLIU_STAGES = {"stage1": (0, 0), "stage2": (1, 0), "stage3": (1, 1), "stage4": (2, 0), "stage5": (2, 1)}


def _our_name(name: str) -> str:
    """Translate a tensor name of either source to ours."""
    *path, tensor = name.split(".")
    stages, tail = _FOAMLIU_STAGES, [tensor]
    if path[-1] not in ("conv", "bn"):
        stages, tail = _ESPDL_STAGES, _FOLDED_TENSORS[tensor]
    if path[0].startswith("down"):
        path[:1] = ["stages", str(int(path[0][4:]) - 1), "0"]
    elif path[0] in stages:
        stage, first = stages[path[0]]
        path[:2] = ["stages", str(stage), str(first + int(path[1]))]
    return ".".join(path + tail)


def _unfold_batch_norms(backbone: nn.Module, folded: dict[str, Tensor], crops: Tensor) -> None:
    """Give every batch norm the statistics of `crops`, and the scale and shift that leave the function unchanged."""
    handles = []
    for name, layer in backbone.named_modules():
        if isinstance(layer, ConvBN):
            bias = folded[f"{name}.folded_bias"]
            handles.append(
                layer.bn.register_forward_pre_hook(lambda bn, args, bias=bias: _set_identity(bn, args, bias))
            )
    was_training = backbone.training
    with torch.no_grad():
        backbone.eval()(crops)
    backbone.train(was_training)
    for handle in handles:
        handle.remove()


def _set_identity(bn: nn.BatchNorm2d, args: tuple[Tensor, ...], bias: Tensor) -> None:
    variance, mean = torch.var_mean(args[0], dim=(0, 2, 3), correction=0)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean.copy_(mean)
    bn.running_var.copy_(variance)
    bn.weight.copy_((variance + bn.eps).sqrt())
    bn.bias.copy_(mean + bias.to(mean))
