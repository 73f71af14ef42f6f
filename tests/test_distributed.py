"""Several processes on one machine, started by torchrun, and the same functions without it."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from nkf import distributed
from nkf.config import AugmentConfig, NetworkConfig, TrainConfig
from nkf.errors import NkfError
from nkf.models import load_model
from nkf.train import train
from nkf.weights import find_weights

# Each process writes what it got, before it trains. The network is linear, with a layer that is not used and one that
# is frozen.
SCRIPT = """
import json, sys
from contextlib import nullcontext
import numpy as np
import torch
import nkf.train
from nkf import distributed
from nkf.cli import main
from nkf.optim import Descent
from torch import nn

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.frozen = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 1).requires_grad_(False)
    def forward(self, x):
        return self.frozen(self.used(x)).square().mean()

def write_results():
    rank = distributed.rank()
    torch.manual_seed(0)
    model = Linear()
    inputs = torch.randn(8, 3)
    mine = inputs[torch.from_numpy(distributed.share(np.arange(8)))]
    module = distributed.wrap(model)
    results = {"names": list(model.state_dict()), "world": distributed.world_size()}
    for name, context in (("local", distributed.no_sync(module)), ("averaged", nullcontext())):
        model.zero_grad()
        with context:
            loss = module(mine)
            loss.backward()
        results[name] = model.used.weight.grad.tolist()
    results["unused"] = model.unused.weight.grad is None
    results["mean"] = float(distributed.mean(loss.detach()))
    results["decided"] = distributed.decided(rank == 0)
    results["bytes"] = distributed.from_main(b"some bytes" if rank == 0 else b"").decode()

    def closure():
        loss = module(mine)
        loss.backward()
        return distributed.mean(loss.detach())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    local = lambda: distributed.no_sync(module)
    for _ in range(2):
        Descent(model, optimizer, clip_norm=100, rho=0.1, local=local).step(closure)
    results["sam"] = model.used.weight.tolist()
    with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
        json.dump(results, file)

start = nkf.train._start

def written_and_started(recipe):
    write_results()
    return start(recipe)

nkf.train._start = written_and_started
sys.exit(main(sys.argv[2:]))
"""


def torchrun(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)


def sam_by_hand(halves: list[torch.Tensor], model: torch.nn.Module) -> torch.Tensor:
    """Two steps in which each half of the batch climbs on its own."""

    def gradient(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaves = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = (model[1](x @ leaves[0].T + leaves[1])).square().mean()
        return torch.autograd.grad(loss, leaves)

    weight, bias = model[0].weight.detach(), model[0].bias.detach()
    for _ in range(2):
        raised = []
        for half in halves:
            g = gradient(half, weight, bias)
            length = torch.sqrt(g[0].square().sum() + g[1].square().sum())
            raised.append(gradient(half, weight + 0.1 * g[0] / length, bias + 0.1 * g[1] / length))
        weight, bias = (p - 0.1 * (a + b) / 2 for p, a, b in zip((weight, bias), *raised, strict=True))
    return weight


def assert_results(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Compare what two processes wrote with what one computes."""
    torch.manual_seed(0)
    used, _, frozen = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    model, inputs = torch.nn.Sequential(used, frozen.requires_grad_(False)), torch.randn(8, 3)
    halves, gradients = [inputs[:4], inputs[4:]], []
    for half in (*halves, inputs):
        model.zero_grad()
        loss = model(half).square().mean()
        loss.backward()
        gradients.append(used.weight.grad.tolist())
    assert first["world"] == 2
    assert first["names"][0] == "used.weight"
    np.testing.assert_allclose([first["local"], second["local"]], gradients[:2], atol=1e-6)
    np.testing.assert_allclose([first["averaged"], second["averaged"]], [gradients[2]] * 2, atol=1e-6)
    assert first["unused"]
    assert first["mean"] == second["mean"] == pytest.approx(loss.item())
    assert [first["decided"], second["decided"]] == [True, True]
    assert second["bytes"] == "some bytes"
    assert first["sam"] == second["sam"]
    np.testing.assert_allclose(first["sam"], sam_by_hand(halves, model), atol=1e-6)


@pytest.mark.slow
def test_run_of_one_process_goes_on_with_two_and_back(mini_pack: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        name="two", task="expression", data=(mini_pack,), network=NetworkConfig(backbone="tiny", keypoint_channels=16),
        crop_size=32, batch_size=8, epochs=0.75, warmup_steps=0, evaluations=1, sam_rho=0.05, accumulate=2,
        frozen=("backbone.stem",), augment=AugmentConfig(),
    )  # fmt: skip
    run, file, script = tmp_path / "run", tmp_path / "two.yaml", tmp_path / "script.py"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    script.write_text(SCRIPT)
    assert train(config, run, max_minutes=0)["step"] == 1
    ended = torchrun(str(script), str(tmp_path), "train", str(file), "--out", str(run), "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout.count("finished True") == 1  # the main process alone tells
    assert_results(*(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)))
    (line,) = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert line["step"] == 3
    assert np.isfinite(line["cross_entropy"])
    assert not list(run.rglob("*.partial"))
    weights = load_file(run / "last" / "model.safetensors")
    assert train(config, run) == {"step": 3, "finished": True}  # one process reads what two wrote
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(run / "last/model.safetensors").items())
    assert load_model(*find_weights(str(run), (".safetensors",)))(torch.rand(1, 3, 32, 32), torch.rand(1, 68, 2)).shape


@pytest.mark.parametrize(("fails", "expected"), [(False, ["barrier", "stop"]), (True, ["stop"])])
def test_a_process_that_fails_waits_for_no_other(
    fails: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun ends the others then."""
    calls: list[str] = []
    for name in ("barrier", "stop"):
        monkeypatch.setattr(distributed, name, partial(calls.append, name))
    with pytest.raises(ValueError, match="fails") if fails else nullcontext(), distributed.joined("cpu"):
        if fails:
            raise ValueError("this process fails")
    assert calls == expected


def test_one_process_needs_no_others() -> None:
    module, value = torch.nn.Linear(2, 2), torch.tensor(3.0)
    with distributed.joined("cpu") as device:
        distributed.barrier()
        assert device == "cpu"
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        assert distributed.wrap(module) is module
        with distributed.no_sync(module):
            pass
        assert distributed.share(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
        assert distributed.mean(value) is value
        assert distributed.decided(True)
        assert distributed.from_main(b"x") == b"x"


@pytest.mark.parametrize(("rank", "rows"), [(0, [0, 1, 2]), (1, [3, 4, 5])])
def test_shares_are_contiguous_and_even(rank: int, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    assert distributed.share(np.arange(6)).tolist() == rows
    with pytest.raises(NkfError, match="batch_size 5: cannot be shared evenly by 2 processes"):
        distributed.share(np.arange(5))
