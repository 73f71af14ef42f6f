"""Parameters that get no gradient."""

from torch import Tensor, nn


def without_gradient(network: nn.Module, crops: Tensor) -> list[str]:
    """Names of the parameters that should get a gradient from the logits, and get none."""
    network.train()(crops).sum().backward()
    live = ((name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad)
    return [name for name, parameter in live if parameter.grad is None]
