"""The weights that ship."""

from pathlib import Path

import pytest

from nkf.export import PARITY_LIMIT, parity
from nkf.models import count_parameters, load_model
from nkf.weights import DEFAULT_FAN, DEFAULT_MODEL, WEIGHTS_FOLDER, find_weights, packaged_models


def test_defaults_are_in_the_package() -> None:
    assert {DEFAULT_FAN, DEFAULT_MODEL} <= packaged_models().keys()


@pytest.mark.parametrize("name", packaged_models())
def test_packaged_network_is_the_same_in_torch_and_onnx(name: str) -> None:
    file, info = find_weights(name, (".safetensors",))  # checks the SHA-256
    network = load_model(file, info)
    assert count_parameters(network) == info.parameters
    assert parity(network, find_weights(name, (".onnx",))[0], info) <= PARITY_LIMIT[info.kind]


@pytest.mark.parametrize("name", packaged_models())
def test_sidecar_tells_origin_terms_and_figures(name: str) -> None:
    info = packaged_models()[name]
    assert all(entry["licence"] for entry in info.training["data"])
    assert info.metrics


def test_models_lists_them(run_nkf) -> None:
    code, out, err = run_nkf("models")
    assert (code, err) == (0, [])
    assert {line.split()[0] for line in out if line[:1].strip()} > packaged_models().keys()


def test_package_stays_light() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS_FOLDER.iterdir() if file.is_file()) < 24 * 2**20


def test_folder_of_the_same_name_does_not_hide_a_packaged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / DEFAULT_FAN).mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_weights(DEFAULT_FAN)[0].parent == WEIGHTS_FOLDER
