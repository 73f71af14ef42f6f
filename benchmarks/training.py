"""Training steps a second beside a plain loop, and the share of the machine's convolution peak that they reach.

    python benchmarks/training.py data/ferplus --json benchmarks/results/training.json

nkf: `nkf.train.train_step`, with batches out of the cache of crops, augmented as a batch, the network in channels-last
order, the guard against broken steps and the weight average. Plain: each image is decoded, aligned and augmented on its
own, stacked, and goes through the same network in torch's default order, with torch's own PReLU, and nothing besides.
Both take the same images, targets, loss and kind of optimiser, by turns in one run. The peak is what torch's best dense
convolution reaches here; a training step counts as three times the multiply-adds of the forward pass (six with SAM),
whatever it does besides.
"""

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import seconds
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nkf.config import AugmentConfig, TrainConfig
from nkf.costs import by_turns, count_macs
from nkf.files import replacing
from nkf.geometry import MEAN_SHAPE
from nkf.images import align
from nkf.machine import machine
from nkf.models.layers import PReLU
from nkf.optim import make_optimizer, moving_average
from nkf.preprocess import augment, to_float
from nkf.recipes.expression import ExpressionRecipe
from nkf.train import Objective, State, batch_rows, train_step

SIZES = {"tiny": (64, 64), "mobile": (112, 32), "base": (112, 32)}  # crop, batch


def peak_conv_macs_per_second(runs: int = 30) -> float:
    """Multiply-adds a second of the best of several dense 3x3 convolutions, forward, channels last."""
    best = 0.0
    for channels, side in ((128, 28), (256, 14), (128, 56), (256, 28)):
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        images = torch.randn(16, channels, side, side).contiguous(memory_format=torch.channels_last)
        macs = 16 * channels * channels * 9 * side * side
        with torch.inference_mode():
            layer(images)
            best = max(best, macs / min(seconds(lambda: layer(images)) for _ in range(runs)))  # noqa: B023
    return best


class OwnLoop:
    """A step as `nkf.train` takes it."""

    def __init__(self, recipe: ExpressionRecipe) -> None:
        self.recipe = recipe
        config = recipe.config
        model = recipe.create().to(memory_format=torch.channels_last).train()
        average = AveragedModel(model, multi_avg_fn=moving_average(config.ema_decay), use_buffers=True)
        self.state = State(model, average, make_optimizer(config, model), Objective(recipe, model))

    def __call__(self) -> None:
        train_step(self.recipe, self.state)


class PlainLoop:
    """A step as one would write it first: image by image."""

    def __init__(self, recipe: ExpressionRecipe) -> None:
        self.recipe = recipe
        self.model = with_plain_prelu(recipe.create()).train()
        config = recipe.config
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=config.weight_decay)
        self.step = 0

    def example(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.recipe.config.crop_size
        pack = self.recipe.pack
        face = pack.landmarks_px[row]
        found = np.isfinite(face).all()
        crop, points = align(pack.image(row), face if found else None, size, pack.column("box_xyxy")[row])
        base = torch.tensor([[size / 2, size / 2, size, 0]])
        images, landmarks = to_float(torch.from_numpy(crop[None])), torch.from_numpy(points[None]).float()
        generator = torch.Generator().manual_seed(int(row))
        crops, moved, *_ = augment(images, landmarks, base, size, self.recipe.config.augment, generator)
        return crops[0], moved[0]

    def __call__(self) -> None:
        places = batch_rows(self.recipe, self.step)
        self.step += 1
        rows = self.recipe.parts[0].rows[places]
        crops, landmarks = (torch.stack(part) for part in zip(*map(self.example, rows), strict=True))
        targets = self.recipe.targets[torch.from_numpy(places)]
        loss = self.gradient(crops, landmarks, targets)
        if self.recipe.config.sam_rho:
            self.ascend_and_return(crops, landmarks, targets)
        assert torch.isfinite(loss)
        self.optimizer.step()

    def gradient(self, crops: torch.Tensor, landmarks: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(crops, landmarks), targets)
        loss.backward()
        return loss.detach()

    def ascend_and_return(self, *batch: torch.Tensor) -> None:
        with torch.no_grad():
            live = [p for p in self.model.parameters() if p.grad is not None]
            norm = torch.stack([p.grad.norm() for p in live]).norm()
            steps = [self.recipe.config.sam_rho * p.grad / norm for p in live]
            for p, step in zip(live, steps, strict=True):
                p.add_(step)
        self.gradient(*batch)
        with torch.no_grad():
            for p, step in zip(live, steps, strict=True):
                p.sub_(step)


def with_plain_prelu(model: nn.Module) -> nn.Module:
    """Replace our PReLU by torch's."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, PReLU):
                setattr(parent, name, nn.PReLU(child.num_parameters))
    return model


def configuration(data: Path, backbone: str, sam_rho: float) -> TrainConfig:
    crop, batch = SIZES[backbone]
    changes: dict[str, Any] = {"network": {"backbone": backbone}, "crop_size": crop, "batch_size": batch}
    looks = AugmentConfig(blur=0.05, low_resolution=0.05)
    return TrainConfig(
        name="timed", task="expression", data=(data,), protocol="ferplus", sam_rho=sam_rho, augment=looks, **changes
    )


def measure(data: Path, backbone: str, sam_rho: float, runs: int, peak: float) -> dict[str, Any]:
    """Images a second of both loops, and the share of the peak."""
    crop, batch = SIZES[backbone]
    recipe = ExpressionRecipe(configuration(data, backbone, sam_rho), torch.device("cpu"))
    loops: dict[str, Callable[[], Any]] = {"nkf": OwnLoop(recipe), "plain": PlainLoop(recipe)}
    times = by_turns(loops, runs)
    landmarks = torch.from_numpy(MEAN_SHAPE[None].astype(np.float32)) * crop
    macs = count_macs(recipe.create().eval(), torch.rand(1, 3, crop, crop), landmarks)
    row: dict[str, Any] = {"crop": crop, "batch": batch, "sam_rho": sam_rho, "forward_macs": macs}
    for name, took in times.items():
        rate = 1000 * batch / took["median_ms"]
        row[name] = {"images_per_second": rate, "share_of_peak": rate * macs * (6 if sam_rho else 3) / peak, **took}
    row["ratio"] = times["plain"]["median_ms"] / times["nkf"]["median_ms"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="pack with labels")
    parser.add_argument("--backbones", nargs="+", default=["tiny", "mobile"], choices=SIZES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun, peak = time.monotonic(), peak_conv_macs_per_second()
    result: dict[str, Any] = {
        "schema": 1, "date": datetime.date.today().isoformat(), "machine": machine(),
        "command": " ".join(["python", "benchmarks/training.py", *sys.argv[1:]]), "threads": options.threads,
        "torch": torch.__version__, "peak_conv_macs_per_second": peak, "rows": {},
    }  # fmt: skip
    for backbone in options.backbones:
        for rho in (0.0, 0.05):
            row = measure(options.data, backbone, rho, options.runs, peak)
            result["rows"][backbone + (" with SAM" if rho else "")] = row
            own, plain = row["nkf"], row["plain"]
            print(f"{backbone}{' with SAM' if rho else '':9}: {own['images_per_second']:.0f} images/s", end=" ")
            print(f"({own['share_of_peak']:.0%} of the peak), plain {plain['images_per_second']:.0f}", end=" ")
            print(f"({plain['share_of_peak']:.0%}), {row['ratio']:.2f} times", flush=True)
    if options.json:
        result["seconds"] = round(time.monotonic() - begun)
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
