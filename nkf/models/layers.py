"""Blocks that several networks share."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["prelu", "relu6", "relu", "none"]


class _PReLUFunction(torch.autograd.Function):
    """PReLU with a backward pass of a few plain operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return F.prelu(x, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        positive = torch.ops.aten.threshold_backward(gradient, x, 0)
        negative = gradient - positive
        return torch.addcmul(positive, negative, slope.view(1, -1, 1, 1)), (negative * x).sum(dim=(0, 2, 3))


class PReLU(nn.PReLU):
    """`nn.PReLU` with a quicker backward pass on a CPU, which is 29 % of a MobileFaceNet's training step.

    27 instead of 47 ms for 32x128x56x56 on two threads with tcmalloc; with glibc's allocator 67 instead of 70
    (`benchmarks/prelu.py`, 2026-11-21).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu":
            y: Tensor = _PReLUFunction.apply(x, self.weight)  # type: ignore[no-untyped-call]
            return y
        return super().forward(x)


def make_activation(kind: Activation, channels: int) -> nn.Module:
    """Build one activation layer."""
    if kind == "prelu":
        return PReLU(channels)
    plain: dict[str, type[nn.Module]] = {"relu6": nn.ReLU6, "relu": nn.ReLU, "none": nn.Identity}
    return plain[kind]()


class ConvBN(nn.Sequential):
    """Convolution without bias, batch norm, activation; the padding keeps the size at stride 1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = make_activation(activation, outputs)


class DepthwiseBlock(nn.Module):
    """Inverted residual: 1x1 expand, 3x3 depth-wise, 1x1 project without activation, plus the input where it fits."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, stride: int, activation: Activation) -> None:
        super().__init__()
        self.expand = ConvBN(inputs, hidden, activation=activation)
        self.dw = ConvBN(hidden, hidden, kernel=3, stride=stride, groups=hidden, activation=activation)
        self.project = ConvBN(hidden, outputs)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.dw(self.expand(x)))
        return x + y if self.skip else y


class ImageNormalization(nn.Module):
    """Subtract mean and divide by std, so that every network takes RGB in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, crops: Tensor) -> Tensor:
        return (crops - self.mean) / self.std
