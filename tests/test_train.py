import itertools
import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import nkf.train
from nkf.config import AugmentConfig, MixConfig, NetworkConfig, TrainConfig
from nkf.errors import NkfError, NkfWarning
from nkf.models import load_model
from nkf.recipes import create_recipe
from nkf.train import LOG_EVERY, PATIENCE, Objective, add_gradients, batch_rows, step_seed, total_steps, train
from nkf.weights import find_weights

STILL = AugmentConfig(rotation_deg=0, scale=0, shift=0, brightness=0, contrast=0, erase=0)


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
        patch.setattr(nkf.train, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings, run, checkpoint_seconds=0)
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


@pytest.mark.parametrize(
    "changes",
    [
        {"sam_rho": 0.05, "accumulate": 2},
        {"schedule": "exponential", "decay": 0.5, "optimizer": "adam", "mix": MixConfig(probability=1, cutmix=1)},
    ],
    ids=["sam, accumulate", "exponential, adam, mix"],
)
def test_killed_run_ends_like_an_unbroken_one_with(
    changes: dict[str, Any], unbroken: Path, mini_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nkf.train, "LOG_EVERY", 4)  # so that a line needs losses from before the kill
    settings = config_for(mini_pack, epochs=1.5, **changes)
    train(settings, tmp_path / "unbroken")
    assert_kill_changes_nothing(settings, tmp_path / "unbroken", tmp_path / "killed", 3, monkeypatch)
    assert any(
        not torch.equal(one, weights_of(unbroken)[name]) for name, one in weights_of(tmp_path / "killed").items()
    )


def test_log_cut_by_a_kill_goes_on(unbroken: Path, mini_pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config_for(mini_pack), run, max_minutes=0)
    with (run / "log.jsonl").open("a") as log:
        log.write('{"time": 17.5, "st')
    train(config_for(mini_pack), run)
    assert log_of(run) == log_of(unbroken)


def test_run_folder_alone_rebuilds_its_model(mini_pack: Path, tmp_path: Path) -> None:
    shutil.copytree(mini_pack, tmp_path / "pack")
    train(config_for(tmp_path / "pack", epochs=1), tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "pack")
    assert [file.name for file in tmp_path.iterdir()] == ["moved"]
    model = load_model(*find_weights(str(tmp_path / "moved"), (".safetensors",)))
    saved = load_file(tmp_path / "moved" / "best" / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert model(torch.rand(2, 3, 32, 32), torch.rand(2, 68, 2)).shape == (2, 8)


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
    settings = config_for(mini_pack, epochs=15, crop_size=48, augment=STILL, targets="label", ema_decay=0.8)
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


def spoil_losses(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int], bool]) -> None:
    """Make the loss of some calls NaN; batch norm has seen the batch by then."""
    forward, calls = Objective.forward, itertools.count()

    def spoilt(self: Objective, batch: Any) -> torch.Tensor:
        return forward(self, batch) * (math.nan if is_bad(next(calls)) else 1)

    monkeypatch.setattr(Objective, "forward", spoilt)


def test_steps_without_a_finite_loss_change_nothing_and_are_counted(
    mini_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nkf.train, "LOG_EVERY", 4)
    settings = config_for(mini_pack, epochs=2, evaluations=1, learning_rate=1e-12, ema_decay=0)
    spoil_losses(monkeypatch, lambda call: call in (1, 2))
    states = []
    step = nkf.train.train_step

    def watched(recipe: Any, state: Any) -> float:
        loss = step(recipe, state)
        states.append({name: t.clone() for name, t in (state.model.state_dict() | state.average.state_dict()).items()})
        return loss

    monkeypatch.setattr(nkf.train, "train_step", watched)
    train(settings, tmp_path / "run")
    same = [all(torch.equal(one[name], other[name]) for name in one) for one, other in itertools.pairwise(states)]
    assert same == [True, True, *[False] * 5]
    assert [line.get("skipped") for line in log_of(tmp_path / "run")] == [2, None, None]
    assert all(math.isfinite(line["loss"]) for line in log_of(tmp_path / "run")[:2])


def test_skipped_steps_are_counted_over_a_stop(
    mini_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nkf.train, "PATIENCE", 3)
    spoil_losses(monkeypatch, lambda call: call > 0)
    settings, run = config_for(mini_pack), tmp_path / "run"
    for _ in range(3):
        train(settings, run, max_minutes=0)
    checkpoint = (run / "last" / "state.pt").read_bytes()
    with pytest.raises(
        NkfError, match=r"^no finite loss and gradient in 3 steps up to step 4; lower learning_rate \(.*"
    ):
        train(settings, run)
    assert (run / "last" / "state.pt").read_bytes() == checkpoint
    assert PATIENCE < LOG_EVERY


def test_weights_that_are_not_finite_are_never_written(
    mini_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = nkf.train.train_step

    def spoiling(recipe: Any, state: Any) -> float:
        loss = step(recipe, state)
        if state.step == 3:
            next(state.model.parameters()).data[0] = math.inf
        return loss

    monkeypatch.setattr(nkf.train, "train_step", spoiling)
    with pytest.raises(
        NkfError, match=r"is not finite after step 3; lower learning_rate \(the checkpoint before is intact\)"
    ):
        train(config_for(mini_pack), tmp_path / "run", checkpoint_seconds=0)
    assert torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)["step"] == 2


def test_huge_learning_rate_is_one_line(mini_pack: Path, tmp_path: Path) -> None:
    settings = config_for(mini_pack, learning_rate=100, weight_decay=100, warmup_steps=0, epochs=6)
    with pytest.raises(NkfError, match=r"^.*; lower learning_rate \(the checkpoint before is intact\)$"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "best" / "model.safetensors").exists()


def linear_objective(mini_pack: Path) -> tuple[Objective, Any]:
    """Cross-entropy of a linear network: no batch norm, no dropout."""
    recipe = create_recipe(config_for(mini_pack, augment=STILL), torch.device("cpu"))
    torch.manual_seed(0)
    linear = torch.nn.Linear(3 * 32 * 32, 8)
    recipe.loss = lambda model, batch: F.cross_entropy(model(batch.crops.flatten(1)), batch.targets)
    return Objective(recipe, linear), recipe


@pytest.mark.parametrize("parts", [2, 3])
def test_gradient_in_parts_is_that_of_the_whole_batch(parts: int, mini_pack: Path) -> None:
    objective, recipe = linear_objective(mini_pack)
    rows = np.arange(8)
    split = np.array_split(rows, parts)
    generator = torch.Generator().manual_seed(0)
    batches = [recipe.batch(part, generator) for part in split]
    loss = add_gradients(objective, batches, [len(part) / 8 for part in split], seed=0)
    in_parts = objective.model.weight.grad.clone()
    objective.zero_grad()
    crops, targets = torch.cat([b.crops for b in batches]), torch.cat([b.targets for b in batches])
    whole = F.cross_entropy(objective.model(crops.flatten(1)), targets)
    whole.backward()
    assert float(loss) == pytest.approx(whole.item(), abs=1e-6)
    torch.testing.assert_close(in_parts, objective.model.weight.grad, atol=1e-6, rtol=0)


def test_both_passes_of_a_step_draw_the_same(mini_pack: Path) -> None:
    objective, recipe = linear_objective(mini_pack)
    drawn: list[torch.Tensor] = []
    loss = recipe.loss
    recipe.loss = lambda model, batch: drawn.append(torch.rand(3)) or loss(model, batch)
    batch = recipe.batch(np.arange(8), torch.Generator().manual_seed(0))
    for seed in (5, 5, 6):
        add_gradients(objective, [batch], [1.0], seed)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_seed_of_a_step() -> None:
    before = int(np.random.SeedSequence([3, 17]).generate_state(1)[0])  # of runs that one process alone trained
    assert step_seed(3, 17) == step_seed(3, 17, 0) == before
    assert len({step_seed(3, 17, rank) for rank in range(4)} | {step_seed(3, 18), step_seed(4, 17)}) == 6


def test_too_many_parts_are_refused(mini_pack: Path, tmp_path: Path) -> None:
    with pytest.raises(NkfError, match=r"batch_size 8: its 5 parts \(accumulate\) need two images or more each"):
        train(config_for(mini_pack, accumulate=5), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


def test_number_of_steps(mini_pack: Path) -> None:
    assert total_steps(config_for(mini_pack), 32) == 12
    assert total_steps(config_for(mini_pack, epochs=0.01), 39) == 1


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


@pytest.mark.parametrize(
    ("capabilities", "warned"),
    [({"avx2": True, "avx512_bf16": False}, True), ({"amx_bf16": True}, False), ({"bf16": True}, False), ({}, False)],
)
def test_bf16_is_warned_of_only_on_a_cpu_that_is_known_to_lack_it(
    capabilities: dict[str, bool], warned: bool, mini_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NkfWarning)
        train(config_for(mini_pack, bf16=True), tmp_path / "run", max_minutes=0)
    assert any("bf16 is slow" in str(warning.message) for warning in caught) == warned
