"""What expression networks minimise: each loss changes as its paper says, and teachers that do not fit are refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nkf.config import NetworkConfig, TrainConfig
from nkf.errors import NkfError
from nkf.models import count_parameters, create_model, load_model, save_model
from nkf.models.eac import EAC
from nkf.recipes.objectives import make_objective
from nkf.weights import EXPRESSION_KINDS, Calibration, Kind, WeightsInfo, find_weights

CPU = torch.device("cpu")
CLASSES = ("neutral", "happiness", "sadness")
TARGETS = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.2, 0.3]])
OTHERS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "nkf": NetworkConfig(backbone="tiny", keypoint_channels=16).architecture(),
    "eac": {"trunk": "tiny"},
    "fan": {"backbone": "tiny"},
}


def objective_for(loss: str, **changes: Any) -> Callable[..., Tensor]:
    network = {"system": "eac", "trunk": "tiny"} if loss == "eac" else {"backbone": "tiny"}
    fields = {"name": "a", "task": "expression", "data": ["x"], "crop_size": 32, "network": network, "loss": loss}
    return make_objective(TrainConfig.model_validate(fields | changes), CLASSES, CPU)


def save_network(file: Path, kind: Kind, classes: tuple[str, ...] = CLASSES, size: int = 32, **fields: Any) -> str:
    torch.manual_seed(3)
    network = create_model(kind, ARCHITECTURES[kind], len(classes))
    if kind in EXPRESSION_KINDS:
        nn.init.normal_(network.classifier.weight, std=2)  # type: ignore[union-attr, arg-type]
    info = WeightsInfo(
        name=file.stem, kind=kind, architecture=ARCHITECTURES[kind], classes=classes, input_size=size,
        mean=(0.5,) * 3, std=(0.5,) * 3, parameters=count_parameters(network), nkf_version="0", **fields,
    )  # fmt: skip
    save_model(network, file, info)
    return str(file)


def faces() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 32, 32, generator=generator), 32 * torch.rand(2, 68, 2, generator=generator)


@pytest.mark.parametrize("loss", ["cross_entropy", "poster"])
def test_losses_of_the_logits_by_hand(loss: str) -> None:
    p = np.exp(LOGITS.double().numpy())
    log_p, t = np.log(p / p.sum(axis=1, keepdims=True)), TARGETS.double().numpy()
    own, of_all = -(t * log_p).sum(axis=1), -log_p.mean(axis=1)
    expected = {"cross_entropy": own, "poster": own + 2 * (0.8 * own + 0.2 * of_all)}[loss].mean()
    told = objective_for(loss)(lambda crops, landmarks_px: LOGITS, *faces(), TARGETS)
    assert float(told) == pytest.approx(expected, rel=1e-6)


@pytest.fixture
def eac() -> EAC:
    torch.manual_seed(0)
    network = EAC(num_classes=3, trunk="tiny").eval()
    nn.init.normal_(network.classifier.weight)
    return network


def test_eac_adds_how_differently_the_mirror_image_is_looked_at(eac: EAC) -> None:
    crops, landmarks_px = faces()
    with torch.no_grad():
        last, of_mirrored = (eac.trunk(x)[16].numpy() for x in (crops, crops.flip(-1)))
        loss = float(objective_for("eac")(eac, crops, landmarks_px, TARGETS))
    weight, bias = eac.classifier.weight.detach().numpy(), eac.classifier.bias.detach().numpy()
    maps, others = (np.einsum("nc,bcyx->bnyx", weight, one) for one in (last, of_mirrored))
    consistency = ((maps - others[..., ::-1]) ** 2).mean()
    logits = torch.from_numpy(last.mean(axis=(2, 3)) @ weight.T + bias)
    cross_entropy = float(F.cross_entropy(logits, TARGETS))
    assert 5 * consistency > 0.01 * cross_entropy
    assert loss == pytest.approx(cross_entropy + 5 * consistency, rel=1e-4)


class Pointwise(nn.Module):
    """A trunk that sees each pixel by itself, so that it sees a mirror image mirrored."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 96, 1)

    def forward(self, crops: Tensor) -> dict[int, Tensor]:
        return {16: self.conv(crops)}


def test_eac_has_nothing_to_add_where_mirror_images_are_seen_alike(eac: EAC) -> None:
    eac.trunk = Pointwise()  # type: ignore[assignment]
    with torch.no_grad():
        losses = [float(objective_for(loss)(eac, *faces(), TARGETS)) for loss in ("eac", "cross_entropy")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_consistency_teaches_the_trunk_and_not_the_classifier(eac: EAC) -> None:
    gradients: list[dict[str, Tensor]] = []
    for loss in ("cross_entropy", "eac"):
        eac.zero_grad()
        objective_for(loss)(eac, *faces(), TARGETS).backward()
        gradients.append({name: p.grad.clone() for name, p in eac.named_parameters() if p.grad is not None})
    plain, with_maps = gradients
    same = {name for name, gradient in plain.items() if torch.allclose(gradient, with_maps[name], rtol=1e-3, atol=1e-7)}
    assert {"classifier.weight", "classifier.bias"} <= same
    assert [name for name in same if eac.get_parameter(name).dim() == 4] == []  # no convolution of the trunk


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_targets_are_the_teachers_answers_and_no_labels(temperature: float, tmp_path: Path, eac: EAC) -> None:
    """To the same crops and landmarks, calibrated where the teacher is; the mean is over classes too."""
    file = save_network(tmp_path / "teacher.safetensors", "nkf", calibration=Calibration(temperature=temperature))
    taught = objective_for("label_distribution", teacher=file)
    crops, landmarks_px = faces()
    with torch.no_grad():
        logits = load_model(*find_weights(file, (".safetensors",)))(crops, landmarks_px)
        answers = (logits / temperature).softmax(dim=1)
        expected = -(answers * eac(crops).softmax(dim=1).log()).sum() / (2 * 3)
        losses = [float(taught(eac, crops, landmarks_px, targets)) for targets in (TARGETS, OTHERS)]
        changed = [(crops.flip(-1), landmarks_px), (crops, landmarks_px.flip(-1))]  # by the teacher's eyes alone
        others = [float(taught(lambda *_: eac(crops), *seen, TARGETS)) for seen in changed]
    assert losses == pytest.approx([float(expected)] * 2, rel=1e-5)
    assert [other for other in others if other == pytest.approx(losses[0], rel=1e-4)] == []


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn(tmp_path: Path) -> None:
    file = save_network(tmp_path / "teacher.safetensors", "eac")
    taught = objective_for("label_distribution", teacher=file)
    student = load_model(*find_weights(file, (".safetensors",)))
    largest = []
    for objective in (taught, objective_for("cross_entropy")):
        student.zero_grad()
        objective(student, *faces(), TARGETS).backward()
        largest.append(max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None))
    assert largest[0] < 1e-5 < 1e-2 < largest[1]
    assert isinstance(taught, partial)
    (teacher,) = taught.args
    assert not teacher.training
    assert [p for p in teacher.parameters() if p.requires_grad or p.grad is not None] == []


@pytest.mark.parametrize(
    ("kind", "classes", "size", "message"),
    [
        ("fan", (), 32, "tells no expressions; expected neutral, happiness, sadness, in this order"),
        ("eac", CLASSES[::-1], 32, "tells sadness, happiness, neutral; expected neutral, happiness, sadness, in this"),
        (
            "nkf",
            (*CLASSES, "fear"),
            32,
            "tells neutral, happiness, sadness, fear; expected neutral, happiness, ",
        ),
        ("eac", CLASSES, 64, "sees crops of 64 pixels, crop_size is 32"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(
    kind: Kind, classes: tuple[str, ...], size: int, message: str, tmp_path: Path
) -> None:
    file = save_network(tmp_path / "teacher.safetensors", kind, classes, size)
    with pytest.raises(NkfError, match=message) as caught:
        objective_for("label_distribution", teacher=file)
    assert str(caught.value).startswith(f"teacher {file!r}: ")
    assert "\n" not in str(caught.value)


def test_a_teacher_that_is_not_there_is_named() -> None:
    with pytest.raises(NkfError, match="model 'runs/none': neither a packaged model"):
        objective_for("label_distribution", teacher="runs/none")
