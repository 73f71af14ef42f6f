import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nkf.train
from nkf.config import AugmentConfig, NetworkConfig, TrainConfig
from nkf.errors import NkfError
from nkf.models import load_model
from nkf.recipes import create_recipe
from nkf.train import batch_rows, learning_rate, total_steps, train
from nkf.weights import find_weights


def config_for(pack: Path, **changes: Any) -> TrainConfig:
    fields: dict[str, Any] = {
        "name": "small",
        "task": "expression",
        "data": (pack,),
        "network": NetworkConfig(backbone="tiny", keypoint_channels=16),
        "crop_size": 32,
        "epochs": 3,
        "batch_size": 8,
        "warmup_steps": 2,
        "evaluations": 2,
        "augment": AugmentConfig(blur=0.5, noise=0.1),
    }
    return TrainConfig(**(fields | changes))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def unbroken(mini_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    assert train(config_for(mini_pack), run)["finished"] is True
    return run


def test_run_folder_holds_log_and_usable_models(unbroken: Path) -> None:
    lines = [json.loads(line) for line in (unbroken / "log.jsonl").read_text().splitlines()]
    validations = [line for line in lines if "accuracy" in line]
    assert [line["step"] for line in validations] == [6, 12]
    best = max(validations, key=lambda line: line["score"])
    _, info = find_weights(str(unbroken), (".safetensors",))
    assert info.metrics["validation_in_training"]["accuracy"] == best["accuracy"]
    assert info.classes[1] == "happiness"
    assert load_model(*find_weights(str(unbroken), (".safetensors",))).training is False


def test_run_stopped_by_its_time_budget_ends_like_an_unbroken_one(
    unbroken: Path, mini_pack: Path, tmp_path: Path
) -> None:
    run, stops = tmp_path / "stopped", 0
    while not train(config_for(mini_pack), run, max_minutes=0)["finished"]:
        stops += 1
    assert stops == 11  # one step a call
    assert_same_weights(run, unbroken)


def assert_kill_changes_nothing(
    settings: TrainConfig, unbroken: Path, run: Path, last_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train again, but for a kill at a step and a second start, and compare with the unbroken run."""
    step = nkf.train.train_step

    def killed(*args: Any) -> float:
        if args[1].step == last_step:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(nkf.train, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(nkf.train, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings, run)
    assert not (run / "last" / "model.safetensors").exists()
    train(settings, run)
    assert_same_weights(run, unbroken)
    assert log_of(run) == log_of(unbroken)


def test_killed_run_ends_like_an_unbroken_one(
    unbroken: Path, mini_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_kill_changes_nothing(config_for(mini_pack), unbroken, tmp_path / "killed", 7, monkeypatch)


def test_killed_run_with_balanced_classes_and_carved_images_ends_like_an_unbroken_one(
    mini_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = {"sampling": "balanced", "choose": "carved", "valid_share": 0.2}
    settings = config_for(mini_pack, protocol=protocol, epochs=2)  # 26 images, 3 steps an epoch
    assert train(settings, tmp_path / "unbroken")["step"] == 6
    assert_kill_changes_nothing(settings, tmp_path / "unbroken", tmp_path / "killed", 4, monkeypatch)


def test_without_validation_the_last_weights_are_the_best(mini_pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    protocol = {"train": ("train", "valid"), "choose": "last"}
    summary = train(config_for(mini_pack, protocol=protocol, epochs=1), run)
    assert summary == {"step": 6, "epoch": 1.0, "finished": True}  # 48 images
    assert (run / "best" / "model.safetensors").read_bytes() == (run / "last" / "model.safetensors").read_bytes()
    _, info = find_weights(str(run), (".safetensors",))
    assert info.metrics == {}
    assert info.training["images"] == {"train": 48, "choose": 0}


def test_another_seed_ends_elsewhere(unbroken: Path, mini_pack: Path, tmp_path: Path) -> None:
    train(config_for(mini_pack, seed=1), tmp_path / "run")
    first, second = weights_of(unbroken), weights_of(tmp_path / "run")
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_folder_of_another_configuration_is_refused(unbroken: Path, mini_pack: Path) -> None:
    with pytest.raises(NkfError, match="holds a run with another configuration"):
        train(config_for(mini_pack, epochs=4), unbroken)


@pytest.mark.parametrize("keep", [0, 1000, None], ids=["empty", "cut", "text"])
def test_damaged_checkpoint_is_refused(keep: int | None, mini_pack: Path, tmp_path: Path) -> None:
    train(config_for(mini_pack), tmp_path / "run", max_minutes=0)
    file = tmp_path / "run" / "last" / "state.pt"
    file.write_bytes(b"nothing" if keep is None else file.read_bytes()[:keep])
    with pytest.raises(NkfError, match=r"state\.pt: no checkpoint of this run"):
        train(config_for(mini_pack), tmp_path / "run")


def test_network_learns_the_drawn_mouths(mini_pack: Path, tmp_path: Path) -> None:
    still = AugmentConfig(rotation_deg=0, scale=0, shift=0, brightness=0, contrast=0, erase=0)
    settings = config_for(mini_pack, epochs=15, crop_size=48, augment=still, targets="label", ema_decay=0.8)
    assert train(settings, tmp_path / "run")["accuracy"] >= 0.8  # two classes


def test_landmark_network_learns(mini_pack: Path, tmp_path: Path) -> None:
    network = NetworkConfig(backbone="tiny")
    settings = config_for(
        mini_pack, task="landmarks", network=network, crop_size=32, epochs=20, learning_rate=3e-3, ema_decay=0.8,
        augment=AugmentConfig(rotation_deg=0, scale=0.1, shift=0.02, erase=0),
    )  # fmt: skip
    train(settings, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    errors = [line["error"] for line in lines if "error" in line]
    assert errors[-1] < 0.25
    assert find_weights(str(tmp_path / "run"), (".safetensors",))[1].kind == "fan"


def test_network_starts_from_a_finished_run(unbroken: Path, mini_pack: Path, tmp_path: Path) -> None:
    settings = config_for(mini_pack, name="second", start=str(unbroken), learning_rate=1e-12, ema_decay=0.0)
    train(settings, tmp_path / "run", max_minutes=0)
    source = load_file(unbroken / "best" / "model.safetensors")
    for name, tensor in weights_of(tmp_path / "run").items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(tensor, source[name], atol=1e-6, rtol=0)
    _, info = find_weights(str(tmp_path / "run"), (".safetensors",))
    assert info.training["start"]["name"] == "small"


def test_start_that_does_not_fit_is_refused(unbroken: Path, mini_pack: Path, tmp_path: Path) -> None:
    network = NetworkConfig(backbone="tiny", keypoint_channels=32)
    with pytest.raises(NkfError, match="another network than the configuration's"):
        train(config_for(mini_pack, start=str(unbroken), network=network), tmp_path / "run")


def test_loss_that_is_no_number_stops_the_run(mini_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"loss is (nan|inf) at step .*; lower learning_rate"):
        train(config_for(mini_pack, learning_rate=1e30, warmup_steps=0, clip_norm=1e30), tmp_path / "run")


def test_every_epoch_visits_each_image_once_in_an_order_of_its_own(mini_pack: Path) -> None:
    recipe = create_recipe(config_for(mini_pack, batch_size=8), torch.device("cpu"))
    first, second = (np.concatenate([batch_rows(recipe, 4 * epoch + step) for step in range(4)]) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(32))
    assert first.tolist() != second.tolist()
    assert second.tolist() == np.random.default_rng([0, 1]).permutation(32).tolist()


def test_batches_follow_the_order_of_the_recipe(mini_pack: Path) -> None:
    recipe = create_recipe(config_for(mini_pack, batch_size=10), torch.device("cpu"))
    recipe.order = lambda epoch: np.arange(32) + 100 * epoch
    assert batch_rows(recipe, 2).tolist() == list(range(20, 30))
    assert batch_rows(recipe, 3).tolist() == list(range(100, 110))  # the incomplete batch is left out


def test_learning_rate_warms_up_and_falls_to_zero(mini_pack: Path) -> None:
    settings = config_for(mini_pack, learning_rate=0.1, warmup_steps=10)
    rates = [learning_rate(settings, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1, rel=0.03)
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert total_steps(settings, 32) == 12


def test_folder_of_something_else_is_refused(mini_pack: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(NkfError, match="exists and is no run folder"):
        train(config_for(mini_pack), tmp_path)


def test_too_large_a_batch_is_refused(mini_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(NkfError, match="batch_size 64: more than the 32 training images"):
        train(config_for(mini_pack, batch_size=64), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_parts_keep_their_weights_and_statistics(unbroken: Path, mini_pack: Path, tmp_path: Path) -> None:
    train(config_for(mini_pack, start=str(unbroken), frozen=("backbone.stem",), epochs=1), tmp_path / "run")
    before, after = load_file(unbroken / "best" / "model.safetensors"), weights_of(tmp_path / "run")
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert {name for name in after if name.startswith("backbone.stem.")} <= same
    assert "head.norm.running_mean" not in same


def test_unknown_frozen_part_is_one_line(mini_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(NkfError, match="frozen: the network has no part 'trunk'"):
        train(config_for(mini_pack, frozen=("trunk",)), tmp_path / "run")


def test_weight_average_forgets_its_start_quickly() -> None:
    average, target = [torch.zeros(1)], [torch.ones(1)]
    update = nkf.train._moving_average(0.999)
    for count in range(1, 60):
        update(average, target, torch.tensor(count))
    assert average[0] > 0.99  # with 0.999 from the first step on it would be 0.06
