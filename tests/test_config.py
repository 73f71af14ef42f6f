from pathlib import Path

import pytest
import yaml

from nkf.config import TrainConfig, load_config, override, save_config
from nkf.errors import NkfError
from nkf.protocols import PROTOCOLS

FILES = sorted((Path(__file__).parents[1] / "configs").glob("**/*.yaml"))
CONFIGS = [file for file in FILES if "rows:" not in file.read_text()]  # the others are grids


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configurations_are_valid_and_survive_a_round_trip(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config
    assert config.name.removesuffix("-cpu") == file.stem  # variants of those in configs/cuda


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\ntask: expression\ndata: [x]\nlearning_rat: 1",
            r"unknown key 'learning_rat'\. Perhaps you meant 'learning_rate'\?",
        ),
        (
            "name: a\ntask: expression\ndata: [x]\nnetwork: {backbone: vgg}",
            r"network\.backbone: Input should be",
        ),
        ("name: a\ntask: expression\ndata: [x, y]", r"trained on one pack, got 2"),
        ("name: a\ntask: expression\ndata: [x]\nstart: b\npretrained: c", r"pretrained and start: give one"),
        (
            "name: a\ntask: landmarks\ndata: [x]\nsoft_labels: y",
            r"soft_labels: for the task expression alone, this is landm",
        ),
        (
            "name: a\ntask: detection\ndata: [x]\nbackgrounds: [y]\npretrained: z",
            r"yaml: pretrained: for the task exp.*detection$",
        ),
        ("name: a\ntask: landmarks\ndata: [x]\nprotocol: rafdb", r"protocol: for the task expression alone"),
        ("name: a\ntask: contrastive\ndata: [x]\nmesh: y", r"mesh: for the task expression and landmarks alone"),
        (
            "name: a\ntask: expression\ndata: [x]\nmix: {probability: 1, mixup: 0}",
            r"mix: mixup and cutmix: one of them",
        ),
        ("name: a\ntask: expression\ndata: []", r"data: Tuple should have at least 1 item"),
        ("name: a/b\ntask: expression\ndata: [x]", r"name: String should match pattern"),
        ("name: a\ntask: expression\ndata: [x]\nepochs: 0", r"epochs: Input should be greater than 0, got 0"),
        ("name: a\ntask: expression\ndata: [x]\nepochs: .inf", r"epochs: Input should be less than or equal to 100000"),
        (
            "name: a\ntask: expression\ndata: [x]\nlearning_rate: 1.0e+38",
            r"learning_rate: .* less than or equal to 100, g",
        ),
        ("name: a\ntask: expression\ndata: [x]\nseed: 4294967296", r"seed: Input should be less than 4294967296"),
        ("name: a\ntask: expression\ndata: [x]\ncrop_size: 100", r"crop_size: Input should be a multiple of 16"),
        ("name: a\ntask: expression\ndata: [x]\nrule: majority", r"unknown key 'rule'\."),
        (
            "name: a\ntask: expression\ndata: [x]\nprotocol: afectnet8",
            r"protocol: .*no such protocol; known: own, ferplus, ferplus-literature, rafdb, .*, got 'afectnet8'",
        ),
        (
            "name: a\ntask: expression\ndata: [x]\nprotocol: [rafdb]",
            r"protocol: .*expected a name \(own, .*\) or fields",
        ),
        ("name: a\ntask: expression\ndata: [x]\nprotocol:", r"protocol: .*expected a name \(own, .*\) or fields"),
        (
            "name: a\ntask: expression\ndata: [x]\nprotocol: {name: rafdb, sampler: shuffled}",
            r"unknown key 'protocol\.sampler'\. Perhaps you meant 'sampling'\?",
        ),
        (
            "name: a\ntask: expression\ndata: [x]\nprotocol: {train: [train, test]}",
            r"protocol: .*the split test is never trained on",
        ),
        ("name: [", r"not valid YAML"),
        ("just text", r"Input should be a valid dictionary"),
    ],
)
def test_mistakes_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(NkfError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_are_checked_like_the_file() -> None:
    config = TrainConfig(name="a", task="expression", data=(Path("x"),))
    assert override(config, seed=None, data=(Path("y"),)).data == (Path("y"),)
    with pytest.raises(NkfError, match="options: seed: Input should be greater than or equal to 0, got -1"):
        override(config, seed=-1)
    with pytest.raises(NkfError, match="trained on one pack, got 2"):
        override(config, data=(Path("x"), Path("y")))


def test_protocol_is_a_name_or_a_name_with_changes_and_is_saved_in_full(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: a\ntask: expression\ndata: [x]\nprotocol: {name: affectnet8, sampling: shuffled}")
    config = load_config(file)
    assert config.protocol == PROTOCOLS["affectnet8"].model_copy(update={"sampling": "shuffled"})
    assert override(config, seed=3).protocol == config.protocol
    save_config(config, file)
    saved = yaml.safe_load(file.read_text())["protocol"]
    assert saved["classes"][7] == "contempt"
    assert (saved["choose"], saved["sampling"], saved["seed"]) == ("carved", "shuffled", 0)
    assert load_config(file) == config


def test_without_a_protocol_all_classes_are_trained_and_valid_chooses() -> None:
    protocol = TrainConfig(name="a", task="expression", data=(Path("x"),)).protocol
    assert protocol == PROTOCOLS["own"]
    assert protocol.model_dump(exclude={"name"}) == PROTOCOLS["ferplus"].model_dump(exclude={"name"})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_configuration_is_frozen() -> None:
    config = TrainConfig(name="a", task="expression", data=(Path("x"),))
    with pytest.raises(ValueError, match="frozen"):
        config.epochs = 3  # type: ignore[misc]
