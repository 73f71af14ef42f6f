"""What layers do in evaluation mode, by their formulas: networks are tested against these."""

import torch.nn.functional as F
from torch import Tensor, nn


def batch_norm(x: Tensor, layer: nn.Module) -> Tensor:
    """Batch norm of (B, C, ...)."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    centred = (x - layer.running_mean.view(shape)) / (layer.running_var.view(shape) + layer.eps).sqrt()
    return centred * layer.weight.view(shape) + layer.bias.view(shape)


def conv_bn(x: Tensor, layer: nn.Sequential, *, stride: int = 1, groups: int = 1) -> Tensor:
    """A `ConvBN` without its activation."""
    padding = layer.conv.weight.shape[-1] // 2
    return batch_norm(F.conv2d(x, layer.conv.weight, None, stride, padding, 1, groups), layer.bn)


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def scatter_batch_norms(network: nn.Module) -> nn.Module:
    """Give every batch norm random statistics and weights, so that a lost one shows; evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.uniform_(-0.5, 0.5)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5)
    return network.eval()
