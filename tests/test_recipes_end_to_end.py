"""The recipes for RAF-DB, AffectNet, FERPlus and the transfers, on drawn faces in the real layouts of these datasets.

The commands are those in the head of each configuration, its sizes made small; all else of it stays as shipped.
"""

import csv
import io
import json
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from nkf.cli import main
from nkf.config import load_config
from nkf.errors import NkfWarning
from nkf.geometry import MEAN_SHAPE
from nkf.recipes import create_recipe
from nkf.train import total_steps
from nkf.weights import find_weights

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
EIGHT = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
SEVEN = EIGHT[:7]
TRAIN = {name: 6 + 4 * (name == "happiness") - 2 * (name == "contempt") for name in EIGHT}  # images of each class
TEST = 2

SMALL = {
    "epochs": 1, "batch_size": 16, "warmup_steps": 1, "evaluations": 1, "crop_size": 32, "pretrained": None,
    "mesh": None,
}  # fmt: skip
SMALL_NETWORK = {"backbone": "tiny", "keypoint_channels": 16}


def draw_face(expression: int, number: int, side: int) -> tuple[bytes, NDArray[np.float32]]:
    """A face of dots whose mouth tells the expression, as a JPEG, and its landmarks (68, 2) in pixels."""
    generator = np.random.default_rng([expression, number])
    shape = (MEAN_SHAPE - 0.5) * generator.uniform(0.8, 0.95) + 0.5 + generator.uniform(-0.03, 0.03, 2)
    landmarks_px = (shape * side).astype(np.float32)
    image = Image.new("RGB", (side, side), tuple(generator.integers(100, 220, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for x, y in landmarks_px:
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(40, 30, 30))
    x, y = landmarks_px[48:60].mean(axis=0)
    draw.arc((x - side / 6, y - side / 8, x + side / 6, y + side / 8), 45 * expression, 45 * expression + 140, 0, 3)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue(), landmarks_px


def drawn(classes: Sequence[str], counts: Mapping[str, int], start: int = 0) -> list[tuple[str, int]]:
    """(class, number) of the faces to draw."""
    return [(name, start + number) for name in classes for number in range(counts[name])]


def write_rafdb(root: Path) -> None:
    """EmoLabel, Image/aligned and Annotation; codes are those of the dataset's readme."""
    codes = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
    (root / "Image" / "aligned").mkdir(parents=True)
    for folder in ("EmoLabel", "Annotation/manual"):
        (root / folder).mkdir(parents=True)
    lines = []
    for split, start, counts in (("train", 0, TRAIN), ("test", 500, dict.fromkeys(EIGHT, TEST))):
        for index, (label, number) in enumerate(drawn(SEVEN, counts, start), 1):
            name = f"{split}_{index:05}"
            data, points = draw_face(EIGHT.index(label), number, 100)
            (root / "Image" / "aligned" / f"{name}_aligned.jpg").write_bytes(data)
            people = "".join(f"{x:.2f} {y:.2f}\n" for x, y in points[[36, 45, 30, 48, 54]]) + f"{index % 2}\n0\n2\n"
            (root / "Annotation" / "manual" / f"{name}_manu_attri.txt").write_text(people)
            lines.append(f"{name}.jpg {codes.index(label) + 1}\n")
    (root / "EmoLabel" / "list_patition_label.txt").write_text("".join(lines))


def write_affectnet(root: Path) -> None:
    """The second release: images and .npy files of expression, valence, arousal and landmarks."""
    for split, start, counts in (("train_set", 0, TRAIN), ("val_set", 500, dict.fromkeys(EIGHT, TEST))):
        for folder in ("images", "annotations"):
            (root / split / folder).mkdir(parents=True)
        for index, (label, number) in enumerate(drawn(EIGHT, counts, start)):
            data, points = draw_face(EIGHT.index(label), number, 96)
            (root / split / "images" / f"{index}.jpg").write_bytes(data)
            annotations = {"exp": str(EIGHT.index(label)), "val": "0.5", "aro": "-0.25", "lnd": points.ravel()}
            for kind, value in annotations.items():
                np.save(root / split / "annotations" / f"{index}_{kind}.npy", np.array(value))


def write_ferplus(root: Path) -> None:
    """FER2013Train, Valid and Test with label.csv, whose votes come in an order of its own."""
    columns = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
    few = dict.fromkeys(EIGHT, TEST)
    for split, start, counts in (("Train", 0, TRAIN), ("Valid", 300, few), ("Test", 500, few)):
        folder = root / f"FER2013{split}"
        folder.mkdir(parents=True)
        lines = []
        for index, (label, number) in enumerate(drawn(EIGHT, counts, start)):
            data, _ = draw_face(EIGHT.index(label), number, 48)
            Image.open(io.BytesIO(data)).convert("L").save(folder / f"fer{start}{index:04}.png")
            votes = [8 * (name == label) for name in columns]
            votes[0] += 2
            lines.append(f'fer{start}{index:04}.png,"(0, 0, 48, 48)",{",".join(map(str, votes))},0,0\n')
        (folder / "label.csv").write_text("".join(lines))


def write_faces(root: Path) -> None:
    """Faces without labels."""
    root.mkdir()
    for number in range(24):
        (root / f"{number}.jpg").write_bytes(draw_face(number % 8, 700 + number, 64)[0])


WRITERS = {"RAFDB": write_rafdb, "AFFECTNET": write_affectnet, "FERPLUS": write_ferplus, "FACES": write_faces}


def for_cpu(found: Sequence[str]) -> list[list[str]]:
    """The words of commands that are written for a GPU."""
    return [shlex.split(command.replace("--device cuda", "--device cpu")) for command in found]


def head_commands(name: str) -> list[list[str]]:
    """The commands in the head of a configuration, without ``nkf``, for the CPU."""
    return for_cpu(re.findall(r"^#   nkf (.*)$", (CONFIGS / f"{name}.yaml").read_text(), re.MULTILINE))


def shrink(name: str, folder: Path) -> None:
    """Write the shipped configuration with sizes that a moment suffices for, and without what is not at hand."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    content["network"] |= SMALL_NETWORK
    for source in content.get("unlabelled", []):
        source["min_confidence"] = 0.0  # after so short a training no teacher is sure
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | SMALL))


@pytest.fixture
def workplace(tmp_path: Path, fake_package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with small copies of all configurations."""
    folder = tmp_path / "work"
    for name in (*EXPECTED, *TAUGHT):
        shrink(name, folder / "configs")
    monkeypatch.chdir(folder)
    return folder


def follow(commands: Sequence[list[str]], done: list[list[str]]) -> None:
    """Run commands that were not run yet; a dataset is drawn when it is imported."""
    for command in commands:
        if command in done:
            continue
        if command[:2] == ["data", "import"]:
            WRITERS[command[3]](Path(command[3]))
        assert main(command) == 0, command
        done.append(command)


class Expected(NamedTuple):
    """What comes out of a recipe: classes; images that are trained on, that choose, that are reported; what is said."""

    classes: tuple[str, ...]
    images: tuple[int, int, int]
    known: tuple[str, ...]
    head_rows: Any = None


# The twentieth that chooses has at least one image of each class.
RAFDB, SEVEN_IMAGES, EIGHT_IMAGES = ("12,271", "3,068"), (39, 7, 14), (42, 8, 16)
EXPECTED = {
    "rafdb": Expected(SEVEN, SEVEN_IMAGES, RAFDB),
    "affectnet7": Expected(SEVEN, SEVEN_IMAGES, ("283,901", "3,500")),
    "affectnet8": Expected(EIGHT, EIGHT_IMAGES, ("287,651", "4,000 or 3,999")),
    "affectnet8-to-rafdb": Expected(SEVEN, SEVEN_IMAGES, RAFDB, {"copied": list(SEVEN), "new": []}),
    "affectnet8-to-ferplus": Expected(EIGHT, (50, 16, 16), ()),
    "ferplus-literature": Expected(EIGHT, (66, 0, 16), ("28,236", "3,137")),
}
TRANSFERS = ("affectnet8-to-rafdb", "affectnet8-to-ferplus")
CHAINS = (("rafdb",), ("affectnet7",), ("ferplus-literature",), ("affectnet8", *TRANSFERS))


@pytest.mark.slow
@pytest.mark.parametrize("names", CHAINS, ids=lambda names: names[0])
def test_commands_in_the_heads_lead_to_results(
    names: tuple[str, ...], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[list[str]] = []
    for name in names:
        follow(head_commands(name), done)
        check_sidecar(name, capsys.readouterr().err)
        check_evaluation(name)
        if name != names[0]:
            check_start(name)


def check_sidecar(name: str, said: str) -> None:
    """The run tells what it was trained on and under which protocol; counts of another copy are a warning."""
    expected, shipped = EXPECTED[name], load_config(CONFIGS / f"{name}.yaml")
    info = find_weights(f"runs/{name}", (".safetensors",))[1]
    train, choose, test = expected.images
    assert (info.name, info.classes) == (name, expected.classes)
    assert info.training["images"] == {"train": train, "choose": choose}
    assert info.training["protocol"] == shipped.protocol.model_dump(mode="json", exclude={"metric", "expected"})
    assert info.training["targets"] == shipped.targets
    differences = info.training.get("differences", [])
    assert len(differences) == len(expected.known)
    for line, count, known in zip(differences, (train + choose, test), expected.known, strict=False):
        assert line.startswith(f"protocol {shipped.protocol.name}: {count} images in ")
        assert line.endswith(f", a complete copy has {known}")
        assert line in said


def check_evaluation(name: str) -> None:
    """The reported split was measured, its figures are those of predictions.csv."""
    expected, protocol = EXPECTED[name], load_config(CONFIGS / f"{name}.yaml").protocol
    evaluation = json.loads(Path(f"results/{name}/evaluation.json").read_text())
    assert (evaluation["model"], evaluation["protocol"]) == (name, protocol.name)
    assert (evaluation["split"], evaluation["n"]) == ("test", expected.images[2])
    assert evaluation["classes"] == list(expected.classes)
    assert evaluation["n_left_out"] == (TEST if name == "affectnet7" else 0)  # contempt
    assert any(str(expected.images[2]) in line for line in evaluation["differences"])
    labels, predicted = read_predictions(Path(f"results/{name}/predictions.csv"))
    assert Counter(labels) == dict.fromkeys(expected.classes, TEST)
    assert evaluation["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert evaluation["mean_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))


def read_predictions(file: Path) -> tuple[list[str], list[str]]:
    """Labels and most probable classes by predictions.csv."""
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    classes = [column for column in rows[0] if column not in ("name", "label")]
    return [row["label"] for row in rows], [max(classes, key=lambda name: float(row[name])) for row in rows]


def check_start(name: str) -> None:
    """A transfer starts where AffectNet-8 ended, its classifier with the rows of its own classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NkfWarning)
        recipe = create_recipe(load_config(Path(f"configs/{name}.yaml")), torch.device("cpu"))
    network = recipe.create()
    source, info = find_weights("runs/affectnet8", (".safetensors",))
    rows = [info.classes.index(label) for label in EXPECTED[name].classes]
    kept = load_file(source)
    for key, value in network.state_dict().items():
        expected = kept[key][rows] if key.startswith("head.classify.") else kept[key]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    training = find_weights(f"runs/{name}", (".safetensors",))[1].training
    assert training["start"]["name"] == "affectnet8"
    assert training.get("head_rows") == EXPECTED[name].head_rows


@pytest.mark.parametrize("name", EXPECTED)
def test_recipes_have_the_habits_of_the_literature(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert (config.sam_rho, config.augment.erase) == (0.05, 0.5)
    assert config.label_smoothing == (0.0 if config.targets == "distribution" else 0.1)
    assert config.protocol.sampling == ("balanced" if name in ("affectnet7", "affectnet8") else "shuffled")
    if config.protocol.expected:
        share = 1 - config.protocol.valid_share * (config.protocol.choose == "carved")
        steps = total_steps(config, int(config.protocol.expected["train"][0] * share))
        (told,) = re.findall(r"([\d,]+) steps of twice (\d+) crops", (CONFIGS / f"{name}.yaml").read_text())
        assert int(told[0].replace(",", "")) == pytest.approx(steps, rel=0.005)
        assert int(told[1]) == config.batch_size
    *_, train, evaluate = head_commands(name)
    assert train == ["train", f"configs/{name}.yaml", "--device", "cpu"]
    assert evaluate[:4] == ["evaluate", str(config.data[0]), "--split", config.protocol.test]


QUEUE = (ROOT / "benchmarks" / "GPU.md").read_text()
TAUGHT = ("cuda/large-start", "cuda/large", "cuda/mobile-distilled")


def test_the_queue_names_what_is_there() -> None:
    for file in re.findall(r"configs/[\w/-]+\.yaml", QUEUE):
        assert (ROOT / file).is_file(), file
    rows = re.findall(r"^\| (\d+) \| `nkf (\w\S*) .*--device cuda.*` \|.*\|$", QUEUE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert {command for _, command in rows} == {"train", "soft-labels", "ablate", "compare"}
    assert len(rows) == len(re.findall(r"^\| \d+ \|", QUEUE, re.MULTILINE))
    queued = set(re.findall(r"`nkf (?:train|ablate) configs/cuda/([\w-]+)\.yaml", QUEUE))
    assert queued == {file.stem for file in (CONFIGS / "cuda").glob("*.yaml")}


@pytest.mark.slow
def test_a_large_network_teaches_a_small_one(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of the queue from the first task of `large` to the distillation."""
    follow([["data", "import", "ferplus", "FERPLUS", "data/ferplus-clean", "--drop-leaks"]], [])
    follow([["data", "import", "faces", "FACES", "data/faces"]], [])
    assert main(["data", "import", "faces", "FACES", "data/fairface"]) == 0
    queue = re.findall(r"^\| \d+ \| `nkf (.*?)`", QUEUE, re.MULTILINE)
    follow(for_cpu([command for command in queue if "large" in command or "distilled" in command]), [])
    info = find_weights("runs/mobile-distilled", (".safetensors",))[1]
    assert info.training["soft_labels"] == {"models": ["large"], "weight": 0.5}
    assert [(part["models"], part["images"]) for part in info.training["unlabelled"]] == [(["large"], 24)] * 2
    assert find_weights("runs/large", (".safetensors",))[1].training["start_backbone"]["name"] == "large-start"
