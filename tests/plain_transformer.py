"""What the layers of a transformer do, by their formulas on a state dict: networks are tested against these."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = dict[str, Tensor]


def part(state: State, name: str) -> State:
    """The tensors of one submodule, under their names in it."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def linear(x: Tensor, state: State) -> Tensor:
    return x @ state["weight"].T + state["bias"]


def layer_norm(x: Tensor, state: State, eps: float) -> Tensor:
    deviation = (x.var(dim=-1, correction=0, keepdim=True) + eps).sqrt()
    return (x - x.mean(dim=-1, keepdim=True)) / deviation * state["weight"] + state["bias"]


def mlp(x: Tensor, state: State) -> Tensor:
    return linear(F.gelu(linear(x, part(state, "0"))), part(state, "2"))


def cross_attention(queries: Tensor, source: Tensor, state: State, heads: int, bias: Tensor | None = None) -> Tensor:
    """Head by head, with the queries as they are; bias (heads, T, T)."""
    width = queries.shape[-1] // heads
    keys, values = linear(source, part(state, "to_keys_values")).chunk(2, dim=-1)
    attended = []
    for head in range(heads):
        own = slice(width * head, width * (head + 1))
        scores = width**-0.5 * queries[..., own] @ keys[..., own].transpose(1, 2)
        scores = scores if bias is None else scores + bias[head]
        attended.append(torch.softmax(scores, dim=-1) @ values[..., own])
    return linear(torch.cat(attended, dim=-1), part(state, "project"))


def gate(y: Tensor, state: State) -> Tensor:
    return y * torch.sigmoid(linear(linear(y, part(state, "weigh.0")).clamp(min=0), part(state, "weigh.2")))


def scatter_parameters(network: nn.Module) -> nn.Module:
    """Move every parameter off its start, so that a lost or misplaced one shows; evaluation mode."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()
