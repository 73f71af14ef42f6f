import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nkf.ablation_grid import Grid
from nkf.cli import COMMANDS
from nkf.commandline import _parse
from nkf.config import TrainConfig, load_config, merged, override, read_yaml, save_config
from nkf.errors import NkfError
from nkf.network_config import EACConfig, NetworkConfig, PosterConfig
from nkf.protocols import PROTOCOLS
from nkf.weights import packaged_models

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("**/*.yaml"))
FIELDS: dict[str, Any] = {"name": "a", "task": "expression", "data": ["x"]}
SYSTEM_CONFIGS = [file for file in FILES if file.parent.name in ("systems", "compare")]
CONFIGS = [file for file in FILES if "rows:" not in file.read_text()]  # the others are grids


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configurations_are_valid_and_survive_a_round_trip(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config
    of_folder = f"{file.parent.name}-{file.stem}"
    assert config.name.removesuffix("-cpu") in (file.stem, of_folder)  # -cpu: variants of those in configs/cuda


@pytest.mark.parametrize("file", SYSTEM_CONFIGS, ids=lambda file: file.stem)
def test_commands_in_the_heads_of_configurations_can_be_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    head = re.findall(r"^#   (.+)$", file.read_text().partition("\nname:")[0].partition("\nbase:")[0], re.MULTILINE)
    commands = [command for line in head for command in line.split(" && ") if command.startswith("nkf ")]
    assert any(str(file.relative_to(ROOT)) in command for command in commands)
    for command in commands:
        _, word, *arguments = command.split()
        function = COMMANDS[word]
        assert callable(function)
        bound = _parse(function, f"nkf {word}", arguments)  # raises NkfError where it is no such command
        shipped = [one for one in getattr(bound, "args", ()) if isinstance(one, Path) and one.suffix == ".yaml"]
        assert [one for one in shipped if not one.is_file()] == []
        assert shipped


@pytest.mark.parametrize("file", SYSTEM_CONFIGS, ids=lambda file: file.stem)
def test_networks_that_systems_start_from_are_those_that_configurations_make(file: Path) -> None:
    """Of the right task, and with the classes and the size of crops that a teacher has to share."""
    made = {f"runs/{(config := load_config(one)).name}": config for one in CONFIGS}
    grid = Grid.model_validate(read_yaml(file)) if file not in CONFIGS else None
    configs = [grid.config(row, grid.repeats[0]) for row in grid.rows] if grid else [load_config(file)]
    for config in configs:
        if config.start_landmark_trunk is not None:
            assert made[config.start_landmark_trunk].task == "landmark_trunk"
        if config.teacher in packaged_models():
            info = packaged_models()[config.teacher]
            assert (info.classes, info.input_size) == (config.protocol.classes, config.crop_size)
        elif config.teacher is not None:
            teacher = made[config.teacher]
            shared = ("task", "crop_size", "data", "limit")
            assert [getattr(teacher, field) for field in shared] == [getattr(config, field) for field in shared]
            assert teacher.protocol.classes == config.protocol.classes
        assert (config.network.system in ("poster", "poster_pp")) == (config.start_landmark_trunk is not None)


# Lists of lists, ten times each: a billion words when written out.
_LISTS = [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 10)]
ALIASES = "\n".join(["a0: &a0 [x]", *_LISTS, "name: *a9"])


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
        (
            "name: a\ntask: expression\ndata: [x]\nnetwork: {system: eac, trunc: resnet18}",
            r"unknown key 'network\.trunc'\. Perhaps you meant 'trunk'\?",
        ),
        (
            "name: a\ntask: expression\ndata: [x]\nnetwork: {backbon: base}",
            r"unknown key 'network\.backbon'\. Perhaps you meant 'backbone'\?",
        ),
        ("name: a\ntask: expression\ndata: [x]\nnetwork: {system: eac, trunk: vgg}", r"yaml: network\.trunk: Input"),
        (
            "name: a\ntask: expression\ndata: [x]\nnetwork: {system: posterr}",
            r"network: .*'posterr' found .* tags: 'nkf', 'poster', 'poster_pp', 'eac', 'efficientface'",
        ),
        ("name: a\ntask: expression\ndata: [x]\nnetwork: {system: poster, depth: 0}", r"network\.depth: .* than or"),
        ("name: a\ntask: expression\ndata: [x]\nnetwork: {system: eac, sigma: 0}", r"unknown key 'network\.sigma'"),
        ("name: a\ntask: expression\ndata: [x]\nnetwork: base", r"network: Input should be a valid dictionary or obj"),
        (
            "name: a\ntask: landmarks\ndata: [x]\nnetwork: {system: eac}",
            r"yaml: network\.system: eac tells expressions, this is the task landmarks$",
        ),
        ("name: a\ntask: expression\ndata: [x]\nnetwork: {system: eac}\nmesh: y", r"mesh: .* nkf alone, this is eac$"),
        (
            "name: a\ntask: expression\ndata: [x]\nnetwork: {system: poster_pp}\nstart_backbone: y",
            r"start_backbone: poster_pp has no backbone of ours$",
        ),
        (
            "name: a\ntask: expression\ndata: [x]\nnetwork: {system: efficientface}\npretrained: y",
            r"start_backbone: efficientface has no backbone of ours$",
        ),
        (
            "name: a\ntask: expression\ndata: [x]\nnetwork: {system: poster}\ncrop_size: 128",
            r"crop_size: POSTER's trunks see 112 pixels or a multiple, got 128$",
        ),
        ("name: a\ntask: landmark_trunk\ndata: [x]\ncrop_size: 96", r"112 pixels or a multiple, got 96$"),
        (
            "name: a\ntask: expression\ndata: [x]\nnetwork: {system: eac}\nstart_landmark_trunk: y",
            r"start_landmark_trunk: for poster and poster_pp alone, this is eac$",
        ),
        ("name: a\ntask: expression\ndata: [x]\nloss: eac", r"loss: eac needs attention maps, which network\.system"),
        ("name: a\ntask: expression\ndata: [x]\nloss: label_distribution", r"teacher: .* needs one, the other losses"),
        ("name: a\ntask: expression\ndata: [x]\nteacher: y", r"teacher: .* needs one, the other losses take none$"),
        (
            "name: a\ntask: expression\ndata: [x]\nteacher: y\nloss: label_distribution\nlabel_smoothing: 0.1",
            r"label_smoothing: the loss label_distribution does not look at them$",
        ),
        ("name: a\ntask: expression\ndata: [x]\nloss: poster\nmesh: y", r"mesh: .* cross_entropy alone, this is post"),
        ("name: a\ntask: landmark_trunk\ndata: [x]\nlimit: 9", r"limit: for the task expression alone, this is land"),
        ("name: a\ntask: expression\ndata: [x]\nlimit: 0", r"limit: Input should be greater than or equal to 1"),
        ("name: a\ntask: expression\ndata: [x]\ndecay_epochs: 0", r"decay_epochs: Input should be greater than 0"),
        ("name: a\ntask: expression\ndata: [x]\naugment: {resized_crop: 0}", r"augment\.resized_crop: .* than 0"),
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
        ("[" * 20_000, r"not valid YAML \(more than 100 brackets in each other\)"),
        ("- " * 5000, r"not valid YAML \(maximum recursion depth exceeded"),
        ("epochs: " + "9" * 5000, r"not valid YAML \(Exceeds the limit"),
        ("name: 2001-99-99", r"not valid YAML \(month must be in 1\.\.12"),
        ("name: !!bool x", r"not valid YAML \('x'\)"),
        ("name: !!int ''", r"not valid YAML \(string index out of range\)"),
        ("name: !!timestamp x", r"not valid YAML \("),
        ("name: &a [*a]", r"name: Input should be a valid string, got \[\[\["),
        (
            f"seed: 0x{'f' * 5000}\nname: a\ntask: expression\ndata: [x]",
            r"seed: .* got a number of thousands of digits$",
        ),
        (ALIASES, r"name: Input should be a valid string, got \[\["),
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
    with pytest.raises(NkfError, match=r"^setting 'seed=2001-99-99': its value is not valid YAML$"):
        override(config, ["seed=2001-99-99"])


@pytest.mark.parametrize(
    ("network", "settings", "expected"),
    [
        ({"backbone": "base"}, ["network.sigma=0.1"], NetworkConfig(backbone="base", sigma=0.1)),
        ({"backbone": "base"}, ["network.system=eac"], EACConfig()),
        ({"backbone": "base"}, ["network.system=nkf"], NetworkConfig(backbone="base")),
        ({"backbone": "base"}, ["network.system=eac", "network.trunk=tiny"], EACConfig(trunk="tiny")),
        ({"backbone": "base"}, ["network.trunk=tiny", "network.system=eac"], EACConfig(trunk="tiny")),
        ({"system": "eac", "trunk": "tiny"}, ["network={system: poster, depth: 4}"], PosterConfig(depth=4)),
        ({"system": "poster", "depth": 4}, ["network.token_mixing=false"], PosterConfig(depth=4, token_mixing=False)),
    ],
)
def test_another_system_replaces_the_network(network: dict[str, Any], settings: list[str], expected: Any) -> None:
    config = TrainConfig.model_validate(FIELDS | {"network": network})
    assert override(config, settings).network == expected


def test_a_network_is_told_apart_by_its_system() -> None:
    kinds = {"nkf": NetworkConfig, "poster": PosterConfig, "eac": EACConfig}
    for system, kind in kinds.items():
        network = TrainConfig.model_validate(FIELDS | {"network": {"system": system}}).network
        assert type(network) is kind
        assert "system" not in network.architecture()
    assert TrainConfig.model_validate(FIELDS | {"network": {}}).network == NetworkConfig()
    with pytest.raises(ValidationError):
        TrainConfig.model_validate(FIELDS | {"network": {"system": "eac", "backbone": "base"}})


def test_merging_keeps_fields_of_one_system_and_drops_those_of_another() -> None:
    base = {"network": {"backbone": "base", "sigma": 0.1}, "epochs": 2}
    assert merged(base, {"network": {"sigma": 0}})["network"] == {"backbone": "base", "sigma": 0}
    assert merged(base, {"network": {"system": "nkf", "sigma": 0}})["network"] == base["network"] | {
        "system": "nkf", "sigma": 0,
    }  # fmt: skip
    assert merged(base, {"network": {"system": "eac"}}) == {"network": {"system": "eac"}, "epochs": 2}


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
