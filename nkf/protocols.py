"""Protocols: which images of a dataset are trained on, choose the checkpoint and are reported, under which classes.

Figures of two networks compare only under the same protocol. The published ones, as far as their code tells them:

- FER+'s literature merges train and valid, so that nothing is left to choose a checkpoint. Published code scores the
  test images after every epoch and keeps the best; here the last weights are kept.
- RAF-DB and AffectNet have two splits. What chooses the checkpoint is carved out of the training images here.
- AffectNet's test images were never released: its official validation images are our packs' split ``test``.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from nkf.data.labels import DROPPED, EXPRESSIONS, LabelRule

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
_CHANGES_COUNTS = ("classes", "rule", "train", "test", "fold", "folds")


class Protocol(BaseModel):
    """Which images count for what.

    `expected` tells how many images a complete copy of the dataset has under the protocol, by split; several numbers
    where several releases are about. Its ``train`` means all splits that are trained on together, before carving.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="one of PROTOCOLS; fields may differ from what that says")
    classes: tuple[str, ...] = Field(default=EXPRESSIONS, description="others are left out, in every split")
    rule: LabelRule = Field(default="majority", description="which images count, and how votes become labels")
    train: tuple[Split, ...] = Field(default=("train",), min_length=1, description="splits that are trained on")
    choose: Literal["valid", "carved", "last"] = Field(
        default="valid",
        description="images that choose the checkpoint: the split valid; a part carved out of the training images,"
        " by class, with people, photos and copies of a picture kept together; or none, and the last weights are kept",
    )
    valid_share: float = Field(default=0.05, gt=0, lt=1, description="carved: share of the training images")
    seed: int = Field(
        default=0, ge=0, description="carved, folds: not the run's: runs, and those that start from them, choose alike"
    )
    folds: int = Field(default=5, ge=2, description="parts of the training images, for `fold`; seeded by `seed`")
    fold: int | None = Field(default=None, ge=0, description="part that is left out, to be measured on")
    test: Split = Field(default="test", description="split that is reported")
    sampling: Literal["shuffled", "balanced"] = Field(
        default="shuffled", description="an epoch shows every image once, or every class equally often"
    )
    metric: str = Field(default="accuracy", description="what is usually reported")
    expected: Mapping[Split, tuple[int, ...]] = Field(default_factory=dict, description="numbers of images, see above")

    @model_validator(mode="after")
    def _canonical_classes(self) -> Self:
        canonical = tuple(name for name in EXPRESSIONS if name in self.classes)
        if self.classes != canonical or len(canonical) < 2:
            raise ValueError(f"classes: expected two or more, once each, in this order: {', '.join(EXPRESSIONS)}")
        return self

    @model_validator(mode="after")
    def _honest_splits(self) -> Self:
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold: the folds are numbered from 0 to {self.folds - 1}")
        if "test" in self.train:
            raise ValueError("train: the split test is never trained on, nor chooses a checkpoint")
        if self.test in self.train:
            raise ValueError(f"test: the split {self.test} is trained on, and cannot be reported")
        if self.choose == "valid" and "valid" in self.train:
            raise ValueError("choose: valid is trained on, and cannot choose the checkpoint; take carved or last")
        if self.choose == "valid" and self.test == "valid":
            raise ValueError("choose: valid is reported, and cannot choose the checkpoint; take carved or last")
        return self

    def class_indices(self, labels: NDArray[np.integer]) -> NDArray[np.int64]:
        """Translate (N,) indices into `EXPRESSIONS` to indices into `classes`, or `DROPPED` for other classes."""
        position = [self.classes.index(name) if name in self.classes else DROPPED for name in EXPRESSIONS]
        return np.array([*position, DROPPED])[np.where(labels == DROPPED, len(EXPRESSIONS), labels)]


_SEVEN = EXPRESSIONS[:-1]  # without contempt
_AFFECTNET_METRIC = "accuracy, which equals the mean recall of the classes: they are equally large"
PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="own"),
        Protocol(name="ferplus"),
        Protocol(
            name="ferplus-literature",
            train=("train", "valid"),
            choose="last",
            expected={"train": (28_236,), "test": (3_137,)},
        ),
        Protocol(
            name="rafdb",
            classes=_SEVEN,
            choose="carved",
            metric="accuracy; the dataset's authors give the mean recall of the classes too",
            expected={"train": (12_271,), "test": (3_068,)},
        ),
        Protocol(
            name="affectnet7",
            classes=_SEVEN,
            choose="carved",
            sampling="balanced",
            metric=_AFFECTNET_METRIC,
            expected={"train": (283_901,), "test": (3_500,)},
        ),
        Protocol(
            name="affectnet8",
            choose="carved",
            sampling="balanced",
            metric=_AFFECTNET_METRIC,
            expected={"train": (287_651,), "test": (4_000, 3_999)},  # first and second release
        ),
    )
}
DEFAULT_PROTOCOL = "own"


def read_protocol(content: Any) -> Any:
    """Complete what a configuration says: a name, or fields that differ from the protocol `name` (default ``own``).

    Returns:
        A protocol, or the fields of one, unchecked. Expected counts of other images than asked for are left out.

    Raises:
        ValueError: for an unknown name, or anything else than a name or fields.
    """
    if isinstance(content, Protocol):
        return content
    fields = {"name": content} if isinstance(content, str) else content
    if not isinstance(fields, Mapping):
        raise ValueError(f"expected a name ({', '.join(PROTOCOLS)}) or fields of a protocol")
    name = fields.get("name", DEFAULT_PROTOCOL)
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise ValueError(f"no such protocol; known: {', '.join(PROTOCOLS)} (own data: own)")
    base = PROTOCOLS[name].model_dump()
    if any(key in fields for key in _CHANGES_COUNTS):
        base["expected"] = {}
    return base | dict(fields)


def check_counts(protocol: Protocol, counts_by_split: Mapping[str, int], *, carved: bool = False) -> list[str]:
    """Name each difference to the expected counts, one line a split.

    Args:
        protocol: what counts.
        counts_by_split: split -> images with a label among the protocol's classes, 0 where the data lack the split;
            splits that are not in it are not compared.
        carved: the data's valid split was carved out of train, and counts as train.
    """
    trained = {*protocol.train, "valid"} if carved and "train" in protocol.train else set(protocol.train)
    lines = []
    for split, allowed in protocol.expected.items():
        counts = [counts_by_split[one] for one in (trained if split == "train" else {split}) if one in counts_by_split]
        if counts and sum(counts) not in allowed:
            what = " and ".join(protocol.train) if split == "train" else split
            found = f"{sum(counts):,}" if any(counts) else "no"
            numbers = " or ".join(f"{number:,}" for number in allowed)
            lines.append(f"protocol {protocol.name}: {found} images in {what}, a complete copy has {numbers}")
    return lines
