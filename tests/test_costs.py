"""Counts against formulas, and times against a clock that is set by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nkf.costs import by_turns, count_macs, macs_by_part, milliseconds_a_face, parameters_by_part


class Parts(nn.Module):
    """A convolution (grouped, with bias), its transpose, attention, a linear, and a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {"conv": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), "up": nn.ConvTranspose1d(6, 5, 2, 2)}
        )
        self.norm = nn.BatchNorm2d(6)
        self.position = nn.Parameter(torch.zeros(5, 8))
        self.classify = nn.Linear(8, 3)

    def forward(self, crops: Tensor) -> Tensor:
        x = self.norm(self.body["conv"](crops)).flatten(2)  # (B, 6, 4)
        tokens = self.body["up"](x) + self.position  # (B, 5, 8)
        return self.classify(nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).mean(dim=1))


CONV = 6 * 2 * 2 * (2 * 9)  # outputs x (inputs of a group x 3 x 3)
UP = 6 * 4 * 5 * 2  # inputs x (outputs x 2)
ATTENTION = 2 * 5 * 5 * 8
PARTS = {"body": ["body.conv", "body.up"], "rest": ["norm", "position"], "head": ["classify"]}


@pytest.fixture
def network() -> Parts:
    return Parts().eval()


def test_parameters_of_modules_and_of_weights_of_their_own(network: Parts) -> None:
    counts = parameters_by_part(network, PARTS)
    assert counts == {"body": (6 * 2 * 9 + 6) + (6 * 5 * 2 + 5), "rest": 12 + 40, "head": 27}
    assert sum(counts.values()) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("batch", [1, 3])
def test_multiply_adds_of_convolutions_attention_and_linear_layers(network: Parts, batch: int) -> None:
    crops, total = torch.rand(batch, 4, 4, 4), batch * (CONV + UP + ATTENTION + 24)
    assert macs_by_part(network, PARTS, crops) == {
        "body": batch * (CONV + UP), "head": batch * 24, "total": total,
    }  # fmt: skip
    assert count_macs(network, crops) == total


def test_nothing_is_computed_on_the_meta_device() -> None:
    with torch.device("meta"):
        network = Parts().eval()
    assert count_macs(network, torch.empty(1, 4, 4, 4, device="meta")) == CONV + UP + ATTENTION + 24


class Clock:
    """Stands for `time.perf_counter`; calls move it on."""

    def __init__(self) -> None:
        self.now, self.made = 0.0, list[str]()

    def call(self, name: str, milliseconds: list[float]) -> Callable[[], None]:
        left = iter(milliseconds)

        def call() -> None:
            self.made.append(name)
            self.now += next(left) / 1e3

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("nkf.costs.time.perf_counter", lambda: clock.now)
    return clock


def test_calls_are_timed_by_turns_after_one_that_does_not_count(clock: Clock) -> None:
    calls = {"a": clock.call("a", [900, 1, 5, 3]), "b": clock.call("b", [900, 10, 20, 60])}
    times = by_turns(calls, 3)
    assert "".join(clock.made) == "abababab"
    assert times["a"] == pytest.approx({"min_ms": 1, "p10_ms": 1.4, "median_ms": 3})
    assert times["b"] == pytest.approx({"min_ms": 10, "p10_ms": 12, "median_ms": 20})


def test_latency_is_that_of_a_face_in_a_batch_of_its_networks_size(clock: Clock) -> None:
    class Slow(nn.Module):
        def forward(self, crops: Tensor, landmarks_px: Tensor) -> Tensor:
            assert (self.training, torch.is_grad_enabled()) == (False, False)
            seen.append((tuple(crops.shape), tuple(landmarks_px.shape), float(landmarks_px.max()) > 1))
            clock.now += 0.008
            return crops

    seen: list[tuple[tuple[int, ...], tuple[int, ...], bool]] = []
    times = milliseconds_a_face({"small": (Slow(), 32), "large": (Slow(), 48)}, 4, rounds=2)
    assert seen == [((4, 3, side, side), (4, 68, 2), True) for side in (32, 48)] * 3
    assert times["small"]["median_ms"] == times["large"]["min_ms"] == pytest.approx(2)
