"""The systems that nkf trains and measures in one harness: their papers, sizes, and configurations."""

from typing import Any, NamedTuple


class System(NamedTuple):
    """An expression network that can be trained.

    Attributes:
        name: as the papers say.
        kind: of `nkf.weights.Kind`.
        options: fields of its configuration in `nkf.network_config` that are not as by default.
        crop_size: side of its crops in pixels.
        parameters: of its network for eight classes, without parts that have no effect.
        macs: multiply-adds of one crop: convolutions and matrix products.
        config: that trains it, in the repository.
        paper: where it is from.
    """

    name: str
    kind: str
    options: dict[str, Any]
    crop_size: int
    parameters: int
    macs: int
    config: str
    paper: str


_NKF = "So and Han, Sensors 2025; backbone and sizes are ours"
_POSTER = "Zheng et al., ICCV workshops 2023"
_POSTER_PP = "Mao et al., arXiv 2301.12149"
_EFFICIENTFACE = "Zhao et al., AAAI 2021"
_EAC = "Zhang et al., ECCV 2022"

# The numbers are checked by a test.
SYSTEMS = (
    System("NKF mobile", "nkf", {"backbone": "mobile"}, 112, 2_158_808, 438_673_408, "mobile.yaml", _NKF),
    System("NKF base", "nkf", {"backbone": "base"}, 112, 11_563_480, 2_589_317_120, "cuda/base.yaml", _NKF),
    System("NKF large", "nkf", {"backbone": "large"}, 112, 31_128_728, 6_288_693_248, "cuda/large.yaml", _NKF),
    System("POSTER small", "poster", {"depth": 4}, 112, 39_285_504, 6_791_092_224, "systems/poster.yaml", _POSTER),
    System("POSTER base", "poster", {"depth": 6}, 112, 49_096_136, 7_323_981_824, "systems/poster.yaml", _POSTER),
    System("POSTER large", "poster", {}, 112, 58_906_768, 7_856_871_424, "systems/poster.yaml", _POSTER),
    System("POSTER++", "poster_pp", {}, 112, 43_754_710, 8_592_404_992, "systems/poster-pp.yaml", _POSTER_PP),
    System("EAC, ResNet-50", "eac", {}, 224, 23_524_424, 3_855_941_632, "systems/eac.yaml", _EAC),
    System("EAC, ResNet-18", "eac", {"trunk": "resnet18"}, 224, 11_180_616, 1_813_565_440, "systems/eac.yaml", _EAC),
    System(
        "EfficientFace", "efficientface", {}, 224, 1_276_318, 149_729_904, "systems/efficientface.yaml", _EFFICIENTFACE
    ),
)
