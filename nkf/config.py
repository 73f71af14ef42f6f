"""Configuration of a training run: pydantic models that refuse unknown keys, read from and written to YAML."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nkf.errors import NkfError
from nkf.protocols import DEFAULT_PROTOCOL, PROTOCOLS, Protocol, read_protocol


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AugmentConfig(_Strict):
    """Random changes of training crops. Ranges are half-widths around no change; probabilities are per image."""

    rotation_deg: float = Field(default=10.0, ge=0, le=180, description="rotation, uniform in ± this many degrees")
    scale: float = Field(default=0.10, ge=0, lt=1, description="size of the face, uniform in 1 ± this")
    shift: float = Field(default=0.04, ge=0, lt=1, description="shift in x and y, uniform in ± this share of the side")
    near: float = Field(default=0.0, ge=0, le=1, description="share of crops placed well: a fifth of the ranges above")
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a mirror image")
    brightness: float = Field(default=0.3, ge=0, lt=1, description="gain, uniform in 1 ± this")
    contrast: float = Field(default=0.3, ge=0, lt=1, description="contrast about the mean, uniform in 1 ± this")
    gamma: float = Field(default=0.0, ge=0, description="exponent 2^u, u uniform in ± this: darkness and glare")
    color_cast: float = Field(default=0.0, ge=0, lt=1, description="gain of each channel, uniform in 1 ± this")
    grey: float = Field(default=0.0, ge=0, le=1, description="probability of dropping the colour")
    noise: float = Field(default=0.0, ge=0, description="largest standard deviation of pixel noise, of [0, 1]")
    blur: float = Field(default=0.0, ge=0, le=1, description="probability of a Gaussian blur, σ up to 4 % of the side")
    motion_blur: float = Field(default=0.0, ge=0, le=1, description="probability of a blur along one direction")
    jpeg: float = Field(default=0.0, ge=0, le=1, description="probability of JPEG artefacts")
    darkness: float = Field(default=0.0, ge=0, le=1, description="probability of a picture at a tenth to a half")
    glasses: float = Field(default=0.0, ge=0, le=1, description="probability of drawn (sun)glasses")
    mask: float = Field(default=0.0, ge=0, le=1, description="probability of a cover over nose, mouth and chin")
    low_resolution: float = Field(default=0.0, ge=0, le=1, description="probability of shrinking to 24 px and more")
    erase: float = Field(default=0.25, ge=0, le=1, description="probability of an occluding patch")
    erase_area: float = Field(default=0.15, gt=0, le=0.5, description="largest share of the crop that a patch covers")


class NetworkConfig(_Strict):
    """What `nkf.models.create_model` builds. The keypoint fields apply to expression networks only."""

    backbone: Literal["tiny", "mobile", "mobile_narrow", "base", "large"] = "mobile"
    strides: tuple[Literal[4, 8, 16], ...] = Field(
        default=(8,), description="maps that keypoint features are read from"
    )
    fan_maps: bool = Field(default=False, description="also read the maps of the frozen face alignment network")
    keypoint_channels: int = Field(default=256, gt=0, description="channels of the keypoint features")
    attention: Literal["none", "channel", "spatial"] = Field(default="channel", description="form of RKFA")
    representative: Literal["nasal_base", "nose_tip", "mean", "learned"] = Field(
        default="nasal_base", description="keypoint feature that drives the attention"
    )
    sigma: float = Field(default=0.05, ge=0, description="landmark perturbation over the distance of the eye centres")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="probability before the classifier")


class TrainConfig(_Strict):
    """One training run. Paths are relative to the folder where the command runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="name of the run folder and of the model")
    task: Literal["expression", "landmarks", "detection"]
    data: tuple[Path, ...] = Field(min_length=1, description="packs; expression networks take one")
    backgrounds: tuple[Path, ...] = Field(default=(), description="detection: folders of pictures without faces")
    scenes: int = Field(default=10_000, gt=1, description="detection: pictures composed of faces and backgrounds")
    plain_scenes: int = Field(default=0, ge=0, description="detection: pictures without faces, beside the scenes")
    network: NetworkConfig = NetworkConfig()
    pretrained: Path | None = Field(default=None, description="face-identity weights that the backbone starts from")
    mesh: Path | None = Field(default=None, description="folder of the teacher's mesh basis: adds the mesh as a target")
    frozen: tuple[str, ...] = Field(default=(), description="parts of the network that keep their starting weights")
    start: str | None = Field(default=None, description="NAME, run or file whose weights the network starts from")
    crop_size: int = Field(default=112, ge=32, multiple_of=16, description="side of the crop in pixels")
    protocol: Protocol = Field(
        default=PROTOCOLS[DEFAULT_PROTOCOL],
        description="expression: a name of nkf.protocols.PROTOCOLS, or its fields that differ, with the name",
    )
    targets: Literal["distribution", "label"] = Field(default="distribution", description="vote shares, or one class")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all classes")
    epochs: float = Field(default=3.0, gt=0, description="passes over the training images")
    batch_size: int = Field(default=64, gt=1, description="images in one step")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak, reached after warm-up, then cosine to zero")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW's, of matrices and convolutions only")
    warmup_steps: int = Field(default=100, ge=0, description="steps in which the learning rate rises")
    clip_norm: float = Field(default=5.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(default=0.995, ge=0, lt=1, description="of the weight average that is evaluated and kept")
    bf16: bool = Field(default=False, description="autocast to bfloat16")
    evaluations: int = Field(default=8, ge=1, description="number of validations, spread over the run")
    seed: int = Field(default=0, ge=0, description="of weights, order, augmentation and dropout")
    augment: AugmentConfig = AugmentConfig()

    @field_validator("protocol", mode="before")
    @classmethod
    def _complete_protocol(cls, content: Any) -> Any:
        return read_protocol(content)

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained is not None and self.start is not None:
            raise ValueError("pretrained and start: give one of them")
        return self

    @model_validator(mode="after")
    def _backgrounds_for_detection(self) -> Self:
        if self.task == "detection" and not self.backgrounds:
            raise ValueError("backgrounds: a detector needs at least one folder of pictures without faces")
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
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise NkfError(f"{file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NkfError(f"{file}: not valid YAML ({str(error).splitlines()[0]})") from error
    return _validated(content, str(file))


def override(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Replace fields, except by None, and check the result.

    Raises:
        NkfError: when it is out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return _validated(config.model_dump() | given, "options")


def _validated(content: Any, source: str) -> TrainConfig:
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        if first["type"] == "extra_forbidden":
            raise NkfError(f"{source}: unknown key {where!r}.{_perhaps(first['loc'])}") from error
        reason = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
        raise NkfError(f"{source}: {where}: {reason}, got {first['input']!r:.60}") from error


def _perhaps(place: tuple[int | str, ...]) -> str:
    """Suggest a key where an unknown one is."""
    model: Any = TrainConfig
    for part in place[:-1]:
        model = model.model_fields[part].annotation
    matches = get_close_matches(str(place[-1]).replace("-", "_"), model.model_fields, n=1)
    return f" Perhaps you meant {matches[0]!r}?" if matches else ""


def save_config(config: TrainConfig, file: Path) -> None:
    """Write YAML that `load_config` reads back."""
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
