"""The wheel, installed into an empty environment without torch, predicts from a foreign folder."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")

pytestmark = pytest.mark.slow


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy, so that no build folder stays in the source tree and none of an older build gets in."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "CREDITS.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "nkf", source / "nkf", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", "dist", ".", cwd=source)
    (file,) = (source / "dist").glob("nkf-*.whl")
    return file


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment that holds the wheel, its core dependencies, and no more."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    run(python, *PIP, "install", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return python


def test_the_environment_holds_no_heavy_package(python, tmp_path):
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    names = {package["name"].lower() for package in listed}
    assert "nkf" in names
    heavy = {"torch", "opencv-python", "opencv-python-headless", "scikit-image", "scipy", "matplotlib", "onnx"}
    assert names.isdisjoint(heavy)


def test_the_command_predicts_the_portrait(python, portrait_path, tmp_path):
    out = run(
        python.with_name("nkf"), "predict", portrait_path, "--json", "out.json", "--annotate", "out", cwd=tmp_path
    )
    assert "face 0: happiness" in out
    (image,) = json.loads((tmp_path / "out.json").read_text())
    assert image["faces"][0]["expression"] == "happiness"
    assert (tmp_path / "out" / portrait_path.name).is_file()


def test_the_python_interface_predicts_the_portrait(python, portrait_path, tmp_path):
    program = (
        "import sys; from nkf import Predictor; "
        "prediction = Predictor()(sys.argv[1]); "
        "print(prediction.faces[0].expression, 'torch' in sys.modules)"
    )
    assert run(python, "-W", "error", "-c", program, portrait_path, cwd=tmp_path).split() == ["happiness", "False"]
