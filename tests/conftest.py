"""Shared fixtures: the portrait, and networks so small that they are made in a moment."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from nkf import __version__, cli, weights
from nkf.data.labels import VOTE_COLUMNS
from nkf.data.pack import Sample
from nkf.data.pack_writer import PackWriter
from nkf.files import file_sha256
from nkf.geometry import CROP_SIZE, MEAN_SHAPE
from nkf.weights import DEFAULT_DETECTOR, DEFAULT_FAN, DEFAULT_MODEL, WeightsInfo

CLASSES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
LOGITS = (1.0, 4.0, 0.5, 2.0, 0.0, -1.0, 0.2, -0.5)

SaveNetwork = Callable[..., Path]


@pytest.fixture(scope="session")
def portrait_path() -> Path:
    """NASA's portrait of Eileen Collins, 512x512, with one smiling face."""
    return Path(__file__).parents[1] / "examples" / "eileen_collins.jpg"


@pytest.fixture(scope="session")
def fake_landmarks() -> NDArray[np.float32]:
    """(68, 2) in pixels of the crop: what the fake face alignment network always finds."""
    return ((MEAN_SHAPE - 0.5) * 0.72 + [0.5, 0.5]).astype(np.float32) * CROP_SIZE


@pytest.fixture
def save_network(tmp_path: Path) -> SaveNetwork:
    """Return a function that saves a network of the given constants with its sidecar, and returns the file."""

    def save(network: str, constants: NDArray[np.float32], name: str = "", **changes: Any) -> Path:
        file = tmp_path / f"{name or network}.onnx"
        onnx.save(_constant_network(network, constants), file)
        fields: dict[str, Any] = {
            "name": file.stem,
            "kind": network,
            "architecture": {"backbone": "tiny"},
            "classes": CLASSES if network == "nkf" else (),
            "input_size": CROP_SIZE,
            "mean": (0, 0, 0),
            "std": (1, 1, 1),
            "parameters": constants.size,
            "sha256": {file.name: file_sha256(file)},
            "nkf_version": __version__,
        }
        WeightsInfo(**(fields | changes)).write(file.with_suffix(".json"))
        return file

    return save


@pytest.fixture
def fan_file(save_network: SaveNetwork, fake_landmarks: NDArray[np.float32], sure_faces_only: None) -> Path:
    """A face alignment network that finds the same landmarks in every crop."""
    return save_network("fan", fake_landmarks)


@pytest.fixture
def sure_faces_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the finder from unlikely boxes: the fake network is sure of its landmarks in all of them."""
    monkeypatch.setattr("nkf.finder.CANDIDATE_SCORE", 0.9)


@pytest.fixture
def model_file(save_network: SaveNetwork) -> Path:
    """An expression network that finds happiness in every crop."""
    return save_network("nkf", np.array(LOGITS, np.float32))


@pytest.fixture
def fake_package(
    tmp_path: Path, save_network: SaveNetwork, fake_landmarks: NDArray[np.float32], sure_faces_only: None, monkeypatch
) -> Path:
    """Put fake networks in the place of the packaged ones, under the default names; the detector stays the real one."""
    save_network("fan", fake_landmarks, name=DEFAULT_FAN)
    save_network("nkf", np.array(LOGITS, np.float32), name=DEFAULT_MODEL)
    for file in weights.WEIGHTS_FOLDER.glob(f"{DEFAULT_DETECTOR}.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(weights, "WEIGHTS_FOLDER", tmp_path)
    return tmp_path


SPREAD_PX = 0.5  # what the fake face alignment network says of every landmark


def _constant_network(kind: str, constants: NDArray[np.float32]) -> onnx.ModelProto:
    """Build (B, ...) inputs -> `constants` B times; the inputs count with weight zero.

    For ``nkf`` the constants are logits, and the output their softmax; for ``fan`` they are the landmarks.
    """
    inputs = [helper.make_tensor_value_info("crops", TensorProto.FLOAT, ["batch", 3, CROP_SIZE, CROP_SIZE])]
    if kind == "nkf":
        inputs.append(helper.make_tensor_value_info("landmarks_px", TensorProto.FLOAT, ["batch", 68, 2]))
    values = {"landmarks_px": constants, "spread_px": np.full(68, SPREAD_PX, np.float32)}
    values = {"probabilities": constants} if kind == "nkf" else values
    weights: dict[str, NDArray[Any]] = {"axes": np.array([1]), "zero": np.zeros((), np.float32)}
    nodes = []
    for value in inputs:
        nodes.append(helper.make_node("Flatten", [value.name], [f"{value.name}_flat"]))
        nodes.append(helper.make_node("ReduceSum", [f"{value.name}_flat", "axes"], [f"{value.name}_sum"]))  # (B, 1)
    nodes.append(helper.make_node("Sum", [f"{value.name}_sum" for value in inputs], ["sum"]))
    nodes.append(helper.make_node("Mul", ["sum", "zero"], ["nothing"]))
    for name, value in values.items():
        weights[f"{name}_constants"] = value.reshape(1, -1)
        weights[f"{name}_shape"] = np.array([-1, *value.shape])
        last = ("Softmax", [f"{name}_flat"]) if kind == "nkf" else ("Reshape", [f"{name}_flat", f"{name}_shape"])
        nodes.append(helper.make_node("Add", ["nothing", f"{name}_constants"], [f"{name}_flat"]))  # (B, N)
        nodes.append(helper.make_node(*last, [name]))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *value.shape])
        for name, value in values.items()
    ]
    constants_of_graph = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, kind, inputs, outputs, constants_of_graph)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="session")
def mini_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 48 drawn 48x48 faces with landmarks: 32 train, 16 valid; two valid ones are copies of train ones."""
    path = tmp_path_factory.mktemp("packs") / "mini"
    generator = np.random.default_rng(0)
    with PackWriter(path, {"dataset": "mini", "source": "drawn", "licence": "none"}) as pack:
        first: list[Sample] = []
        for number in range(48):
            sample = _drawn_face(number, "train" if number < 32 else "valid", generator)
            if number in (32, 33):
                sample = replace(sample, image_bytes=first[number - 32].image_bytes)
            first.append(sample)
            pack.add(sample)
    return path


def _drawn_face(number: int, split: str, generator: np.random.Generator) -> Sample:
    """A face of dots and a mouth that bends up (happiness) or down (sadness); every eighth has no landmarks."""
    label = ("happiness", "sadness")[number % 2]
    shape = (MEAN_SHAPE - 0.5) * generator.uniform(0.8, 0.95) + 0.5 + generator.uniform(-0.03, 0.03, 2)
    landmarks_px = (shape * 48).astype(np.float32)
    image = Image.new("L", (48, 48), int(generator.integers(120, 200)))
    draw = ImageDraw.Draw(image)
    for x, y in landmarks_px:
        draw.point((float(x), float(y)), 40)
    x, y = landmarks_px[48:60].mean(axis=0)
    draw.arc((x - 8, y - 6, x + 8, y + 6), *((20, 160) if label == "happiness" else (200, 340)), fill=0, width=2)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    votes = np.zeros(len(VOTE_COLUMNS), np.uint8)
    votes[[VOTE_COLUMNS.index(label), 0]] = 8, 2
    known = number % 8 != 7
    return Sample(
        name=f"face{number:02}.png",
        split=split,
        image_bytes=stream.getvalue(),
        votes=votes,
        landmarks_px=landmarks_px if known else None,
        landmarks_source="teacher" if known else "none",
    )


@pytest.fixture
def run_nkf(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Return a function that runs a command line and returns exit code, output lines, error lines."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run
