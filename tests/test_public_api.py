"""Public names, quick imports, and the one direction of imports inside the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nkf

PACKAGE = Path(nkf.__file__).parent
ROOT = PACKAGE.parent


def test_public_names():
    assert nkf.__all__ == [
        "Face",
        "FacePrediction",
        "ImageError",
        "NkfError",
        "Prediction",
        "Predictor",
        "WeightsInfo",
        "__version__",
    ]
    assert set(nkf.__all__) <= set(dir(nkf))
    for name in nkf.__all__:
        assert getattr(nkf, name) is not None


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'nkf' has no attribute 'nonsense'"):
        _ = nkf.nonsense


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import nkf", ["torch", "onnxruntime", "onnx", "numpy", "PIL", "tyro"]),
        ("from nkf import Predictor, Prediction, Face", ["torch", "onnxruntime", "onnx", "tyro", "matplotlib"]),
        ("import nkf.cli", ["torch", "onnxruntime", "onnx", "matplotlib", "rich", "pyarrow", "PIL", "av", "yaml"]),
        ("import nkf.cli_predict", ["torch", "onnxruntime", "matplotlib", "rich", "pyarrow", "av", "yaml", "asyncio"]),
    ],
)
def test_importing_is_light(code, absent):
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""
    assert set(done.stdout.split()).isdisjoint(absent)


# A module may import modules that stand above it, or left of it in the same line. This is the list of the package's
# modules too: a new one has to be put in its place here.
LINES = (
    "nkf  errors  files  machine  progress  distributed",
    "geometry  boxes  metrics  reliability  images  pose  quality  corruptions  data  data.labels  protocols",
    "network_config  config  systems",
    "weights  cards  preprocess  mixing  losses  models.layers",
    "models.backbone  models.pretrained  models.keypoints  models.fan",
    "models.nkf  models.face_trunks  models.poster  models.poster_pp  models.resnet  models.eac  models.efficientface",
    "models.detector  models.contrastive  models  costs",
    "data.tables  data.sources  data.listing  data.pack  data.pack_parts  data.pack_writer  data.index  data.counts",
    "data.teacher  data.splitting  data.groups  data.sampling  data.identity  data.subsets  data.importers",
    "data.formats",
    "data.formats.synonyms  data.formats.folders  data.formats.table_files  data.formats.table  data.formats.faces",
    "data.formats.ferplus  data.formats.rafdb  data.formats.affectnet  data.formats.expw  data.formats.sfew",
    "data.formats.ckplus  data.formats.kdef  data.formats.jaffe",
    "data.split  data.similar  data.sheets  data.dataset  data.patches  data.scenes  data.scene_pool",
    "runtime  faces  centerface  detectors  finder  tracking  smoothing  explain  predict  views",
    "video_ends  video_sources  video  video_predict",
    "report  report_curves  report_calibration  report_tables",
    "report_html  report_run  annotate  explain_draw  output  journal  evaluate  evaluate_landmarks",
    "video_output  timeline  timeline_html  video_run  webcam",
    "calibration  robustness  data.check  data.show  data.texts  soft_labels",
    "recipes.common  recipes.mesh  recipes.surroundings  recipes.rows  recipes.targets  recipes.objectives",
    "recipes.expression  recipes.landmarks  recipes.detection  recipes.aligned  recipes.contrastive",
    "recipes.landmark_trunk  recipes  optim  train  run_log  ablation_grid  ablate  ablation_text",
    "ablation_tables  compare  run_mistakes  run_report  export",
    "commandline  cli_files  cli_predict  cli_align  cli_import  cli_data  cli_study  cli_video  cli  __main__",
)
ORDER = [name for line in LINES for name in line.split()]
TRAINING = {"recipes.common", "recipes", "optim", "distributed", "train"}
SERVING = [
    *("runtime", "faces", "centerface", "detectors", "predict", "output", "cli_predict", "cli_align", "smoothing"),
    *("annotate", "journal"),
    *("tracking", "video_predict", "video_output", "timeline_html", "video_run", "webcam", "explain", "explain_draw"),
]
# Optional or slow packages, and the only modules that may import them.
ONLY_IN = {
    "matplotlib": {"report", "report_curves", "report_calibration", "report_tables", "report_run", "timeline"},
    "onnxruntime": {"runtime"},
    "av": {"video", "video_sources", "video_output"},
    "tyro": {"cli", "cli_data", "cli_import", "cli_study", "cli_video", "commandline"},
    "pyarrow": {"data.tables", "data.formats.table_files", "output"},
    "filelock": {"data.dataset", "data.pack_writer", "data.split"},
    "onnx": {"centerface", "export"},
    "onnxscript": {"export"},
}


def modules():
    names = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__") or "nkf"] = file
    return names


def imported(file):
    """Absolute names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_from_package(file):
    """Names inside the package, as in `ORDER`; importing a submodule does not count as importing its parents."""
    short = {name.removeprefix("nkf.") for name in imported(file) if name.split(".")[0] == "nkf"} & modules().keys()
    return {name for name in short if not any(other.startswith(f"{name}.") for other in short)}


def test_every_module_has_its_place():
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize("name", sorted(modules().keys() - {"nkf"}))
def test_imports_go_one_way(name):
    above = ORDER[: ORDER.index(name)]
    assert imported_from_package(modules()[name]) <= set(above)


@pytest.mark.parametrize("name", SERVING)
def test_what_serves_never_imports_what_trains(name):
    reached, waiting = set(), {name}
    while waiting:
        reached |= waiting
        waiting = set().union(*(imported_from_package(modules()[one]) for one in waiting)) - reached
    assert not reached & TRAINING
    assert not {one for one in reached if one.split(".")[0] == "data"}


@pytest.mark.parametrize("package", ONLY_IN)
def test_some_packages_are_imported_in_one_place(package):
    users = {name for name, file in modules().items() if package in {one.split(".")[0] for one in imported(file)}}
    assert users <= ONLY_IN[package]
