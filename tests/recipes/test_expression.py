"""The expression recipe: which images of a pack it takes under a protocol, its targets, and heads of other classes."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nkf.config import NetworkConfig, TrainConfig
from nkf.data.labels import DROPPED, EXPRESSIONS, VOTE_COLUMNS
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.errors import NkfError, NkfWarning
from nkf.models import create_model, load_model, save_model
from nkf.models.nkf import NKF
from nkf.protocols import PROTOCOLS, Protocol
from nkf.recipes import create_recipe
from nkf.recipes.expression import ExpressionRecipe
from nkf.recipes.rows import chosen_rows
from nkf.recipes.targets import shares_of_classes
from nkf.weights import find_weights

# The packs here are far smaller than the datasets; `test_counts_of_another_copy_are_a_warning` looks at what is said.
pytestmark = pytest.mark.filterwarnings("ignore::nkf.errors.NkfWarning")
SEVEN = EXPRESSIONS[:-1]
NETWORK = NetworkConfig(backbone="tiny", keypoint_channels=16)
CPU = torch.device("cpu")


def write_pack(path: Path, rows: Sequence[tuple[str, str]], **metadata: Sequence[Any]) -> Path:
    """A pack of grey 16x16 pictures, all different, of the given (split, label)."""
    with PackWriter(path, {"dataset": "made", "source": "drawn", "licence": "none"}) as pack:
        for number, (split, label) in enumerate(rows):
            stream = io.BytesIO()
            Image.fromarray(np.full((16, 16), number % 256, np.uint8)).save(stream, "PNG")
            extra = {name: values[number] for name, values in metadata.items()}
            pack.add(Sample(f"{number}.png", split, stream.getvalue(), label=label, metadata=extra))
    return path


def test_counts_of_another_copy_are_a_warning(all_classes: Path) -> None:
    with pytest.warns(NkfWarning, match=r"protocol rafdb: 36 images in train, a complete copy has 12,271$"):
        recipe_for(all_classes, {"name": "rafdb", "valid_share": 0.25})


def recipe_for(pack: Path, protocol: Any, **changes: Any) -> ExpressionRecipe:
    fields: dict[str, Any] = {"network": NETWORK, "crop_size": 32, "batch_size": 4, "protocol": protocol}
    recipe = create_recipe(TrainConfig(name="a", task="expression", data=(pack,), **(fields | changes)), CPU)
    assert isinstance(recipe, ExpressionRecipe)
    return recipe


def test_photos_without_a_face_are_left_out(tmp_path: Path) -> None:
    """A face that was not found is shown by its box; without one a crop of a photo's middle would teach nothing."""
    with PackWriter(tmp_path / "pack", {"dataset": "photos", "shows": "photo"}) as pack:
        for number in range(12):
            stream = io.BytesIO()
            Image.fromarray(np.full((16, 16), 20 * number, np.uint8)).save(stream, "PNG")
            box = np.array([2, 2, 12, 12], np.float32) if number % 3 else None
            split = "train" if number < 9 else "valid"
            label = ("happiness", "fear")[number % 2]
            pack.add(Sample(f"{number}", split, stream.getvalue(), label=label, box_xyxy=box))
    with pytest.warns(NkfWarning, match=r"pack: 4 photos are left out, it is not known where their faces are$"):
        recipe = recipe_for(tmp_path / "pack", "own")
    assert (recipe.num_train, len(recipe.valid_labels)) == (6, 2)
    shown = recipe.train.images_uint8(np.arange(6))[:, 0, 0, 0].tolist()
    assert shown == [20 * number for number in (1, 2, 4, 5, 7, 8)]


def test_a_valid_split_that_was_carved_at_the_import_chooses(tmp_path: Path) -> None:
    rows = [(split, label) for label in SEVEN for split in ("train", "train", "train", "valid")]
    path = write_pack(tmp_path / "pack", rows)
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps(Pack(path).manifest | {"valid_carved": {"share": 0.25, "seed": 0}}))
    with pytest.warns(NkfWarning, match="28 images in train, a complete copy has 12,271"):
        recipe = recipe_for(path, "rafdb")
    assert (recipe.num_train, len(recipe.valid_labels)) == (21, 7)


@pytest.fixture(scope="module")
def all_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training images of happiness, four of each other class, and two test images of each."""
    rows = [("train", label) for label in EXPRESSIONS for _ in range(12 if label == "happiness" else 4)]
    return write_pack(tmp_path_factory.mktemp("packs") / "all", rows + [("test", label) for label in EXPRESSIONS] * 2)


def test_seven_classes_drop_contempt_in_every_split(all_classes: Path) -> None:
    pack = Pack(all_classes)
    for name, classes in (("affectnet7", SEVEN), ("affectnet8", EXPRESSIONS)):
        labels = PROTOCOLS[name].class_indices(pack.labels())
        for split in ("train", "test"):
            kept = pack.rows(split)[labels[pack.rows(split)] != DROPPED]
            shown = {EXPRESSIONS[label] for label in pack.labels()[kept]}
            assert shown == set(classes)
            assert [classes[label] for label in labels[kept]] == [EXPRESSIONS[n] for n in pack.labels()[kept]]
    recipe = recipe_for(all_classes, {"name": "affectnet7", "valid_share": 0.25})
    assert recipe.num_train + len(recipe.valid_labels) == 12 + 6 * 4
    assert recipe.create()(torch.rand(2, 3, 32, 32), torch.rand(2, 68, 2) * 32).shape == (2, 7)
    info = recipe.info(recipe.create())
    assert info.classes == SEVEN
    assert info.training["differences"] == [
        "protocol affectnet7: 36 images in train, a complete copy has 283,901",
        "protocol affectnet7: 14 images in test, a complete copy has 3,500",
    ]


def test_classes_in_between_may_be_left_out(all_classes: Path) -> None:
    recipe = recipe_for(all_classes, {"classes": ("neutral", "fear", "contempt"), "choose": "last"})
    assert Counter(recipe.targets.argmax(dim=1).tolist()) == {0: 4, 1: 4, 2: 4}
    assert recipe.targets.shape == (12, 3)


def test_carved_images_have_all_classes_and_are_not_trained_on(all_classes: Path) -> None:
    pack, protocol = Pack(all_classes), PROTOCOLS["affectnet8"].model_copy(update={"valid_share": 0.25})
    labels = pack.labels()
    train, valid = chosen_rows(pack, protocol, labels)
    assert sorted([*train, *valid]) == pack.rows("train").tolist()
    assert Counter(labels[valid].tolist()) == {n: 3 if name == "happiness" else 1 for n, name in enumerate(EXPRESSIONS)}
    again = chosen_rows(Pack(all_classes), protocol, labels)[1]
    np.testing.assert_array_equal(valid, again)
    other = chosen_rows(pack, protocol.model_copy(update={"seed": 1}), labels)[1]
    assert valid.tolist() != other.tolist()
    recipes = [recipe_for(all_classes, protocol, seed=seed) for seed in (0, 5)]
    every = np.arange(len(recipes[0].valid))
    images = [recipe.valid.images_uint8(every) for recipe in recipes]
    np.testing.assert_array_equal(*images)  # whatever the seed of the run


def test_carved_images_show_other_people_where_people_are_known(tmp_path: Path) -> None:
    people = [f"S{number // 4:03}" for number in range(48)]
    labels = [("happiness", "sadness", "neutral", "anger")[number % 4] for number in range(48)]
    path = write_pack(tmp_path / "people", [("train", label) for label in labels], subject=people)
    pack, protocol = Pack(path), Protocol(name="own", choose="carved", valid_share=0.25)
    train, valid = chosen_rows(pack, protocol, pack.labels())
    assert len(valid) == 12
    assert {people[row] for row in train}.isdisjoint(people[row] for row in valid)


def test_one_person_cannot_be_carved(tmp_path: Path) -> None:
    pack = Pack(write_pack(tmp_path / "one", [("train", "anger")] * 4, subject=["S001"] * 4))
    with pytest.raises(NkfError, match=r"one: no images to choose .* \(1 groups of images cannot be split"):
        chosen_rows(pack, Protocol(name="own", choose="carved"), pack.labels())


def test_copies_of_a_picture_stay_together_where_people_are_not_known(tmp_path: Path) -> None:
    rows = [("train", "happiness")] * 256 + [("train", "happiness")] * 256  # the second half repeats the first
    pack = Pack(write_pack(tmp_path / "copies", rows))
    _, valid = chosen_rows(pack, Protocol(name="own", choose="carved", valid_share=0.25), pack.labels())
    assert len(valid) == 128
    assert set(valid[valid < 256] + 256) == set(valid[valid >= 256])


def test_merged_splits_are_trained_on(mini_pack: Path) -> None:
    recipe = recipe_for(mini_pack, "ferplus-literature")
    assert recipe.num_train == 48
    assert recipe.validate(recipe.create().eval()) == {}
    assert recipe.info(recipe.create()).training["protocol"]["train"] == ["train", "valid"]


def test_balanced_sampling_shows_classes_equally_often(all_classes: Path) -> None:
    recipe = recipe_for(all_classes, {"choose": "last", "sampling": "balanced"})
    labels = recipe.targets.argmax(dim=1).numpy()
    assert np.bincount(labels[recipe.order(0)]).tolist() == [5] * 8
    assert recipe.num_train == 40
    shuffled = recipe_for(all_classes, {"choose": "last"})
    assert sorted(shuffled.order(0)) == list(range(40))


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("own", r"no labelled image in its valid split .* set protocol\.choose to carved .* 'nkf data split'"),
        ({"choose": "carved", "classes": ("neutral", "anger"), "valid_share": 0.001}, ""),
        ({"train": ("valid",), "choose": "last"}, "no labelled image of the protocol's classes in valid"),
        ({"train": ("valid",), "choose": "carved"}, "no labelled image of the protocol's classes in valid"),
    ],
)
def test_missing_images_are_one_line(protocol: Any, message: str, all_classes: Path) -> None:
    if not message:  # a tiny share still gives an image of each class
        assert sorted(recipe_for(all_classes, protocol).valid_labels) == [0, 1]
        return
    with pytest.raises(NkfError, match=message) as caught:
        recipe_for(all_classes, protocol)
    assert "\n" not in str(caught.value)
    assert str(all_classes) in str(caught.value)


def test_shares_are_of_the_kept_classes() -> None:
    votes = np.zeros((3, 8), np.float32)
    votes[0, [0, 1, 7]] = 0.4, 0.4, 0.2  # two kept classes, and contempt
    votes[1, 7] = 1  # nobody voted for a kept class, the label says anger
    votes[2, 2] = 1
    shares = shares_of_classes(votes, np.array([1, 6, 2]), SEVEN)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares[0, :2], [0.5, 0.5])
    assert shares[1, 6] == shares[2, 2] == 1


def test_shares_of_all_classes_stay_as_they_are() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(8), 1000).astype(np.float32)
    np.testing.assert_array_equal(shares_of_classes(shares, np.zeros(1000, int), EXPRESSIONS), shares)


def test_default_targets_are_the_vote_shares(mini_pack: Path) -> None:
    pack = Pack(mini_pack)
    recipe = recipe_for(mini_pack, "own")
    np.testing.assert_array_equal(recipe.targets, pack.distributions()[pack.rows("train")])
    np.testing.assert_array_equal(recipe.valid_labels, pack.labels()[pack.rows("valid")])
    assert VOTE_COLUMNS[: recipe.targets.shape[1]] == EXPRESSIONS


def test_sidecar_tells_the_protocol(all_classes: Path) -> None:
    recipe = recipe_for(all_classes, {"name": "affectnet8", "sampling": "shuffled", "valid_share": 0.2}, seed=4)
    training = recipe.info(recipe.create()).training
    assert training["seed"] == 4
    assert training["images"] == {"train": recipe.num_train, "choose": 40 - recipe.num_train}
    assert training["protocol"] == {
        "name": "affectnet8",
        "classes": list(EXPRESSIONS),
        "rule": "majority",
        "train": ["train"],
        "choose": "carved",
        "valid_share": 0.2,
        "seed": 0,
        "folds": 5,
        "fold": None,
        "test": "test",
        "sampling": "shuffled",
    }
    assert "head_rows" not in training


def saved_network(folder: Path, pack: Path, protocol: Any, **changes: Any) -> tuple[str, NKF]:
    """A run's weights on disk, with a classifier that is not fresh in any entry."""
    recipe = recipe_for(pack, protocol, **changes)
    model = recipe.create()
    assert isinstance(model, NKF)
    nn.init.normal_(model.classifier.weight)
    nn.init.normal_(model.classifier.bias)
    (folder / "best").mkdir(parents=True)
    save_model(model, folder / "best" / "model.safetensors", recipe.info(model))
    return str(folder), model


def others(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith("head.classify.")}


@pytest.mark.parametrize(
    ("before", "after", "copied"),
    [
        (EXPRESSIONS, SEVEN, SEVEN),
        (SEVEN, EXPRESSIONS, SEVEN),
        (("neutral", "sadness", "anger"), ("sadness", "fear", "anger", "contempt"), ("sadness", "anger")),
        (("neutral", "happiness"), ("sadness", "fear"), ()),
    ],
    ids=["8 to 7", "7 to 8", "some", "none"],
)
def test_classifier_rows_go_by_name(
    before: tuple[str, ...], after: tuple[str, ...], copied: tuple[str, ...], all_classes: Path, tmp_path: Path
) -> None:
    start, source = saved_network(tmp_path / "run", all_classes, {"classes": before, "choose": "last"})
    protocol = {"classes": after, "choose": "last"}
    torch.manual_seed(1)
    fresh = recipe_for(all_classes, protocol).create()
    torch.manual_seed(1)
    recipe = recipe_for(all_classes, protocol, start=start)
    model = recipe.create()
    assert isinstance(model, NKF)
    assert isinstance(fresh, NKF)
    for row, name in enumerate(after):
        origin, place = (source, before.index(name)) if name in copied else (fresh, row)
        assert torch.equal(model.classifier.weight[row], origin.classifier.weight[place])
        assert torch.equal(model.classifier.bias[row], origin.classifier.bias[place])
    assert others(model).keys() == others(source).keys()
    assert all(torch.equal(value, others(source)[name]) for name, value in others(model).items())
    rows = recipe.info(model).training["head_rows"]
    assert rows == {"copied": list(copied), "new": [name for name in after if name not in copied]}


def test_start_of_the_same_classes_is_taken_whole(all_classes: Path, tmp_path: Path) -> None:
    start, source = saved_network(tmp_path / "run", all_classes, {"choose": "last"})
    recipe = recipe_for(all_classes, {"choose": "last"}, start=start)
    model = recipe.create()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())
    training = recipe.info(model).training
    assert "head_rows" not in training
    assert training["start"]["protocol"]["name"] == "own"


@pytest.mark.parametrize("classes", [EXPRESSIONS, SEVEN])
def test_start_of_another_network_is_one_line(classes: tuple[str, ...], all_classes: Path, tmp_path: Path) -> None:
    wider = NetworkConfig(backbone="tiny", keypoint_channels=32)
    without = NetworkConfig(backbone="tiny", strides=())
    start, _ = saved_network(tmp_path / "run", all_classes, {"choose": "last"})
    for network in (wider, without):  # another part, and another width of the classifier's input
        recipe = recipe_for(all_classes, {"choose": "last", "classes": classes}, start=start, network=network)
        with pytest.raises(NkfError, match="another network than the configuration's") as caught:
            recipe.create()
        assert "\n" not in str(caught.value)


def test_start_of_another_kind_is_one_line(all_classes: Path, tmp_path: Path) -> None:
    _, info = find_weights("fan", (".safetensors",))
    fan = create_model("fan", {"backbone": "tiny"})
    save_model(fan, tmp_path / "fan.safetensors", info.model_copy(update={"architecture": {"backbone": "tiny"}}))
    recipe = recipe_for(all_classes, {"choose": "last"}, start=str(tmp_path / "fan.safetensors"))
    with pytest.raises(NkfError, match="another network than the configuration's"):
        recipe.create()


def test_network_of_few_classes_is_found_again(all_classes: Path, tmp_path: Path) -> None:
    start, source = saved_network(tmp_path / "run", all_classes, {"classes": SEVEN, "choose": "last"})
    again = load_model(*find_weights(start, (".safetensors",)))
    assert isinstance(again, NKF)
    assert torch.equal(again.classifier.weight, source.classifier.weight)
    assert again.classifier.weight.shape[0] == 7
