"""The walk-through of docs/fine_tuning.md: its commands run in their order, its settings and numbers hold."""

import json
import math
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from nkf.cli import main
from nkf.config import TrainConfig, validated
from nkf.errors import NkfWarning
from nkf.metrics import wilson_interval
from nkf.optim import moving_average
from nkf.recipes import create_recipe
from nkf.train import total_steps
from nkf.weights import find_weights

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "fine_tuning.md").read_text()
SETTINGS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
FEW, MANY, CLASSES = SETTINGS

FACE = (110, 20, 340, 250)  # around the portrait's face, with a margin
MOUTH = (194, 132, 254, 164)
PICTURES = 10  # of each class


def commands() -> list[list[str]]:
    """What follows ``nkf`` in the page's shell blocks."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert all(line.startswith("nkf ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def squeezed(mouth: Image.Image) -> Image.Image:
    """A closed mouth out of an open one."""
    closed = mouth.filter(ImageFilter.GaussianBlur(9))
    closed.paste(mouth.resize((mouth.width * 3 // 4, mouth.height // 3)), (mouth.width // 8, mouth.height // 3))
    return closed


MOUTHS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "happy": Image.Image.copy,
    "sad": ImageOps.flip,
    "neutral": squeezed,
}


@pytest.fixture(scope="module")
def workplace(portrait_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures by class: the portrait with three mouths, each turned and lit a little differently."""
    folder = tmp_path_factory.mktemp("fine_tuning")
    generator = np.random.default_rng(0)
    with Image.open(portrait_path) as portrait:
        for label, mouth in MOUTHS.items():
            (folder / "pictures" / label).mkdir(parents=True)
            image = portrait.convert("RGB")
            image.paste(mouth(image.crop(MOUTH)), MOUTH[:2])
            for number in range(PICTURES):
                shown = image.rotate(generator.uniform(-8, 8), Image.Resampling.BILINEAR).crop(FACE)
                shown = ImageEnhance.Brightness(shown).enhance(generator.uniform(0.7, 1.2))
                shown.save(folder / "pictures" / label / f"{number}.jpg")
        portrait.crop(FACE).save(folder / "photo.jpg")
    (folder / "configs").mkdir()
    (folder / "configs" / "fine-tune.yaml").write_text((ROOT / "configs" / "fine-tune.yaml").read_text())
    return folder


@pytest.mark.slow
def test_commands_in_their_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    assert "put 0.05 there" in PAGE
    for command in commands():
        shorter = [*command[:-1], "0.05"] if command[-2] == "--max-minutes" else command
        assert main(shorter) == 0, (command, capsys.readouterr().err)
    printed = capsys.readouterr().out
    assert f"landmarks: {len(MOUTHS) * PICTURES} found, 0 missing" in printed
    assert f"data/mine: {len(MOUTHS) * PICTURES} images checked, nothing is wrong" in printed

    evaluations = [json.loads(Path(f"results/{name}/evaluation.json").read_text()) for name in ("start", "mine")]
    assert [evaluation["model"] for evaluation in evaluations] == ["mobile", "fine-tune"]
    assert evaluations[0]["n"] == evaluations[1]["n"] > 0
    (prediction,) = json.loads(Path("mine.json").read_text())
    assert [face["expression"] for face in prediction["faces"]] == ["happiness"]
    sidecar = json.loads(Path("exported/mine.json").read_text())
    assert sidecar["training"]["start"]["name"] == "mobile"
    assert [figures["n"] for figures in sidecar["metrics"].values() if "n" in figures] == [evaluations[0]["n"]]


def changed(**changes: Any) -> TrainConfig:
    content = yaml.safe_load((ROOT / "configs" / "fine-tune.yaml").read_text())
    return validated(content | changes, "docs/fine_tuning.md")


@pytest.mark.parametrize(("changes", "pictures"), [(FEW, 100), ({}, 1_000), (MANY, 10_000)])
def test_numbers_of_steps(changes: dict[str, Any], pictures: int) -> None:
    (row,) = re.findall(rf"^\| {pictures:,} \| ([\d,]+) \| (\d+) \|$", PAGE, re.MULTILINE)
    config = changed(**changes)
    assert (total_steps(config, pictures * 65 // 100), config.epochs) == tuple(int(n.replace(",", "")) for n in row)
    assert total_steps(config, pictures * 65 // 100) > 10 * config.warmup_steps


@pytest.mark.parametrize("trials", [30, 100, 400, 1_000])
def test_intervals_of_the_table(trials: int) -> None:
    (found,) = re.findall(rf"^\| {trials:,} \| ([\d.]+) to ([\d.]+) % \|$", PAGE, re.MULTILINE)
    assert [f"{100 * bound:.1f}" for bound in wilson_interval(0.8 * trials, trials)] == list(found)


def test_rows_of_fewer_classes_are_those_of_the_start(mini_pack: Path) -> None:
    config = changed(**CLASSES, data=[str(mini_pack)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NkfWarning)
        recipe = create_recipe(config, torch.device("cpu"))
    network = recipe.create()
    file, info = find_weights("mobile", (".safetensors",))
    rows = [info.classes.index(name) for name in CLASSES["protocol"]["classes"]]
    weight = load_file(file)["head.classify.weight"][rows].float()
    torch.testing.assert_close(network.state_dict()["head.classify.weight"], weight, rtol=0, atol=0)
    assert recipe.info(network).training["head_rows"] == {"copied": CLASSES["protocol"]["classes"], "new": []}
    for part in (*config.frozen, *FEW["frozen"]):
        network.get_submodule(part)


def test_the_weight_average_leaves_the_start_in_twenty_steps() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    average = AveragedModel(model, multi_avg_fn=moving_average(0.99))
    nn.init.zeros_(model.weight)
    for _ in range(21):
        average.update_parameters(model)
    assert abs(average.module.weight.item()) < 1e-6


def test_comparison_on_the_page(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "fine_tuning.md", "exec"), names)
    # Of 12 pictures the start, among the two classes that count, is wrong on four, the other network on two of these.
    start = [f"{n}.jpg,happiness,{0.3 if n < 4 else 0.1},0.2,0.7" for n in range(12)]
    mine = [f"{n}.jpg,happiness,{0.9 if n < 2 else 0.1},0.5" for n in reversed(range(12))]
    header = "name,label,neutral,happiness"
    (tmp_path / "start.csv").write_text("\n".join([f"{header},sadness", *start, "x.jpg,sadness,0,0,1"]) + "\n")
    (tmp_path / "mine.csv").write_text("\n".join([header, *mine]) + "\n")
    spread = 1.959964 * math.sqrt(2 * (1 - 1 / 6) ** 2 + 10 / 36) / 12
    interval = f"[{1 / 6 - spread:+.1%}, {1 / 6 + spread:+.1%}]"
    found = names["compare"](tmp_path / "start.csv", tmp_path / "mine.csv")
    assert found == f"66.7%, then 83.3%: +16.7% {interval}, p 0.500"
