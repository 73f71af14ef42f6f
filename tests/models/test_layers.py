import torch
from torch import nn

from nkf.models.layers import PReLU


def test_prelu_agrees_with_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = PReLU(5).double(), nn.PReLU(5).double()
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.uniform_(-0.5, 0.5))
    x = torch.randn(3, 5, 4, 6, dtype=torch.double)
    gradient = torch.randn_like(x)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(gradient)
        results.append((y.detach(), leaf.grad, layer.weight.grad))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs)


def test_prelu_takes_channels_last_and_bfloat16() -> None:
    layer = PReLU(8)
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x.bfloat16()).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(layer.weight.grad).all()
