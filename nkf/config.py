"""Configuration of a training run: pydantic models that refuse unknown keys, read from and written to YAML."""

import re
import reprlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, overload

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from nkf.errors import NkfError
from nkf.network_config import Network, NetworkConfig, StrictModel
from nkf.protocols import DEFAULT_PROTOCOL, PROTOCOLS, Protocol, read_protocol

Model = TypeVar("Model", bound=BaseModel)


# Fields that other tasks would not heed.
_ONLY_FOR: dict[str, tuple[str, ...]] = {
    "backgrounds": ("detection", "expression", "landmarks"),
    "scenes": ("detection",),
    "plain_scenes": ("detection",),
    "pretrained": ("expression", "landmarks", "contrastive"),
    "start_backbone": ("expression", "landmarks", "contrastive"),
    "mesh": ("expression", "landmarks"),
    "mesh_weight": ("expression", "landmarks"),
    "contrastive_temperature": ("contrastive",),
    "turned_faces": ("landmarks",),
    "protocol": ("expression",),
    "targets": ("expression",),
    "label_smoothing": ("expression",),
    "soft_labels": ("expression",),
    "soft_weight": ("expression",),
    "unlabelled": ("expression",),
    "mix": ("expression",),
    "limit": ("expression",),
    "loss": ("expression",),
    "teacher": ("expression",),
    "start_landmark_trunk": ("expression",),
}
# PyYAML turns text into values without looking: ``!!int ''`` is an IndexError, ``!!bool x`` a KeyError, and so on.
_YAML_ERRORS = (
    yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError
)  # fmt: skip
_MAX_BRACKETS = 100  # in each other; for 10,000 PyYAML takes seconds, and more than twice as long for twice as many
_SYSTEMS = {str(one.model_fields["system"].default): one for one in get_args(get_args(Network)[0])}
_POSTERS = ("poster", "poster_pp")
_WITHOUT_BACKBONE = (*_POSTERS, "efficientface")


class AugmentConfig(StrictModel):
    """Random changes of training crops. Ranges are half-widths around no change; probabilities are per image."""

    rotation_deg: float = Field(default=10.0, ge=0, le=180, description="rotation, uniform in ± this many degrees")
    scale: float = Field(default=0.10, ge=0, lt=1, description="size of the face, uniform in 1 ± this")
    shift: float = Field(default=0.04, ge=0, lt=1, description="shift in x and y, uniform in ± this share of the side")
    near: float = Field(default=0.0, ge=0, le=1, description="share of crops placed well: a fifth of the ranges above")
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a mirror image")
    brightness: float = Field(default=0.3, ge=0, lt=1, description="gain, uniform in 1 ± this")
    contrast: float = Field(default=0.3, ge=0, lt=1, description="contrast about the mean, uniform in 1 ± this")
    gamma: float = Field(default=0.0, ge=0, le=10, description="exponent 2^u, u uniform in ± this: darkness and glare")
    color_cast: float = Field(default=0.0, ge=0, lt=1, description="gain of each channel, uniform in 1 ± this")
    grey: float = Field(default=0.0, ge=0, le=1, description="probability of dropping the colour")
    noise: float = Field(default=0.0, ge=0, le=1, description="largest standard deviation of pixel noise, of [0, 1]")
    blur: float = Field(default=0.0, ge=0, le=1, description="probability of a Gaussian blur, σ up to 4 % of the side")
    motion_blur: float = Field(default=0.0, ge=0, le=1, description="probability of a blur along one direction")
    jpeg: float = Field(default=0.0, ge=0, le=1, description="probability of JPEG artefacts")
    darkness: float = Field(default=0.0, ge=0, le=1, description="probability of a picture at a tenth to a half")
    glasses: float = Field(default=0.0, ge=0, le=1, description="probability of drawn (sun)glasses")
    mask: float = Field(default=0.0, ge=0, le=1, description="probability of a cover over nose, mouth and chin")
    low_resolution: float = Field(default=0.0, ge=0, le=1, description="probability of shrinking to 24 px and more")
    surroundings: float = Field(
        default=0.0, ge=0, le=1, description="probability of another picture around the face's own; needs backgrounds"
    )
    erase: float = Field(default=0.25, ge=0, le=1, description="probability of an occluding patch")
    erase_area: float = Field(default=0.15, gt=0, le=0.5, description="largest share of the crop that a patch covers")
    erase_fill: Literal["random", "mean"] = Field(
        default="random", description="colour of the patch: any, or ImageNet's mean, which normalised networks see as 0"
    )
    noise_probability: float = Field(default=1.0, ge=0, le=1, description="probability of pixel noise")
    resized_crop: float = Field(
        default=1.0, gt=0, le=1, description="smallest share of the picture that is blown up to the crop; 1: all of it"
    )


class MixConfig(StrictModel):
    """Mixing two faces and their targets; aligned faces, so that landmarks may be mixed with them."""

    probability: float = Field(default=0.0, ge=0, le=1, description="share of batches that are mixed")
    mixup: float = Field(default=0.2, ge=0, le=100, description="α of the blend's Beta(α, α) share; 0: never blended")
    cutmix: float = Field(default=0.0, ge=0, le=100, description="α of the pasted rectangle's share; 0: never pasted")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.probability and not (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix: one of them has to be above 0 where probability is")
        return self


class Unlabelled(StrictModel):
    """Faces without labels that are trained on with a teacher's answers."""

    data: Path = Field(description="pack")
    soft_labels: Path = Field(description="file of 'nkf soft-labels' for this pack")
    min_confidence: float = Field(default=0.0, ge=0, lt=1, description="of the teacher; less sure faces are left out")


class TrainConfig(StrictModel):
    """One training run. Paths are relative to the folder where the command runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="name of the run folder and of the model")
    task: Literal["expression", "landmarks", "detection", "contrastive", "landmark_trunk"]
    data: tuple[Path, ...] = Field(min_length=1, description="packs; expression networks take one")
    backgrounds: tuple[Path, ...] = Field(
        default=(), description="folders of pictures without faces: for detection, and augment.surroundings"
    )
    scenes: int = Field(default=10_000, gt=1, description="detection: pictures composed of faces and backgrounds")
    plain_scenes: int = Field(default=0, ge=0, description="detection: pictures without faces, beside the scenes")
    network: Network = NetworkConfig()
    pretrained: Path | None = Field(default=None, description="face-identity weights that the backbone starts from")
    start_backbone: str | None = Field(
        default=None, description="NAME, run or file of any network, whose backbone the backbone starts from"
    )
    start_landmark_trunk: str | None = Field(
        default=None,
        description="POSTER and POSTER++: NAME, run or file of their frozen trunk (task landmark_trunk)",
    )
    mesh: Path | None = Field(default=None, description="folder of the teacher's mesh basis: adds the mesh as a target")
    mesh_weight: float = Field(default=0.5, ge=0, le=1000, description="of the mesh's loss beside the other")
    turned_faces: bool = Field(
        default=False, description="landmarks: show faces the more often, the more they are turned to a side"
    )
    contrastive_temperature: float = Field(
        default=0.2, ge=0.01, le=100, description="contrastive: by which similarities of faces are divided"
    )
    frozen: tuple[str, ...] = Field(default=(), description="parts of the network that keep their starting weights")
    start: str | None = Field(default=None, description="NAME, run or file whose weights the network starts from")
    crop_size: int = Field(default=112, ge=32, le=1024, multiple_of=16, description="side of the crop in pixels")
    protocol: Protocol = Field(
        default=PROTOCOLS[DEFAULT_PROTOCOL],
        description="expression: a name of nkf.protocols.PROTOCOLS, or its fields that differ, with the name",
    )
    limit: int | None = Field(default=None, ge=1, description="expression: train on so many images, drawn at random")
    targets: Literal["distribution", "label"] = Field(default="distribution", description="vote shares, or one class")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    loss: Literal["cross_entropy", "poster", "eac", "label_distribution"] = Field(
        default="cross_entropy", description="of the classes; see nkf.losses for those of the compared systems"
    )
    teacher: str | None = Field(
        default=None, description="label_distribution: NAME, run or file of the network whose answers are the targets"
    )
    soft_labels: Path | None = Field(default=None, description="expression: file of 'nkf soft-labels' for the pack")
    soft_weight: float = Field(default=0.5, ge=0, le=1, description="share of the soft labels in the targets")
    unlabelled: tuple[Unlabelled, ...] = Field(default=(), description="expression: faces with a teacher's answers")
    epochs: float = Field(default=3.0, gt=0, le=100_000, description="passes over the training images")
    batch_size: int = Field(default=64, gt=1, description="images in one step, of all processes together")
    accumulate: int = Field(default=1, ge=1, description="parts of a step's batch that are computed one by one")
    optimizer: Literal["adamw", "adam", "sgd"] = Field(
        default="adamw", description="Adam, and SGD with momentum 0.9, add the decay to the gradient"
    )
    sam_rho: float = Field(
        default=0.0, ge=0, le=100, description="radius of sharpness-aware minimisation; 0: plain steps"
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="peak, reached after warm-up")
    schedule: Literal["cosine", "exponential", "steps", "constant"] = Field(
        default="cosine", description="after warm-up: half a cosine to zero, `decay` smoothly or in steps, or none"
    )
    decay: float = Field(default=0.98, gt=0, le=1, description="exponential and steps: factor every `decay_epochs`")
    decay_epochs: float = Field(default=1.0, gt=0, description="exponential and steps: see `decay`")
    weight_decay: float = Field(default=0.05, ge=0, le=100, description="of matrices and convolutions only")
    warmup_steps: int = Field(default=100, ge=0, description="steps in which the learning rate rises")
    clip_norm: float = Field(default=5.0, gt=0, le=1e6, description="largest norm of the gradient")
    ema_decay: float = Field(default=0.995, ge=0, lt=1, description="of the weight average that is evaluated and kept")
    bf16: bool = Field(default=False, description="autocast to bfloat16")
    evaluations: int = Field(default=8, ge=1, description="number of validations, spread over the run")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of weights, order, augmentation and dropout")
    augment: AugmentConfig = AugmentConfig()
    mix: MixConfig = MixConfig()

    @field_validator("protocol", mode="before")
    @classmethod
    def _complete_protocol(cls, content: Any) -> Any:
        return read_protocol(content)

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        given = [name for name in ("pretrained", "start", "start_backbone") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: give one of them")
        return self

    @model_validator(mode="after")
    def _fields_of_the_task(self) -> Self:
        for name, tasks in _ONLY_FOR.items():
            if self.task not in tasks and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: for the task {' and '.join(tasks)} alone, this is {self.task}")
        return self

    @model_validator(mode="after")
    def _fields_of_the_system(self) -> Self:
        system = self.network.system
        if self.task != "expression" and system != "nkf":
            raise ValueError(f"network.system: {system} tells expressions, this is the task {self.task}")
        if system != "nkf" and self.mesh is not None:
            raise ValueError(f"mesh: beside the classes of nkf alone, this is {system}")
        if system in _WITHOUT_BACKBONE and (self.pretrained is not None or self.start_backbone is not None):
            raise ValueError(f"pretrained and start_backbone: {system} has no backbone of ours")
        if (system in _POSTERS or self.task == "landmark_trunk") and self.crop_size % 112:
            raise ValueError(f"crop_size: POSTER's trunks see 112 pixels or a multiple, got {self.crop_size}")
        if system not in _POSTERS and self.start_landmark_trunk is not None:
            raise ValueError(f"start_landmark_trunk: for {' and '.join(_POSTERS)} alone, this is {system}")
        return self

    @model_validator(mode="after")
    def _fields_of_the_loss(self) -> Self:
        if self.loss == "eac" and self.network.system != "eac":
            raise ValueError("loss: eac needs attention maps, which network.system eac alone gives")
        if (self.loss == "label_distribution") != (self.teacher is not None):
            raise ValueError("teacher: the loss label_distribution needs one, the other losses take none")
        if self.teacher is not None and (self.soft_labels is not None or self.label_smoothing):
            raise ValueError("soft_labels and label_smoothing: the loss label_distribution does not look at them")
        if self.loss != "cross_entropy" and self.mesh is not None:
            raise ValueError(f"mesh: beside the loss cross_entropy alone, this is {self.loss}")
        return self

    @model_validator(mode="after")
    def _backgrounds_where_needed(self) -> Self:
        if self.task == "detection" and not self.backgrounds:
            raise ValueError("backgrounds: a detector needs at least one folder of pictures without faces")
        if self.augment.surroundings and self.task not in ("expression", "landmarks"):
            raise ValueError(f"augment.surroundings: for the task expression and landmarks alone, this is {self.task}")
        if self.augment.surroundings and not self.backgrounds:
            raise ValueError("augment.surroundings: needs backgrounds, folders of pictures without faces")
        return self

    @model_validator(mode="after")
    def _one_pack_for_expressions(self) -> Self:
        if self.task == "expression" and len(self.data) != 1:
            raise ValueError(f"data: expression networks are trained on one pack, got {len(self.data)}")
        return self


def load_config(file: Path) -> TrainConfig:
    """Read a YAML file.

    Raises:
        NkfError: when it is unreadable, no YAML, or names an unknown key or a value out of range.
    """
    return validated(read_yaml(file), str(file))


def read_yaml(file: Path) -> Any:
    """Read what a YAML file holds, unchecked.

    Raises:
        NkfError: when it is unreadable or no YAML.
    """
    try:
        return _parsed(file.read_text())
    except OSError as error:
        raise NkfError(f"{file}: {error.strerror}") from error
    except _YAML_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NkfError(f"{file}: not valid YAML ({reason})") from error


def _parsed(text: str) -> Any:
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if bracket in "[{" else -1))
        if depth > _MAX_BRACKETS:
            raise yaml.YAMLError(f"more than {_MAX_BRACKETS} brackets in each other")
    return yaml.safe_load(text)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Replace fields, and fields of fields; a protocol's name counts as its field ``name``.

    A network of another system replaces the whole network.
    """
    result = dict(base)
    for key, value in changes.items():
        before = {"name": result[key]} if key == "protocol" and isinstance(result.get(key), str) else result.get(key)
        fields = isinstance(before, Mapping) and isinstance(value, Mapping) and not _of_other_system(before, value)
        result[key] = merged(before, value) if isinstance(before, Mapping) and fields else value
    return result


def _of_other_system(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return "system" in after and after["system"] != before.get("system", "nkf")


def override(config: TrainConfig, settings: Sequence[str] = (), **changes: Any) -> TrainConfig:
    """Replace fields, and check the result.

    Args:
        config: what to change.
        settings: "KEY=VALUE" with a dot before a field of a field, values as in YAML: "network.sigma=0.1".
        changes: further fields; None changes nothing.

    Raises:
        NkfError: for an unknown key, or a value out of range.
    """
    content = config.model_dump()
    for setting in sorted(settings, key=lambda text: not text.startswith("network.system=")):  # it replaces the others
        content = merged(content, _setting(setting))
    return validated(content | {name: value for name, value in changes.items() if value is not None}, "options")


def _setting(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise NkfError(f"setting {text!r}: expected KEY=VALUE, such as epochs=2 or network.sigma=0.1")
    try:
        content = _parsed(value)
    except _YAML_ERRORS as error:
        raise NkfError(f"setting {text!r}: its value is not valid YAML") from error
    for part in reversed(key.split(".")):
        content = {part: content}
    return content


@overload
def validated(content: Any, source: str) -> TrainConfig: ...


@overload
def validated(content: Any, source: str, model: type[Model]) -> Model: ...


def validated(content: Any, source: str, model: type[BaseModel] = TrainConfig) -> BaseModel:
    """Make a model of what a file holds.

    Args:
        content: fields.
        source: what the error names.
        model: what to make.

    Raises:
        NkfError: for an unknown key, or a value out of range.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in _written(first["loc"]))
        if first["type"] == "extra_forbidden":
            raise NkfError(f"{source}: unknown key {where!r}.{_perhaps(model, first['loc'])}") from error
        reason = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
        if first["type"] == "value_error" and not where:  # about several fields, which the reason names
            raise NkfError(f"{source}: {reason}") from error
        raise NkfError(f"{source}: {where or 'all of it'}: {reason}, got {_shown(first['input'])}") from error


def _shown(value: Any) -> str:
    """A value in a few characters; written out, one that YAML's aliases repeat may fill the memory."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    try:
        return f"{short.repr(value):.60}"
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a number of thousands of digits"


def _written(place: tuple[int | str, ...]) -> list[int | str]:
    """A place as it stands in the file: without the system, by which pydantic tells networks apart."""
    parents = ("", *place)
    return [part for parent, part in zip(parents, place, strict=False) if parent != "network" or part not in _SYSTEMS]


def _perhaps(model: Any, place: tuple[int | str, ...]) -> str:
    """Suggest a key where an unknown one is."""
    for part in place[:-1]:
        fields = getattr(model, "model_fields", _SYSTEMS)
        of_part = fields.get(part)
        model = of_part.annotation if isinstance(of_part, FieldInfo) else of_part
    if not hasattr(model, "model_fields"):
        return ""
    matches = get_close_matches(str(place[-1]).replace("-", "_"), model.model_fields, n=1)
    return f" Perhaps you meant {matches[0]!r}?" if matches else ""


def save_config(config: TrainConfig, file: Path) -> None:
    """Write YAML that `load_config` reads back."""
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
