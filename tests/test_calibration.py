"""Calibration: parameters against torch's optimiser, judged on other folds; the same in sidecar, graph and torch."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from nkf import calibration
from nkf.calibration import calibrate, fit, judge
from nkf.config import NetworkConfig
from nkf.data.splitting import folds
from nkf.errors import NkfError
from nkf.evaluate import evaluate
from nkf.export import export, read_calibration, read_figures
from nkf.machine import machine
from nkf.models import count_parameters, create_model, load_model, save_model
from nkf.report_calibration import draw_coverage, draw_reliability
from nkf.runtime import load_expression_model
from nkf.weights import Calibration, WeightsInfo, find_weights, read_info

BIASES = (0.8, -0.9, 0.1, 0.0)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def made_up(count: int, temperature: float, biases: tuple[float, ...] = (0, 0, 0, 0), seed: int = 0) -> Any:
    """Logits (N, 4) and labels that follow softmax(logits / temperature + biases)."""
    generator = np.random.default_rng(seed)
    logits = 2.5 * temperature * generator.normal(size=(count, 4))
    sums = softmax(logits / temperature + np.array(biases)).cumsum(axis=1)
    return logits, (generator.random((count, 1)) > sums).sum(axis=1).clip(max=3)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found_again(temperature: float) -> None:
    logits, labels = made_up(20_000, temperature)
    assert fit(logits, labels, "temperature").temperature == pytest.approx(temperature, rel=0.05)


def test_temperature_and_biases_are_found_again() -> None:
    logits, labels = made_up(20_000, 1.7, BIASES)
    found = fit(logits, labels, "class_bias")
    assert found.temperature == pytest.approx(1.7, rel=0.05)
    np.testing.assert_allclose(np.array(found.class_biases) - np.mean(found.class_biases), BIASES, atol=0.08)


@pytest.mark.parametrize("method", ["temperature", "class_bias"])
def test_parameters_are_those_that_torch_finds(method: Any) -> None:
    logits, labels = made_up(300, 0.6, BIASES, seed=4)
    theta = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64, requires_grad=True)
    free = 1.0 if method == "class_bias" else 0.0
    optimiser = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        scores = torch.from_numpy(logits) * theta[0] + free * theta[1:]
        value = torch.nn.functional.cross_entropy(scores, torch.from_numpy(labels), reduction="sum")
        value = value + calibration.BIAS_RIDGE * theta[1:].square().sum() + 0.01 * (theta[0] - 1) ** 2
        value.backward()
        return value

    optimiser.step(loss)
    found = fit(logits, labels, method)
    expected = theta.detach().numpy()
    assert found.temperature == pytest.approx(1 / expected[0], rel=1e-5)
    np.testing.assert_allclose(found.class_biases, expected[1:] if free else [], atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_network_that_is_always_right_or_wrong_has_a_finite_temperature(sign: int) -> None:
    labels = np.arange(40) % 4
    found = fit(sign * np.eye(4)[labels], labels, "class_bias")
    assert 0.05 <= found.temperature <= 20


@pytest.mark.parametrize(
    ("parameters", "keeps_order"),
    [(Calibration(temperature=0.3), True), (Calibration(temperature=2, class_biases=BIASES), False)],
)
def test_calibrated_probabilities_and_back(parameters: Calibration, keeps_order: bool) -> None:
    logits = made_up(50, 1)[0]
    calibrated = calibration.apply(parameters, logits)
    expected = softmax(logits / parameters.temperature + np.array(parameters.class_biases or 0))
    np.testing.assert_allclose(calibrated, expected)
    assert (calibrated.argmax(axis=1) == logits.argmax(axis=1)).all() == keeps_order
    back = calibration.raw_logits(calibrated, parameters)
    np.testing.assert_allclose(back - back[:, :1], logits - logits[:, :1], atol=1e-9)
    np.testing.assert_allclose(softmax(calibration.raw_logits(calibrated, None)), calibrated)


def test_each_fold_is_judged_by_what_the_others_gave() -> None:
    logits, labels = made_up(60, 0.5)
    parts = np.arange(60) % 3
    expected = calibration.cross_fit(logits, labels, parts, "class_bias")
    by_hand = fit(logits[parts != 1], labels[parts != 1], "class_bias")
    np.testing.assert_allclose(expected[parts == 1], calibration.apply(by_hand, logits[parts == 1]))
    changed = np.where(parts == 1, 3 - labels, labels)  # its own labels change nothing of a fold, but of the others
    after = calibration.cross_fit(logits, changed, parts, "class_bias")
    np.testing.assert_array_equal(after[parts == 1], expected[parts == 1])
    assert not np.isclose(after[parts == 0], expected[parts == 0]).any()


@pytest.mark.parametrize(
    ("biases", "method", "expected"),
    [
        ((0, 0, 0, 0), "auto", "temperature"),
        (BIASES, "auto", "class_bias"),
        (BIASES, "temperature", "temperature"),
        ((0, 0, 0, 0), "class_bias", "class_bias"),
    ],
)
def test_biases_are_taken_where_they_are_clearly_better(biases: Any, method: Any, expected: str) -> None:
    logits, labels = made_up(1500, 0.5, biases)
    result = judge(logits, labels, np.arange(1500), method=method)
    assert result["method"] == expected
    assert result["after"] == result["candidates"][expected]
    assert (result["class_biases"] == ()) == (expected == "temperature")
    assert (result["class_bias_over_temperature"]["nll_gain_ci95"][0] > 0) == (biases == BIASES)
    assert result["before"]["ece"] > 0.08
    if expected == "class_bias" or biases != BIASES:
        assert result["after"]["ece"] < 0.04
        low, high = result["after"]["ece_ci95"]
        assert 0 <= low < high < 0.05


def test_biases_that_lose_accuracy_are_not_taken() -> None:
    """They are far better on all images but one, where they lose."""
    labels = np.zeros(1000, int)
    plain, biased = np.tile([0.6, 0.4], (1000, 1)), np.tile([0.9, 0.1], (1000, 1))
    assert calibration.choose({"temperature": plain, "class_bias": biased}, labels, np.arange(1000))[0] == "class_bias"
    biased[0] = 0.4, 0.6
    method, why = calibration.choose({"temperature": plain, "class_bias": biased}, labels, np.arange(1000))
    assert (method, why["nll_gain_ci95"][0] > 0) == ("temperature", True)
    assert why["accuracy_gain"] == pytest.approx(-0.001)


def test_images_of_a_group_are_in_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = made_up(60, 1)
    groups, seen = np.arange(60) // 3, []
    monkeypatch.setattr(calibration, "folds", lambda *given: seen.append(folds(*given)) or seen[-1])
    judge(logits, labels, groups)
    assert len(set(seen[0])) == 5
    assert all(len(set(seen[0][groups == group])) == 1 for group in range(20))


def test_threshold_is_judged_by_what_the_other_folds_give() -> None:
    """The first fold's two faces above 0.8 are wrong, which its own threshold would leave out."""
    confidence = np.array([0.9, 0.8, 0.95, 0.7, 0.9, 0.8, 0.7, 0.6])
    right = np.array([0, 0, 1, 1, 1, 1, 0, 0], bool)
    told = calibration.judge_threshold(confidence, right, np.repeat([0, 1], 4), accuracy=1.0)
    # the second fold gives 0.8, the first one 0.95
    assert (told["coverage"], told["accuracy"]) == (3 / 8, 1 / 3)
    none = calibration.judge_threshold(confidence, np.zeros(8, bool), np.repeat([0, 1], 4), accuracy=1.0)
    assert (none["coverage"], none["accuracy"], none["accuracy_ci95"]) == (0, None, None)


def test_accuracy_at_the_threshold_is_reached_on_new_images() -> None:
    logits, labels = made_up(3000, 0.5)
    told = judge(logits, labels, np.arange(3000), target_accuracy=0.9)
    assert told["at_min_confidence"]["accuracy"] == pytest.approx(0.9, abs=0.01)
    parameters = Calibration(temperature=told["temperature"], class_biases=told["class_biases"])
    logits, labels = made_up(4000, 0.5, seed=1)
    probabilities = calibration.apply(parameters, logits)
    kept = probabilities.max(axis=1) >= told["min_confidence"]
    assert (probabilities.argmax(axis=1) == labels)[kept].mean() == pytest.approx(0.9, abs=0.02)
    assert kept.mean() == pytest.approx(told["at_min_confidence"]["coverage"], abs=0.03)


def test_pictures_show_the_saved_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = judge(*made_up(300, 0.5), np.arange(300), target_accuracy=0.9)
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure) or save(figure, *a, **k))
    for draw in (draw_reliability, draw_coverage):
        draw(document, tmp_path / "a.png", title="title")
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.width > 600
    panels, (coverage,) = (figure.axes for figure in figures)
    for axes, bars, (when, rows) in zip(panels[:2], panels[2:], document["reliability"].items(), strict=True):
        ece, likelihood = document[when]["ece"], -document[when]["nll"]
        assert axes.get_title() == f"{when}: ECE {ece:.2%}, log-likelihood {likelihood:.3f}"
        means = [[row["confidence"], row["accuracy"]] for row in rows]
        np.testing.assert_allclose(axes.lines[1].get_xydata(), means)
        assert sum(bar.get_height() for bar in bars.patches) == pytest.approx(1)
    for line, curve in zip(coverage.lines, document["curve"].values(), strict=False):
        np.testing.assert_allclose(line.get_xydata(), np.stack([curve["coverage"], curve["accuracy"]], axis=1))
    points = [line.get_xydata().tolist() for line in coverage.lines if line.get_marker() == "o"]
    told = document["at_min_confidence"]
    assert points == [[[told["coverage"], told["accuracy"]]]]


class OneConvolution(nn.Module):
    """Stands for a backbone: a real one takes ten times as long to export, which other tests do."""

    channels: ClassVar = {16: 8}

    def __init__(self, name: str) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, crops: torch.Tensor) -> dict[int, torch.Tensor]:
        return {16: self.convolution(crops)}


@pytest.fixture
def network_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An expression network of random weights that knows two classes, and is sure of what it says."""
    monkeypatch.setattr("nkf.models.create_backbone", OneConvolution)
    torch.manual_seed(3)
    fields = NetworkConfig(backbone="tiny", strides=()).architecture()
    network = create_model("nkf", fields, 2)
    with torch.no_grad():
        network.head.classify.weight *= 5
    info = WeightsInfo(
        name="net",
        kind="nkf",
        architecture=fields,
        classes=("happiness", "sadness"),
        input_size=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        parameters=count_parameters(network),
        nkf_version="0",
    )
    file = tmp_path / "network" / "net.safetensors"
    file.parent.mkdir()
    save_model(network, file, info)
    return file


def test_calibrated_network_from_pack_to_export(
    mini_pack: Path, network_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fitted to raw outputs, exported, the same in ONNX and torch, and found again from the calibrated network."""
    drawn: list[str] = []
    for name in ("draw_reliability", "draw_coverage"):
        monkeypatch.setattr(
            calibration, name, lambda document, file, title: (file.write_bytes(b""), drawn.append(title))
        )
    options: dict[str, Any] = {"landmarks": "pack", "device": "cpu", "method": "class_bias"}
    document = calibrate(mini_pack, tmp_path / "first", model=str(network_file), **options)
    saved = json.loads((tmp_path / "first" / "calibration.json").read_text())
    assert saved == json.loads(json.dumps(document))
    assert (saved["schema"], saved["model"], saved["data"], saved["split"]) == (1, "net", "mini", "valid")
    assert (saved["n"], saved["copies_left_out"]) == (14, 2)
    assert (saved["machine"], saved["seed"]) == (machine("cpu"), 0)
    assert {file.name for file in (tmp_path / "first").iterdir()} == {
        "calibration.json",
        "reliability.png",
        "coverage.png",
    }
    assert drawn == ["net on valid of mini"] * 2

    wanted = read_calibration(tmp_path / "first" / "calibration.json", "net")
    assert wanted.figures["after"] == saved["after"]
    info = export(str(network_file), tmp_path / "out", calibration=wanted)
    assert info.calibration == read_info(tmp_path / "out" / "net.json").calibration == wanted
    crops = np.random.default_rng(0).random((3, 3, 64, 64), np.float32)
    landmarks_px = np.random.default_rng(1).random((3, 68, 2), np.float32) * 64
    with torch.no_grad():
        file = tmp_path / "out" / "net.safetensors"  # rounded to float16
        logits = load_model(file, info)(torch.from_numpy(crops), torch.from_numpy(landmarks_px)).numpy()
    expected = softmax(logits / wanted.temperature + np.array(wanted.class_biases))
    assert np.abs(expected - softmax(logits)).max() > 0.01
    for kind in ("onnx", "safetensors"):
        model, _ = load_expression_model(str(tmp_path / "out" / f"net.{kind}"), "cpu")
        np.testing.assert_allclose(model(crops, landmarks_px), expected, atol=1e-5)

    again = calibrate(mini_pack, tmp_path / "second", model=str(tmp_path / "out" / "net.onnx"), **options)
    assert again["temperature"] == pytest.approx(document["temperature"], rel=0.01)  # float16 weights
    np.testing.assert_allclose(again["class_biases"], document["class_biases"], atol=0.01)
    assert again["before"]["nll"] == pytest.approx(document["before"]["nll"], abs=1e-3)
    told = evaluate(mini_pack, "valid", tmp_path / "eval", model=str(file), landmarks="pack", device="cpu")
    assert told.nll < document["before"]["nll"]


def test_export_keeps_the_calibration_that_a_network_has(
    network_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[WeightsInfo] = []

    def stop(network: Any, info: WeightsInfo) -> None:
        seen.append(info)
        raise InterruptedError

    monkeypatch.setattr("nkf.export.to_onnx", stop)  # what follows takes seconds
    file, info = find_weights(str(network_file))
    given, other = Calibration(temperature=0.5, min_confidence=0.7), Calibration(temperature=2)
    save_model(load_model(file, info), tmp_path / "net.safetensors", info.model_copy(update={"calibration": given}))
    for calibration_option in (None, other):
        with pytest.raises(InterruptedError):
            export(str(tmp_path / "net.safetensors"), tmp_path / "out", calibration=calibration_option)
    assert [info.calibration for info in seen] == [given, other]


def test_sidecar_without_the_field_loads(network_file: Path, tmp_path: Path) -> None:
    content = json.loads(network_file.with_suffix(".json").read_text())
    del content["calibration"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_info(tmp_path / "old.json").calibration is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, r"net\.json: not a sidecar of weights \(calibration\.temperature: .*greater than 0"),
        ({"class_biases": [1, 2, 3]}, "calibration: 3 class_biases for 2 classes"),
    ],
)
def test_sidecar_with_an_impossible_calibration(network_file: Path, tmp_path: Path, change: Any, message: str) -> None:
    content = json.loads(network_file.with_suffix(".json").read_text())
    (tmp_path / "net.json").write_text(json.dumps(content | {"calibration": change}))
    with pytest.raises(NkfError, match=message):
        read_info(tmp_path / "net.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", r"c\.json: not a calibration\.json of nkf \(Expecting value"),
        ("{}", r"not a calibration\.json of nkf \('model'\)"),
        ("[" * 100_000, r"not a calibration\.json of nkf \(maximum recursion depth"),
        ('{"model": "other"}', "about the model 'other', not 'net'"),
    ],
)
def test_unusable_calibration_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(NkfError, match=message):
        read_calibration(tmp_path / "c.json", "net")


@pytest.mark.parametrize("content", ["no json", "[]", "{}", "[" * 100_000])
def test_unusable_evaluation_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(NkfError, match=r"e\.json: not an evaluation\.json of nkf \("):
        read_figures(tmp_path / "e.json", "net")


def test_impossible_temperature_in_a_file_is_named(tmp_path: Path) -> None:
    logits, labels = made_up(60, 1)
    document = judge(logits, labels, np.arange(60)) | dict.fromkeys(("data", "split", "rule", "landmarks", "date"), "")
    (tmp_path / "c.json").write_text(json.dumps(document | {"model": "net", "temperature": -1}))
    with pytest.raises(NkfError, match=r"c\.json: not a calibration\.json of nkf \(temperature: .*greater than 0"):
        read_calibration(tmp_path / "c.json", "net")


def test_calibration_of_another_kind_or_number_of_classes_is_refused(
    network_file: Path, tmp_path: Path, save_network: Any
) -> None:
    with pytest.raises(NkfError, match="'net': has 2 classes, the calibration has biases for 4"):
        export(str(network_file), tmp_path / "out", calibration=Calibration(class_biases=BIASES))
    with pytest.raises(NkfError, match="'fan': gives no probabilities"):
        export("fan", tmp_path / "out", calibration=Calibration())


def test_wanted_accuracy_is_a_share(mini_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"target accuracy 95: expected a share between 0 and 1, such as 0\.95"):
        calibrate(mini_pack, tmp_path, target_accuracy=95)


def test_too_few_images_for_the_folds(model_file: Path, tmp_path: Path, mini_pack: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(calibration, "FOLDS", 15)
    with pytest.raises(NkfError, match="14 groups of images cannot be split into 15 parts"):
        calibrate(mini_pack, tmp_path / "out", model=str(model_file), landmarks="pack", device="cpu")
    assert not (tmp_path / "out").exists()
