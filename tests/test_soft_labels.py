"""Soft labels: mean probabilities of networks, in a file that knows what it is about."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from nkf.config import NetworkConfig
from nkf.data.dataset import load_crops
from nkf.data.labels import EXPRESSIONS
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.geometry import mirror_landmarks
from nkf.models import count_parameters, create_model, load_model, save_model
from nkf.soft_labels import make_soft_labels, read_soft_labels
from nkf.weights import Calibration, WeightsInfo, find_weights

SEVEN = EXPRESSIONS[:-1]


def save_network(file: Path, seed: int, size: int, classes: tuple[str, ...] = EXPRESSIONS, **fields: Any) -> str:
    torch.manual_seed(seed)
    architecture = NetworkConfig(backbone="tiny", keypoint_channels=16).architecture()
    network = create_model("nkf", architecture, len(classes))
    torch.nn.init.normal_(network.classifier.weight, std=2)  # type: ignore[union-attr, arg-type]
    info = WeightsInfo(
        name=file.stem, kind="nkf", architecture=architecture, classes=classes, input_size=size, mean=(0.5,) * 3,
        std=(0.5,) * 3, parameters=count_parameters(network), nkf_version="0", **fields,
    )  # fmt: skip
    save_model(network, file, info)
    return str(file)


@torch.no_grad()
def expected_of(pack: Pack, file: str, temperature: float = 1.0) -> Any:
    """Face by face, in numpy where that is possible."""
    path, info = find_weights(file, (".safetensors",))
    model, size = load_model(path, info), info.input_size
    crops = load_crops(pack, "aligned", size)
    rows = []
    for image, points in zip(crops.images, crops.landmarks_px, strict=True):
        probabilities = []
        for pixels, where in ((image, points), (image[:, ::-1], mirror_landmarks(points, size))):
            crop = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)
            logits = model(crop, torch.from_numpy(where[None].astype(np.float32)))[0].double().numpy() / temperature
            exponents = np.exp(logits - logits.max())
            probabilities.append(exponents / exponents.sum())
        rows.append(np.mean(probabilities, axis=0))
    return np.array(rows)


def test_probabilities_are_the_mean_over_networks_and_sides(mini_pack: Path, tmp_path: Path) -> None:
    pack = Pack(mini_pack)
    models = [
        save_network(tmp_path / "one.safetensors", 1, 32),
        save_network(tmp_path / "two.safetensors", 2, 48, calibration=Calibration(temperature=1.7)),
    ]
    out = make_soft_labels(mini_pack, models, tmp_path / "new" / "soft.safetensors")
    assert out == tmp_path / "new" / "soft.safetensors"
    soft = read_soft_labels(out, pack, EXPRESSIONS)
    expected = (expected_of(pack, models[0]) + expected_of(pack, models[1], 1.7)) / 2
    assert expected.std(axis=0).max() > 0.01  # faces differ
    np.testing.assert_allclose(soft.probabilities, expected, atol=1e-3)
    np.testing.assert_allclose(soft.probabilities.sum(axis=1), 1, atol=1e-6)
    assert soft.probabilities.dtype == np.float32
    assert soft.models == ("one", "two")
    assert [file.name for file in out.parent.iterdir()] == ["soft.safetensors"]
    with safe_open(out, framework="np") as content:
        assert content.get_tensor("probabilities").dtype == np.float16
        assert content.metadata()["rows_sha256"] == pack.manifest["rows_sha256"]


def test_models_that_do_not_go_together_are_one_line(mini_pack: Path, tmp_path: Path) -> None:
    eight = save_network(tmp_path / "eight.safetensors", 1, 32)
    seven = save_network(tmp_path / "seven.safetensors", 1, 32, SEVEN)
    for models, message in (
        ([eight, seven], r"seven\.safetensors': tells neutral, .*, anger, the first one neutral, .*, contempt$"),
        (["fan"], "model 'fan': of the kind fan, soft labels need networks that tell expressions"),
        ([], "at least one model"),
        (["nothing"], "model 'nothing': neither a packaged model"),
    ):
        with pytest.raises(NkfError, match=message):
            make_soft_labels(mini_pack, models, tmp_path / "soft.safetensors")
    assert not (tmp_path / "soft.safetensors").exists()


def write_soft(file: Path, pack: Path, probabilities: Any, **changes: Any) -> Path:
    metadata = {
        "classes": json.dumps(EXPRESSIONS),
        "models": json.dumps(["teacher"]),
        "rows_sha256": Pack(pack).manifest["rows_sha256"],
        "nkf_version": "0",
    }
    save_file({"probabilities": np.asarray(probabilities, np.float16)}, file, metadata | changes)
    return file


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"soft\.safetensors: no soft labels; make them with 'nkf soft-labels'"),
        ("text", r"soft\.safetensors: no soft labels; make them with 'nkf soft-labels'"),
        ("other file", r"soft\.safetensors: no soft labels; make them with 'nkf soft-labels'"),
        ("other pack", r"soft\.safetensors: about other rows than those of .*mini; make soft labels of this pack"),
        (
            "other classes",
            r"soft\.safetensors: tells neutral, .*, contempt; expected neutral, .*, anger, in this order",
        ),
        ("fewer rows", r"soft\.safetensors: damaged, expected 48 rows of 8 probabilities"),
        ("not a number", r"soft\.safetensors: damaged, expected 48 rows of 8 probabilities"),
    ],
)
def test_files_that_are_of_no_use_are_one_line(damage: str, message: str, mini_pack: Path, tmp_path: Path) -> None:
    file, rows = tmp_path / "soft.safetensors", np.full((48, 8), 1 / 8)
    if damage == "text":
        file.write_text("text")
    elif damage == "other file":
        save_file({"weights": np.zeros(3)}, file)
    elif damage != "missing":
        rows[3, 3] = np.nan if damage == "not a number" else rows[3, 3]
        changes = {"rows_sha256": "0"} if damage == "other pack" else {}
        write_soft(file, mini_pack, rows[:-1] if damage == "fewer rows" else rows, **changes)
    with pytest.raises(NkfError, match=message) as caught:
        read_soft_labels(file, Pack(mini_pack), SEVEN if damage == "other classes" else EXPRESSIONS)
    assert "\n" not in str(caught.value)
