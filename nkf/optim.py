"""Optimiser, learning rate and weight average of a run, and its steps: plain, or sharpness-aware."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import SupportsFloat

import torch
from torch import Tensor, nn

from nkf.config import TrainConfig

Closure = Callable[[], SupportsFloat]  # adds the gradients of a batch to the weights' and returns its loss


def learning_rate(config: TrainConfig, step: int, total: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0 of `total`): linear warm-up, times the schedule, which starts with it."""
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    periods = step / steps_per_epoch / config.decay_epochs
    factor = {
        "cosine": 0.5 * (1 + math.cos(math.pi * step / total)),
        "exponential": config.decay**periods,
        "steps": config.decay ** math.floor(periods),
        "constant": 1.0,
    }[config.schedule]
    return config.learning_rate * warm_up * factor


def moving_average(decay: float) -> Callable[..., None]:
    """Exponential moving average that forgets faster at first: min(decay, (1 + n) / (10 + n)) after n steps."""

    def update(average: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        weight = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        if average[0].is_floating_point():  # one call has tensors of one type
            torch._foreach_lerp_(average, current, weight)
        else:
            torch._foreach_copy_(average, current)

    return update


class Descent:
    """Steps of an optimiser, plain or by sharpness-aware minimisation (SAM; Foret et al., ICLR 2021, arXiv 2010.01412).

    SAM takes the gradient not at the weights w but at w + rho g / |g|, where the loss is highest nearby; g is the
    gradient at w. Batch-norm statistics move in the pass at w alone, and w is put back from a copy, bit for bit.

    Args:
        model: network whose weights are stepped and whose buffers are the batch-norm statistics.
        optimizer: of its weights.
        clip_norm: largest norm of the gradient.
        rho: radius of SAM; 0 for plain steps.
        local: makes the context of SAM's first pass. With several processes their gradients are not averaged in it:
            each climbs on its own images (the paper's m-sharpness), and half of the communication is saved.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float,
        rho: float = 0.0,
        local: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(model.buffers())
        self.optimizer = optimizer
        self._clip_norm = clip_norm
        self._rho = rho
        self._local = local

    def step(self, closure: Closure) -> float:
        """Take one step.

        Args:
            closure: called once, by SAM twice; has to compute the same loss each time, dropout included.

        Returns:
            The loss at the weights before the step. NaN if a loss or the norm of the gradient is not finite: then
            nothing has changed, batch-norm statistics neither.
        """
        statistics = _copies(self._buffers)
        self.optimizer.zero_grad()
        losses = self._climb_and_look_back(closure) if self._rho else [closure()]
        norm = nn.utils.clip_grad_norm_(self._weights, self._clip_norm)
        if not all(math.isfinite(value) for value in (*losses, norm)):
            _put_back(self._buffers, statistics)
            return math.nan
        self.optimizer.step()
        return float(losses[0])

    def _climb_and_look_back(self, closure: Closure) -> list[SupportsFloat]:
        """Leave the gradient of the raised weights; returns the losses at the weights and at the raised ones."""
        with self._local():
            loss = closure()
        moved: list[Tensor] = [w for w in self._weights if w.grad is not None]
        statistics, before = _copies(self._buffers), _copies(moved)
        self._climb(moved)
        self.optimizer.zero_grad()
        raised_loss = closure()
        _put_back(moved, before)
        _put_back(self._buffers, statistics)
        return [loss, raised_loss]

    @torch.no_grad()
    def _climb(self, moved: list[Tensor]) -> None:
        gradients = [w.grad for w in moved if w.grad is not None]
        # A gradient of zero moves nothing. One that is not finite spoils the second pass, and the step is left out.
        length = nn.utils.get_total_norm(gradients).clamp(min=1e-12)
        for weight, gradient in zip(moved, gradients, strict=True):
            weight.add_(gradient * (self._rho / length))


def make_optimizer(
    config: TrainConfig, model: nn.Module, local: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Descent:
    """Make the steps of a run, with AdamW, or with Adam or SGD, whose weight decay is a part of the gradient.

    Biases, batch norms and PReLU slopes are not decayed.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    else:
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(groups, lr=config.learning_rate)
    return Descent(model, optimizer, clip_norm=config.clip_norm, rho=config.sam_rho, local=local)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    if tensors:
        torch._foreach_copy_(list(tensors), list(copies))
