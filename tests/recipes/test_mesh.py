"""The dense mesh as a second target: where it lies in crops, what it teaches, and that it is not saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Generator

from nkf.config import AugmentConfig, MixConfig, NetworkConfig, TrainConfig
from nkf.data.dataset import CropKind, load_crops
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError
from nkf.geometry import LANDMARK_MIRROR, MEAN_SHAPE, box_transform, crop_transform, transform_points
from nkf.models import load_model, save_model
from nkf.models.nkf import NKF
from nkf.preprocess import augment
from nkf.recipes import create_recipe
from nkf.recipes.mesh import Mesh, WithMesh, mesh_loss
from nkf.train import train
from nkf.weights import find_weights

VERTICES, COEFFICIENTS, SIDE = 478, 64, 48
CPU = torch.device("cpu")
WILD = AugmentConfig(rotation_deg=30, scale=0.2, shift=0.1)
UNKNOWN = 5  # row of a face that the teacher did not find


def coefficients_of(row: int) -> NDArray[np.float32]:
    return (0.01 * np.random.default_rng(row).normal(size=COEFFICIENTS)).astype(np.float32)


@pytest.fixture(scope="module")
def mesh_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A symmetric mean mesh, whose vertices 0 to 67 are the landmarks, but 27, which lies between 27 and 68."""
    generator = np.random.default_rng(0)
    mean = generator.uniform(0.2, 0.8, (VERTICES, 3))
    partner = np.arange(VERTICES)
    partner[:68], mean[:68, :2] = LANDMARK_MIRROR, MEAN_SHAPE
    partner[70:] = (np.arange(70, VERTICES) - 70 ^ 1) + 70
    mean[71::2, 1:], mean[71::2, 0] = mean[70::2, 1:], 1 - mean[70::2, 0]
    mean[68:70, 0] = 0.5
    basis = generator.normal(size=(COEFFICIENTS, VERTICES, 3))
    folder = tmp_path_factory.mktemp("mesh")
    np.savez(folder / "mesh_pca_basis.npz", mean=mean.astype(np.float32), basis=basis.astype(np.float32))
    landmarks = [[k] if k != 27 else [27, 68] for k in range(68)]
    maps = {"mesh_mirror": partner.tolist(), "landmark68_from_mesh": landmarks}
    (folder / "mesh_maps.json").write_text(json.dumps(maps))
    return folder


def mesh_px(folder: Path, row: int) -> NDArray[np.float64]:
    """(V, 2) in the picture of a row."""
    with np.load(folder / "mesh_pca_basis.npz") as archive:
        mesh = archive["mean"] + np.tensordot(coefficients_of(row), archive["basis"], 1)
    return mesh[:, :2].astype(np.float64) * SIDE


@pytest.fixture(scope="module")
def mesh_pack(tmp_path_factory: pytest.TempPathFactory, mini_pack: Path, mesh_folder: Path) -> Path:
    """The drawn pictures with a mesh each, and its landmarks."""
    source, path = Pack(mini_pack), tmp_path_factory.mktemp("packs") / "mesh"
    with PackWriter(path, {"dataset": "mesh", "source": "drawn", "licence": "none"}) as pack:
        for row in range(len(source)):
            mesh = mesh_px(mesh_folder, row)
            landmarks = mesh[:68].copy()
            landmarks[27] = mesh[[27, 68]].mean(axis=0)
            sample = Sample(
                name=f"{row}.png",
                split=str(source.splits[row]),
                label=("happiness", "sadness")[row % 2],
                image_bytes=source.image_bytes(row),
                landmarks_px=None if row == UNKNOWN else landmarks.astype(np.float32),
                landmarks_source="none" if row == UNKNOWN else "teacher",
                metadata={} if row == UNKNOWN else {"mesh_pca": coefficients_of(row)},
            )
            pack.add(sample)
    return path


def config_for(pack: Path, task: str, **changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {"network": NetworkConfig(backbone="tiny", keypoint_channels=16), "crop_size": 32}
    return TrainConfig(name="a", task=task, data=(pack,), batch_size=8, **(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["aligned", "whole"])
def test_mesh_lies_in_a_crop_where_its_picture_does(kind: CropKind, mesh_pack: Path, mesh_folder: Path) -> None:
    """By the chain of transforms here; by the landmarks at the end of it there."""
    pack, size = Pack(mesh_pack), 64
    crops = load_crops(pack, kind, size)
    rows = np.array([0, 3, 7, 12, 20, 31])
    landmarks = torch.from_numpy(crops.landmarks_px[rows])
    base = torch.tensor([size / 2, size / 2, size, 0]).expand(len(rows), 4)
    images = torch.zeros(len(rows), 3, size, size)
    _, moved, matrices, mirrored = augment(images, landmarks, base, 32, WILD, Generator().manual_seed(0))
    assert 0 < mirrored.sum() < len(rows)
    mesh = Mesh(mesh_folder, [pack], [np.arange(len(pack))], CPU)
    found = mesh.in_crops(torch.from_numpy(rows), moved, mirrored).numpy()
    partner = json.loads((mesh_folder / "mesh_maps.json").read_text())["mesh_mirror"]
    for number, row in enumerate(rows):
        points = mesh_px(mesh_folder, row)
        whole = box_transform([0, 0, SIDE, SIDE], size)
        to_crop = crop_transform(pack.landmarks_px[row], size) if kind == "aligned" else whole
        expected = transform_points(matrices[number].double().numpy(), transform_points(to_crop, points))
        expected = expected[partner] if mirrored[number] else expected
        np.testing.assert_allclose(found[number], expected, atol=2e-3)


def test_the_mean_face_does_not_deviate(mesh_pack: Path, mesh_folder: Path) -> None:
    mesh = Mesh(mesh_folder, [Pack(mesh_pack)], [np.arange(4)], CPU)
    mean = torch.from_numpy(MEAN_SHAPE).float() * 32
    np.testing.assert_allclose(mesh.deviations(mesh.typical * 32, 32), np.zeros((VERTICES, 2)), atol=1e-5)
    np.testing.assert_allclose(mesh.typical[:27] * 32, mean[:27], atol=1e-4)
    shifted = mesh.deviations((mesh.typical + 0.03) * 32, 32)
    np.testing.assert_allclose(shifted, np.ones((VERTICES, 2)), atol=1e-5)


def test_loss_is_of_what_is_known() -> None:
    found = torch.tensor([[[0.0, 0.5], [3.0, 0.0]], [[9.0, 9.0], [9.0, 9.0]]], requires_grad=True)
    target = torch.tensor([[[0.0, 0.0], [1.0, torch.nan]], [[torch.nan] * 2] * 2])
    loss = mesh_loss(found, target)
    assert loss.item() == pytest.approx((0 + 0.5**2 / 2 + (2 - 0.5)) / 3)
    loss.backward()
    assert found.grad is not None
    np.testing.assert_allclose(found.grad, [[[0, 0.5 / 3], [1 / 3, 0]], [[0, 0], [0, 0]]])
    assert mesh_loss(found, torch.full_like(target, torch.nan)).item() == 0


@pytest.mark.parametrize("mix", [MixConfig(), MixConfig(probability=1, cutmix=1)], ids=["", "mixed"])
def test_expressions_with_the_mesh(mix: MixConfig, mesh_pack: Path, mesh_folder: Path) -> None:
    recipe = create_recipe(config_for(mesh_pack, "expression", mesh=mesh_folder, mesh_weight=0.3, mix=mix), CPU)
    model = recipe.create()
    assert isinstance(model, WithMesh)
    batch = recipe.batch(np.arange(8), Generator().manual_seed(0))
    unknown = torch.isnan(batch.mesh).any(dim=(1, 2))
    assert unknown[UNKNOWN]
    assert mix.probability or unknown.sum() == 1
    torch.manual_seed(0)
    loss = recipe.loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any(), name
    torch.manual_seed(0)
    logits, mesh = model(batch.crops, batch.landmarks_px)
    known = ~torch.isnan(batch.mesh)
    of_mesh = F.smooth_l1_loss(mesh[known], batch.mesh[known])
    torch.testing.assert_close(loss, F.cross_entropy(logits, batch.targets) + 0.3 * of_mesh)


def test_the_mesh_changes_nothing_but_the_loss(mesh_pack: Path, mesh_folder: Path) -> None:
    """Starting weights, crops and targets are the same with and without it."""
    batches, networks = [], []
    for mesh in (None, mesh_folder):
        torch.manual_seed(0)
        recipe = create_recipe(config_for(mesh_pack, "expression", mesh=mesh), CPU)
        networks.append(recipe.network(recipe.create()).state_dict())
        batches.append(recipe.batch(np.arange(8), Generator().manual_seed(0)))
    assert batches[0].mesh is None
    for plain, with_mesh in zip(batches[0][:3], batches[1][:3], strict=True):
        assert torch.equal(plain, with_mesh)
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


def test_what_is_saved_is_the_network_alone(mesh_pack: Path, mesh_folder: Path, tmp_path: Path) -> None:
    recipe = create_recipe(config_for(mesh_pack, "expression", mesh=mesh_folder, mesh_weight=0.3), CPU)
    model = recipe.create().eval()
    network = recipe.network(model)
    assert isinstance(network, NKF)
    info = save_model(network, tmp_path / "net.safetensors", recipe.info(model))
    assert info.training["mesh"] == {"weight": 0.3}
    assert info == recipe.info(network).model_copy(update={"sha256": info.sha256})
    assert info.parameters == sum(p.numel() for p in network.parameters())
    again = load_model(*find_weights(str(tmp_path / "net.safetensors")))
    assert recipe.validate(again) == recipe.validate(model)


def test_a_run_that_was_stopped_goes_on_with_the_mesh(mesh_pack: Path, mesh_folder: Path, tmp_path: Path) -> None:
    """The head that tells the mesh is in the checkpoint, and in no weights file."""
    settings = config_for(
        mesh_pack, "expression", mesh=mesh_folder, mix=MixConfig(probability=0.5, cutmix=1), epochs=0.5, warmup_steps=1,
        evaluations=1, frozen=("backbone.stem",),
    )  # fmt: skip
    assert train(settings, tmp_path / "whole")["step"] == 2
    assert train(settings, tmp_path / "stopped", max_minutes=0)["step"] == 1
    assert train(settings, tmp_path / "stopped")["finished"]
    for part in ("last", "best"):
        whole, stopped = (load_file(tmp_path / run / part / "model.safetensors") for run in ("whole", "stopped"))
        assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    assert isinstance(load_model(*find_weights(str(tmp_path / "stopped"), (".safetensors",))), NKF)
    state = torch.load(tmp_path / "stopped" / "last" / "state.pt", weights_only=True)
    assert "mesh.0.weight" in state["model"]


def test_landmarks_with_the_mesh_train_its_heatmaps(mesh_pack: Path, mesh_folder: Path) -> None:
    config = config_for(mesh_pack, "landmarks", mesh=mesh_folder, augment=AugmentConfig(near=0.5))
    recipe = create_recipe(config, CPU)
    model = recipe.create()
    assert recipe.network(model) is model
    recipe.loss(model, recipe.batch(np.arange(8), Generator().manual_seed(0))).backward()
    gradient = model.to_mesh.weight.grad.abs().sum(dim=(1, 2, 3))
    assert 0 < (gradient > 0).sum() <= 96  # the vertices that this step drew


def test_landmarks_with_the_mesh_look_for_it_where_the_landmarks_are(mesh_pack: Path, mesh_folder: Path) -> None:
    recipe = create_recipe(config_for(mesh_pack, "landmarks", mesh=mesh_folder, augment=WILD), CPU)
    batch = recipe.batch(np.arange(8), Generator().manual_seed(0))
    for number, vertex in enumerate(batch.vertices.tolist()):
        if vertex < 68 and vertex != 27:
            torch.testing.assert_close(batch.mesh_px[:, number], batch.points_px[:, vertex], atol=2e-3, rtol=0)


@pytest.mark.parametrize("task", ["landmarks", "expression"])
@pytest.mark.parametrize("damage", ["no folder", "no basis", "no coefficients"])
def test_an_unusable_mesh_is_one_line(
    damage: str, task: str, mesh_pack: Path, mini_pack: Path, mesh_folder: Path, tmp_path: Path
) -> None:
    folder = mesh_folder
    if damage != "no coefficients":
        folder = tmp_path / "other"
    if damage == "no basis":
        folder.mkdir()
        (folder / "mesh_pca_basis.npz").write_bytes(b"text")
    data = mini_pack if damage == "no coefficients" else mesh_pack
    with pytest.raises(NkfError, match="no usable mesh basis, or packs without mesh coefficients") as caught:
        create_recipe(config_for(data, task, mesh=folder), CPU)
    assert "\n" not in str(caught.value)
