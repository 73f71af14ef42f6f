"""Trained weights that ship in the package, and the sidecar that says what a weights file is.

A model NAME is three files side by side: ``NAME.onnx`` (prediction), ``NAME.safetensors`` (torch) and ``NAME.json``,
the sidecar. A run folder of the trainer holds ``best/model.safetensors`` with ``best/model.json``.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nkf.errors import NkfError
from nkf.files import file_sha256, replacing

WEIGHTS_FOLDER = Path(__file__).parent
DEFAULT_MODEL = "mobile"
DEFAULT_FAN = "fan"
DEFAULT_DETECTOR = "face"
Kind = Literal["fan", "nkf", "poster", "poster_pp", "eac", "efficientface", "detector", "backbone", "landmark_trunk"]
EXPRESSION_KINDS: tuple[Kind, ...] = ("nkf", "poster", "poster_pp", "eac", "efficientface")

INPUTS: dict[Kind, tuple[str, ...]] = {
    "fan": ("crops",),
    "nkf": ("crops", "landmarks_px"),
    **dict.fromkeys(EXPRESSION_KINDS[1:], ("crops",)),
    "detector": ("images",),
    "backbone": ("crops",),
    "landmark_trunk": ("crops",),
}
OUTPUTS: dict[Kind, tuple[str, ...]] = {
    "fan": ("landmarks_px", "spread_px"),
    **dict.fromkeys(EXPRESSION_KINDS, ("probabilities",)),
    "detector": ("scores", "boxes_px", "points_px"),
    "backbone": ("features",),
    "landmark_trunk": ("landmarks_px",),
}
ATTENTION = "attention"  # one output more, of ``nkf`` with keypoint features; files exported before it lack it


class Calibration(BaseModel):
    """What turns the logits of an expression network into probabilities: softmax(logits / temperature + biases).

    A file of probabilities, the ONNX one, has it in its graph.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(default=1.0, gt=0)
    class_biases: tuple[float, ...] = Field(default=(), description="in the order of the classes; none: all zero")
    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="faces of at least this confidence reach figures['target_accuracy']"
    )
    figures: dict[str, Any] = Field(default_factory=dict, description="data, date, errors before and after")


class WeightsInfo(BaseModel):
    """The sidecar of a weights file: all that is needed to use it, and where it comes from.

    ``detector`` takes ``images``: (B, 3, H, W) float32 RGB in [0, 1], H and W multiples of 64, and gives for each cell
    of 8x8 pixels a score, a box and five points (see `nkf.models.detector`); its `input_size` is that of training.
    The other kinds take ``crops``: (B, 3, S, S) float32 RGB in [0, 1] with S = `input_size`; mean and std are applied
    inside. ``fan`` gives ``landmarks_px``: (B, 68, 2) in pixels of the crop, and ``spread_px``: (B, 68), their expected
    distances to the truth. `EXPRESSION_KINDS` give ``probabilities``: (B, len(classes)); ``nkf`` takes landmarks too,
    and where it reads keypoint features gives ``attention`` too: (B, 68), rows sum to 1, what each keypoint gets.
    ``backbone`` and ``landmark_trunk`` are no products, but what other networks start from: aligned crops to
    ``features``: (B, G), and to ``landmarks_px``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    kind: Kind
    architecture: dict[str, Any]
    classes: tuple[str, ...] = ()
    input_size: int = Field(ge=1, le=4096, description="side of the square crop in pixels")
    channel_order: Literal["RGB"] = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_template: tuple[tuple[float, float], ...] = Field(
        default=(), description="fractions of the side: eye centres, nasal base, mouth corners"
    )
    parameters: int
    macs: int | None = Field(
        default=None,
        description="multiply-adds of one input: convolutions and matrix products",
    )
    training: dict[str, Any] = Field(default_factory=dict, description="data, licences, starting weights, recipe")
    metrics: dict[str, Any] = Field(default_factory=dict, description="figures with command, date, machine, seed")
    calibration: Calibration | None = Field(
        default=None, description="of the probabilities; None: softmax of the logits"
    )
    sha256: dict[str, str] = Field(default_factory=dict, description="of the files beside this one, by name")
    nkf_version: str

    @property
    def tells_expressions(self) -> bool:
        """It is one of `EXPRESSION_KINDS`."""
        return self.kind in EXPRESSION_KINDS

    @model_validator(mode="after")
    def _a_bias_for_each_class(self) -> Self:
        biases = self.calibration.class_biases if self.calibration else ()
        if biases and len(biases) != len(self.classes):
            raise ValueError(f"calibration: {len(biases)} class_biases for {len(self.classes)} classes")
        return self

    def write(self, file: Path) -> None:
        """Write the sidecar as JSON."""
        with replacing(file) as partial:
            partial.write_text(self.model_dump_json(indent=1, by_alias=True) + "\n")


def read_info(file: Path) -> WeightsInfo:
    """Read a sidecar.

    Raises:
        NkfError: when it is missing, no JSON, or not of this form.
    """
    try:
        return WeightsInfo.model_validate_json(file.read_bytes())
    except OSError as error:
        raise NkfError(f"{file}: no readable sidecar ({error.strerror}); a weights file needs one beside it") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NkfError(f"{file}: not a sidecar of weights ({where}: {first['msg']})") from error


def packaged_models() -> dict[str, WeightsInfo]:
    """The models that ship in the package, by name."""
    return {file.stem: read_info(file) for file in sorted(WEIGHTS_FOLDER.glob("*.json"))}


def find_weights(model: str, suffixes: tuple[str, ...] = (".onnx", ".safetensors")) -> tuple[Path, WeightsInfo]:
    """Resolve what a user calls a model.

    Args:
        model: a packaged NAME, a run folder, or a weights file with its sidecar beside it.
        suffixes: kinds of file to look for, the preferred one first.

    Returns:
        The weights file and its sidecar.

    Raises:
        NkfError: when there is none, or the file is not the one its sidecar describes.
    """
    path = Path(model)
    if (WEIGHTS_FOLDER / f"{model}.json").is_file():  # a folder of that name is ./NAME
        stems = [WEIGHTS_FOLDER / model]
    elif path.is_dir():
        stems = [path / "best" / "model", path / "last" / "model"]
    elif path.suffix in suffixes:
        stems, suffixes = [path.with_suffix("")], (path.suffix,)
    else:
        stems = []
    for stem in stems:
        for suffix in suffixes:
            file = stem.with_name(stem.name + suffix)
            if file.is_file():
                info = read_info(stem.with_name(stem.name + ".json"))
                _check_sha256(file, info)
                return file, info
    names = ", ".join(packaged_models())
    raise NkfError(f"model {model!r}: neither a packaged model ({names}), nor a run folder, nor a weights file")


def _check_sha256(file: Path, info: WeightsInfo) -> None:
    expected = info.sha256.get(file.name)
    if expected is not None and file_sha256(file) != expected:
        raise NkfError(f"{file}: damaged or replaced, its SHA-256 is not the one in its sidecar")
