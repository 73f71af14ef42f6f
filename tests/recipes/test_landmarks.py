"""The landmark recipe: its loss, and the mesh as a second target."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nkf.config import AugmentConfig, TrainConfig
from nkf.data.dataset import load_crops
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError
from nkf.recipes import create_recipe
from nkf.recipes.landmarks import WHOLE_SIZE, Mesh, landmark_loss

VERTICES, COEFFICIENTS = 478, 64


def test_loss_is_least_where_the_spread_is_the_expected_distance() -> None:
    target = torch.zeros(1, 2000, 2)
    b = 3.0
    generator = torch.Generator().manual_seed(0)
    radius = b * -(torch.rand(2, 1, 2000, generator=generator)).log().sum(dim=0)  # Gamma(2, b)
    points = torch.stack([radius, torch.zeros_like(radius)], dim=-1)
    gradients = []  # the weight is constant for the gradient, so the best spread is where it vanishes
    for value in (0.8 * 2 * b, 2 * b, 1.25 * 2 * b):
        spread = torch.full((1, 2000), value, requires_grad=True)
        landmark_loss(points, spread, target, torch.ones(1, 1)).backward()
        gradients.append(float(spread.grad.sum()))
    assert gradients[0] < 0 < gradients[2]
    assert abs(gradients[1]) < 0.2 * min(-gradients[0], gradients[2])


def test_uncertain_points_pull_less_but_are_not_given_up() -> None:
    points = torch.zeros(1, 2, 2, requires_grad=True)
    target = torch.full((1, 2, 2), 5.0)
    landmark_loss(points, torch.tensor([[1.0, 16.0]]), target, torch.ones(1, 1)).backward()
    certain, uncertain = points.grad.norm(dim=-1)[0]
    torch.testing.assert_close(certain / uncertain, torch.tensor(4.0))  # the root of the ratio, not the ratio


@pytest.fixture
def mesh_folder(tmp_path: Path) -> Path:
    """A basis whose second coefficient shifts all vertices down, and whose landmarks are the vertices 0 to 67."""
    generator = np.random.default_rng(0)
    mean = generator.uniform(0.2, 0.8, (VERTICES, 3)).astype(np.float32)
    basis = np.zeros((COEFFICIENTS, VERTICES, 3), np.float32)
    basis[1, :, 1] = 1
    folder = tmp_path / "mesh"
    folder.mkdir()
    np.savez(folder / "mesh_pca_basis.npz", mean=mean, basis=basis)
    partner = [k ^ 1 for k in range(VERTICES)]
    maps = {"mesh_mirror": partner, "landmark68_from_mesh": [[k] if k != 27 else [27, 28] for k in range(68)]}
    (folder / "mesh_maps.json").write_text(json.dumps(maps))
    return folder


@pytest.fixture
def mesh_pack(tmp_path: Path, mini_pack: Path, mesh_folder: Path) -> Path:
    """The drawn faces, with landmarks and coefficients of one mesh that lies a little lower in each picture."""
    source = Pack(mini_pack)
    with np.load(mesh_folder / "mesh_pca_basis.npz") as archive:
        mean = archive["mean"]
    with PackWriter(tmp_path / "pack", {"dataset": "mesh", "source": "drawn", "licence": "none"}) as pack:
        for row in range(len(source)):
            coefficients = np.zeros(COEFFICIENTS, np.float32)
            coefficients[1] = 0.002 * row
            mesh = (mean[:, :2] + [0, 0.002 * row]) * 48
            landmarks = mesh[:68].copy()
            landmarks[27] = mesh[[27, 28]].mean(axis=0)
            sample = Sample(
                name=f"{row}.png",
                split="train",
                image_bytes=source.image_bytes(row),
                landmarks_px=landmarks,
                landmarks_source="teacher",
                metadata={"mesh_pca": coefficients},
            )
            pack.add(sample)
    return tmp_path / "pack"


def test_mesh_lies_on_the_landmarks_it_makes(mesh_pack: Path, mesh_folder: Path) -> None:
    pack = Pack(mesh_pack)
    landmarks = torch.from_numpy(load_crops(pack, "whole", WHOLE_SIZE).landmarks_px)
    rows = np.arange(len(pack))
    mesh = Mesh(mesh_folder, [pack], [rows], torch.device("cpu"))
    matrices = torch.tensor([[2.0, 0, 5], [0, 2, -3]]).expand(4, 2, 3)
    mirrored = torch.tensor([False, False, True, True])
    chosen, vertices = torch.tensor([0, 7, 7, 9]), torch.tensor([30, 31])
    found = mesh.vertices_px(chosen, landmarks[chosen], vertices, matrices, mirrored)
    expected = landmarks[chosen][:, 30:32] * 2 + torch.tensor([5.0, -3.0])
    expected[2:] = expected[2:].flip(1)  # 30 and 31 are partners
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_training_with_the_mesh_changes_its_head(mesh_pack: Path, mesh_folder: Path) -> None:
    config = TrainConfig(
        name="a", task="landmarks", data=(mesh_pack,), network={"backbone": "tiny"}, crop_size=32, mesh=mesh_folder,
        augment=AugmentConfig(near=0.5),
    )  # fmt: skip
    recipe = create_recipe(config, torch.device("cpu"))
    model = recipe.create()
    recipe.loss(model, recipe.batch(np.arange(8), torch.Generator().manual_seed(0))).backward()
    gradient = model.to_mesh.weight.grad.abs().sum(dim=(1, 2, 3))
    assert 0 < (gradient > 0).sum() <= 96  # the vertices that this step drew


@pytest.mark.parametrize("damage", ["no folder", "no basis", "no coefficients"])
def test_an_unusable_mesh_is_one_line(damage: str, mesh_pack: Path, mini_pack: Path, mesh_folder: Path) -> None:
    if damage == "no basis":
        (mesh_folder / "mesh_pca_basis.npz").write_bytes(b"text")
    folder = mesh_folder.parent / "nothing" if damage == "no folder" else mesh_folder
    data = mini_pack if damage == "no coefficients" else mesh_pack
    config = TrainConfig(
        name="a", task="landmarks", data=(data,), network={"backbone": "tiny"}, crop_size=32, mesh=folder
    )
    with pytest.raises(NkfError, match="no usable mesh basis, or packs without mesh coefficients"):
        create_recipe(config, torch.device("cpu"))
