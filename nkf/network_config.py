"""Configurations of the networks that tell expressions: one model for each system, told apart by its field `system`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class StrictModel(BaseModel):
    """Frozen, and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SystemConfig(StrictModel):
    """What the systems' configurations share; each has its name in the field `system`."""

    def architecture(self) -> dict[str, Any]:
        """What `nkf.models.create_model` builds the network from, beside its kind, which is the system."""
        return self.model_dump(mode="json", exclude={"system"})


class NetworkConfig(SystemConfig):
    """NKF (`nkf.models.nkf`). Networks of the other tasks take its `backbone` alone."""

    system: Literal["nkf"] = "nkf"
    backbone: Literal["tiny", "mobile", "mobile_narrow", "base", "large"] = "mobile"
    strides: tuple[Literal[4, 8, 16], ...] = Field(
        default=(8,), description="maps that keypoint features are read from"
    )
    sources: Literal["backbone", "fan", "both"] = Field(
        default="backbone", description="networks whose maps are read: the backbone, the frozen face alignment network"
    )
    keypoint_channels: int = Field(default=256, ge=8, description="channels of the keypoint features")
    attention: Literal["none", "channel", "spatial"] = Field(default="channel", description="form of RKFA")
    representative: Literal["nasal_base", "nose_tip", "mean", "learned"] = Field(
        default="nasal_base", description="keypoint feature that drives the attention"
    )
    sigma: float = Field(
        default=0.05, ge=0, le=10, description="landmark perturbation over the distance of the eye centres"
    )
    common_sigma: float = Field(
        default=0.0, ge=0, le=10, description="the same, of one shift common to a face's landmarks"
    )
    dropout: float = Field(default=0.3, ge=0, lt=1, description="probability before the classifier")


class PosterConfig(SystemConfig):
    """POSTER (`nkf.models.poster`)."""

    system: Literal["poster"] = "poster"
    depth: int = Field(default=8, ge=1, le=64, description="fusion layers: 4 small, 6 base, 8 large")
    token_mixing: bool = Field(default=True, description="mix tokens behind each block, as published for RAF-DB only")
    frozen_statistics: bool = Field(
        default=True, description="the landmark trunk's batch norms stay; published: their averages drift in training"
    )


class PosterPPConfig(SystemConfig):
    """POSTER++ (`nkf.models.poster_pp`)."""

    system: Literal["poster_pp"] = "poster_pp"
    frozen_statistics: bool = Field(default=True, description="see `PosterConfig`")


class EACConfig(SystemConfig):
    """A trunk and a linear classifier, which gives class activation maps (`nkf.models.eac`)."""

    system: Literal["eac"] = "eac"
    trunk: Literal["resnet50", "resnet50_standard", "resnet18", "tiny", "mobile", "base", "large"] = "resnet50"


class EfficientFaceConfig(SystemConfig):
    """EfficientFace (`nkf.models.efficientface`)."""

    system: Literal["efficientface"] = "efficientface"
    statistics: Literal["half", "rafdb", "affectnet", "caers"] = Field(
        default="half", description="data whose mean and standard deviation the crops are normalised by"
    )


def _nkf_by_default(content: Any) -> Any:
    return {"system": "nkf", **content} if isinstance(content, Mapping) else content


Network = Annotated[
    Annotated[
        NetworkConfig | PosterConfig | PosterPPConfig | EACConfig | EfficientFaceConfig,
        Field(discriminator="system"),
    ],
    BeforeValidator(_nkf_by_default),
]
"""Any of the systems; NKF where none is named."""
