"""Networks behind the numpy contract: loading, devices, batches, and what goes wrong."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from nkf.errors import NkfError
from nkf.runtime import (
    BATCH_SIZE,
    ExpressionModel,
    LandmarkModel,
    OnnxModel,
    _providers,
    load_expression_model,
    load_fan,
)
from nkf.weights import read_info

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def random_crops(count):
    return np.random.default_rng(0).random((count, 3, 112, 112), np.float32)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_onnx_model_takes_and_gives_arrays_by_name(fan_file, fake_landmarks, as_bytes):
    model = OnnxModel(fan_file.read_bytes() if as_bytes else fan_file, "cpu", threads=1)
    assert model.inputs == ("crops",)
    assert model.outputs == ("landmarks_px", "spread_px")
    np.testing.assert_allclose(model(crops=random_crops(2))["landmarks_px"], [fake_landmarks] * 2)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"some text", lambda data: data[:200]])
def test_damaged_onnx_names_the_file(fan_file, damage):
    fan_file.write_bytes(damage(fan_file.read_bytes()))
    with pytest.raises(NkfError, match=r"fan\.onnx: not a network that ONNX Runtime can load \([^\n]+\)$"):
        OnnxModel(fan_file)


def test_missing_onnx_names_the_file(tmp_path):
    with pytest.raises(NkfError, match=r"nothing\.onnx: not a network"):
        OnnxModel(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [
        ("auto", [CPU], [CPU]),
        ("auto", [CUDA, CPU], [CUDA, CPU]),
        ("cpu", [CUDA, CPU], [CPU]),
        ("cuda", [CUDA, CPU], [CUDA, CPU]),
    ],
)
def test_device_chooses_providers(device, available, expected):
    assert _providers(device, available) == expected


def test_cuda_without_cuda_says_which_package_has_it(fan_file, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(NkfError, match=r"device 'cuda'.*pip install onnxruntime-gpu"):
        OnnxModel(fan_file, "cuda")


def test_unknown_device(fan_file):
    with pytest.raises(NkfError, match="device 'gpu': unknown; known are auto, cpu, cuda"):
        OnnxModel(fan_file, "gpu")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_load_fan(fan_file, fake_landmarks, count):
    fan = load_fan(str(fan_file))
    assert fan.info.input_size == 112
    points_px, spread_px = fan(random_crops(count))
    assert points_px.shape == (count, 68, 2)
    assert spread_px.shape == (count, 68)
    np.testing.assert_allclose(points_px, np.broadcast_to(fake_landmarks, points_px.shape))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_load_expression_model(model_file, count):
    model, info = load_expression_model(str(model_file))
    probabilities = model(random_crops(count), np.zeros((count, 68, 2), np.float32))
    assert probabilities.shape == (count, len(info.classes))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert all(info.classes[k] == "happiness" for k in probabilities.argmax(axis=1))


def test_batches_are_cut_and_keep_their_order(fan_file):
    sizes = []

    def echo(crops, landmarks_px):
        sizes.append(len(crops))
        return np.stack([crops[:, 0, 0, 0], landmarks_px[:, 0, 0]], axis=1)

    info = read_info(fan_file.with_suffix(".json"))
    number = np.arange(2 * BATCH_SIZE + 3, dtype=np.float32)
    crops, landmarks = number.reshape(-1, 1, 1, 1), -number.reshape(-1, 1, 1)
    np.testing.assert_array_equal(ExpressionModel(info, echo)(crops, landmarks), np.stack([number, -number], axis=1))
    assert sizes == [BATCH_SIZE, BATCH_SIZE, 3]
    found = LandmarkModel(info, lambda part: (part, -part))(crops)
    np.testing.assert_array_equal(found.points_px, crops)
    np.testing.assert_array_equal(found.spread_px, -crops)


def test_a_file_without_attention_gives_probabilities_alone(model_file):
    model = load_expression_model(str(model_file))[0]
    crops, landmarks = random_crops(2), np.zeros((2, 68, 2), np.float32)
    probabilities, attention = model.with_attention(crops, landmarks)
    np.testing.assert_array_equal(probabilities, model(crops, landmarks))
    assert attention is None


@pytest.mark.parametrize("count", [0, 3, BATCH_SIZE + 3])
def test_attention_is_cut_into_batches_with_the_probabilities(fan_file, count):
    def explained(crops, landmarks_px):
        return crops[:, :2, 0, 0], np.repeat(landmarks_px[:, :1, 0], 68, axis=1)

    info = read_info(fan_file.with_suffix(".json")).model_copy(update={"classes": ("neutral", "happiness")})
    number = np.arange(count, dtype=np.float32)
    crops, landmarks = np.tile(number[:, None, None, None], (1, 3, 1, 1)), np.tile(-number[:, None, None], (1, 68, 2))
    model = ExpressionModel(info, lambda *pair: explained(*pair)[0], explained)
    probabilities, attention = model.with_attention(crops, landmarks)
    np.testing.assert_array_equal(probabilities, np.tile(number[:, None], (1, 2)))
    np.testing.assert_array_equal(attention, np.tile(-number[:, None], (1, 68)))


def test_outputs_can_be_asked_for_by_name(fan_file):
    model = OnnxModel(fan_file, "cpu", threads=1)
    assert list(model(crops=random_crops(1))) == ["landmarks_px", "spread_px"]
    assert list(model(["spread_px"], crops=random_crops(1))) == ["spread_px"]


def test_the_wrong_kind_of_model_is_refused(fan_file, model_file):
    with pytest.raises(NkfError, match=r"nkf\.onnx'?: it tells expressions, one that finds landmarks is needed"):
        load_fan(str(model_file))
    with pytest.raises(NkfError, match=r"fan\.onnx'?: it finds landmarks, one that tells expressions is needed"):
        load_expression_model(str(fan_file))


def test_inputs_and_outputs_must_have_the_agreed_names(save_network, fake_landmarks):
    file = save_network("fan", fake_landmarks, kind="nkf", classes=("happiness",))
    with pytest.raises(
        NkfError, match="crops -> landmarks_px, spread_px; expected crops, landmarks_px -> probabilities"
    ):
        load_expression_model(str(file))


def test_unknown_model_lists_the_places_searched():
    with pytest.raises(NkfError, match="model 'nonsense': neither a packaged model"):
        load_fan("nonsense")


@pytest.fixture
def run_folder(tmp_path, fan_file) -> Path:
    """The run folder of a face alignment network with fresh weights."""
    import torch

    from nkf.models import create_model, save_model

    torch.manual_seed(0)
    info = read_info(fan_file.with_suffix(".json")).model_copy(update={"input_size": 64, "sha256": {}})
    (tmp_path / "run" / "best").mkdir(parents=True)
    save_model(create_model("fan", info.architecture), tmp_path / "run" / "best" / "model.safetensors", info)
    return tmp_path / "run"


def test_a_run_folder_runs_in_torch_with_the_same_contract(run_folder):
    fan = load_fan(str(run_folder), "cpu")
    points_px, spread_px = fan(np.random.default_rng(0).random((2, 3, 64, 64), np.float32))
    assert points_px.shape == (2, 68, 2)
    assert points_px.dtype == spread_px.dtype == np.float32
    assert np.isfinite(points_px).all()
    assert (spread_px > 0).all()


def test_a_run_folder_without_torch_says_what_to_install(run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(NkfError, match=r"this needs torch: pip install '\.\[train\]' in nkf's folder"):
        load_fan(str(run_folder))
