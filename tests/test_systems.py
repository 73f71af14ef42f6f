"""The table of systems against the networks themselves."""

from pathlib import Path

import pytest
import torch

from nkf.config import TrainConfig, load_config, override
from nkf.costs import count_macs
from nkf.models import count_parameters, create_model
from nkf.recipes.common import architecture
from nkf.systems import SYSTEMS, System
from nkf.weights import EXPRESSION_KINDS

CONFIGS = Path(__file__).parents[1] / "configs"


def config_of(system: System) -> TrainConfig:
    settings = [f"network.{name}={value}" for name, value in system.options.items()]
    return override(load_config(CONFIGS / system.config), settings)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_sizes_are_those_of_the_network_that_its_configuration_makes(system: System) -> None:
    config = config_of(system)
    assert (config.network.system, config.crop_size) == (system.kind, system.crop_size)
    with torch.device("meta"):
        network = create_model(system.kind, architecture(config), 8).eval()
    inputs = torch.empty(1, 3, *(system.crop_size,) * 2, device="meta"), torch.empty(1, 68, 2, device="meta")
    assert (count_parameters(network), count_macs(network, *inputs)) == (system.parameters, system.macs)


def test_every_kind_of_expression_network_is_there() -> None:
    assert {system.kind for system in SYSTEMS} == set(EXPRESSION_KINDS)
