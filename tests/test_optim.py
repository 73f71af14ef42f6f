"""Schedules, the weight average and single steps, against computations by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nkf.config import TrainConfig
from nkf.optim import Descent, learning_rate, make_optimizer, moving_average


def config_for(**changes):
    fields = {"name": "a", "task": "expression", "data": ("pack",), "learning_rate": 0.1, "warmup_steps": 10}
    return TrainConfig(**(fields | changes))


class Quadratic(nn.Module):
    """Loss w A w / 2, whose gradient is A w."""

    def __init__(self, start: tuple[float, ...]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def loss(self) -> Tensor:
        loss = self.w @ torch.from_numpy(A) @ self.w / 2
        loss.backward()
        return loss.detach()


A = np.array([[3.0, 1.0], [1.0, 2.0]])
START = (1.0, -2.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def closure_of(model: nn.Module, scale: float = 1.0):
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))

    def closure() -> Tensor:
        loss = scale * model(inputs).square().mean()
        loss.backward()
        return loss.detach()

    return closure


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("changes", "step", "rate"),
    [
        ({}, 0, 0.01),
        ({}, 50, 0.05),
        ({}, 100, 0.0),
        ({"schedule": "constant"}, 4, 0.05),
        ({"schedule": "constant"}, 99, 0.1),
        ({"schedule": "exponential", "decay": 0.5}, 20, 0.1 * 0.5),  # an epoch
        ({"schedule": "exponential", "decay": 0.5}, 50, 0.1 * 0.5**2.5),
        ({"schedule": "exponential", "decay": 0.5}, 4, 0.05 * 0.5**0.2),  # in the warm-up too
        ({"schedule": "exponential", "decay": 0.5, "decay_epochs": 2.5}, 50, 0.1 * 0.5),
        ({"schedule": "steps", "decay": 0.1}, 19, 0.1),  # the last one of the first epoch
        ({"schedule": "steps", "decay": 0.1}, 20, 0.01),
        ({"schedule": "steps", "decay": 0.1, "decay_epochs": 2}, 39, 0.1),
        ({"schedule": "steps", "decay": 0.1, "decay_epochs": 2}, 40, 0.01),
        ({"schedule": "steps", "decay": 0.1, "decay_epochs": 2}, 99, 0.001),
    ],
)
def test_learning_rate(changes, step, rate):
    assert learning_rate(config_for(**changes), step, 100, 20) == pytest.approx(rate, abs=1e-9)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_first_step_of_the_optimizers(kind):
    """After one step the moments cancel: Adam moves by the sign of the gradient with its decay, AdamW decays apart."""
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    optimizer = make_optimizer(config_for(optimizer=kind, weight_decay=0.5), model).optimizer
    model.weight.grad, model.bias.grad = torch.tensor([[-0.4, -3.0]]), torch.tensor([-0.4])
    optimizer.step()
    # -0.4 + 0.5 * 2 is positive, -3 + 0.5 * 2 negative; the bias is not decayed
    weight = [[1.9, 2.1]] if kind == "adam" else [[2.0 * 0.95 + 0.1, 2.0 * 0.95 + 0.1]]
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, atol=1e-6)
    assert model.bias.item() == pytest.approx(2.1)


def test_sgd_has_momentum_and_adds_the_decay_to_the_gradient():
    """Two steps by the formula v = 0.9 v + g + decay w, w -= rate v; the bias is not decayed."""
    model = nn.Linear(1, 1)
    optimizer = make_optimizer(config_for(optimizer="sgd", weight_decay=0.5), model).optimizer
    expected = {}
    for name, parameter, decay in (("weight", model.weight, 0.5), ("bias", model.bias, 0.0)):
        nn.init.constant_(parameter, 2.0)
        w, v = 2.0, 0.0
        for gradient in (1.0, -3.0):
            v = 0.9 * v + gradient + decay * w
            w -= 0.1 * v
        expected[name] = w
    for gradient in (1.0, -3.0):
        model.weight.grad, model.bias.grad = torch.tensor([[gradient]]), torch.tensor([gradient])
        optimizer.step()
    assert {name: p.item() for name, p in model.named_parameters()} == pytest.approx(expected, rel=1e-6)


def test_frozen_weights_are_not_optimised():
    model = network()
    model[0].requires_grad_(False)
    optimizer = make_optimizer(config_for(), model).optimizer
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_weight_average_forgets_its_start_quickly():
    average, target = [torch.zeros(1)], [torch.ones(1)]
    update = moving_average(0.999)
    for count in range(1, 60):
        update(average, target, torch.tensor(count))
    assert average[0] > 0.99  # with 0.999 from the first step on it would be 0.06


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("clip_norm", [100.0, 0.5])
def test_step_on_a_quadratic(rho, clip_norm):
    model = Quadratic(START)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = Descent(model, optimizer, clip_norm=clip_norm, rho=rho).step(model.loss)
    w = np.array(START)
    g = A @ w
    raised = A @ (w + rho * g / np.sqrt(g @ g))
    raised *= min(1, clip_norm / np.sqrt(raised @ raised))
    assert loss == pytest.approx(w @ A @ w / 2)
    np.testing.assert_allclose(model.w.detach().numpy(), w - 0.1 * raised, atol=1e-6)


@pytest.mark.parametrize("rho", [0.05, 0.3])
def test_sharpness_aware_step_takes_the_gradient_where_the_loss_is_higher(rho):
    """By rho |g| and the curvature along g, exactly, since this loss is a quadratic."""
    model, losses = Quadratic(START), []

    def closure() -> Tensor:
        losses.append(model.loss())
        return losses[-1]

    Descent(model, torch.optim.SGD(model.parameters(), lr=0.1), clip_norm=100, rho=rho).step(closure)
    g = A @ np.array(START)
    along = g / np.linalg.norm(g)
    here, raised = (loss.item() for loss in losses)
    assert raised - here == pytest.approx(rho * np.linalg.norm(g) + rho**2 / 2 * along @ A @ along)


def test_sharpness_aware_steps_of_a_network():
    """Three steps, beside a loop that copies the network instead of moving its weights."""
    model, other = network(), network()
    stepper = Descent(model, torch.optim.SGD(model.parameters(), lr=0.1), clip_norm=100, rho=0.2)
    for _ in range(3):
        stepper.step(closure_of(model))
        other.zero_grad()
        closure_of(other)()  # moves its batch norm, as the step did
        raised = network()
        raised.load_state_dict(other.state_dict())
        gradients = [p.grad for p in other.parameters()]
        length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for parameter, gradient in zip(raised.parameters(), gradients, strict=True):
                parameter += 0.2 * gradient / length
        closure_of(raised)()
        with torch.no_grad():
            for parameter, above in zip(other.parameters(), raised.parameters(), strict=True):
                parameter -= 0.1 * above.grad
    assert int(model[1].num_batches_tracked) == 3
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_sharpness_aware_step_moves_statistics_once_and_puts_weights_back_bit_for_bit():
    model, plain = network(), network()
    closure_of(plain)()
    calls = []

    def closure() -> Tensor:
        calls.append(model[0].weight.detach().clone())
        return closure_of(model)()

    Descent(model, torch.optim.SGD(model.parameters(), lr=0.0), clip_norm=100, rho=0.5).step(closure)
    assert not torch.equal(calls[0], calls[1])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_gradient_of_zero_leaves_everything_finite():
    model = Quadratic((0.0, 0.0))
    step = Descent(model, torch.optim.SGD(model.parameters(), lr=0.1), clip_norm=1, rho=0.5).step(model.loss)
    assert step == 0
    assert model.w.tolist() == [0, 0]


@pytest.mark.parametrize("rho", [0.0, 0.1])
@pytest.mark.parametrize("what", ["loss", "gradient", "second pass"])
def test_step_that_is_not_finite_changes_nothing(what, rho):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    stepper = Descent(model, optimizer, clip_norm=5, rho=rho)
    good = closure_of(model)
    assert math.isfinite(stepper.step(good))
    before, moments = state_of(model), [s["exp_avg"].clone() for s in optimizer.state.values()]
    calls = []

    def closure() -> Tensor:
        loss = good()
        calls.append(loss)
        if what == "gradient":
            model[3].weight.grad[0, 1] = math.inf
        return loss * math.nan if what == "loss" or len(calls) == 2 else loss

    taken = math.isfinite(stepper.step(closure))
    assert taken == (what == "second pass" and not rho)
    if not taken:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert all(
            torch.equal(s["exp_avg"], m) and s["step"] == 1
            for s, m in zip(optimizer.state.values(), moments, strict=True)
        )
    assert math.isfinite(stepper.step(good))
