"""Target distributions of expression networks: labels or votes, a teacher's answers beside or instead of them."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nkf.config import TrainConfig, Unlabelled
from nkf.data.dataset import FaceCrops, load_crops, training_targets
from nkf.data.groups import picture_keys
from nkf.data.labels import EXPRESSIONS
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.progress import Progress, no_progress
from nkf.recipes.rows import known_pictures
from nkf.soft_labels import read_soft_labels


class TrainingFaces(NamedTuple):
    """Faces of one pack that are trained on.

    Attributes:
        pack: the pack.
        crops: of all its rows.
        rows: (n,) that are trained on.
        classes: (n,) labels, or the classes that the teacher is surest of.
        targets: (n, C) float32 distributions.
        facts: what the sidecar tells of the teacher; empty without one.
    """

    pack: Pack
    crops: FaceCrops
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    targets: NDArray[np.float32]
    facts: dict[str, Any]


def training_faces(
    config: TrainConfig,
    pack: Pack,
    crops: FaceCrops,
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    progress: Progress = no_progress,
) -> list[TrainingFaces]:
    """Faces of the labelled pack, then those of each pack without labels that the configuration names.

    Args:
        config: of the run.
        pack: the labelled one.
        crops: of all its rows.
        labels: (N,) of all its rows, indices into the protocol's classes.
        rows: (n,) that are trained on; they have labels.
        progress: shows how far the preparation of crops is.

    Raises:
        NkfError: when soft labels are unusable, or about other rows or classes.
    """
    parts = [labelled_faces(config, pack, crops, labels, rows)]
    known = known_pictures(pack, config.protocol, labels) if config.unlabelled else set()
    return parts + [unlabelled_faces(one, config, known, progress) for one in config.unlabelled]


def labelled_faces(
    config: TrainConfig, pack: Pack, crops: FaceCrops, labels: NDArray[np.int64], rows: NDArray[np.int64]
) -> TrainingFaces:
    """Targets by label or votes, mixed with the teacher's answers if the configuration names them.

    The arguments are those of `training_faces`.
    """
    classes = config.protocol.classes
    targets = training_targets(
        labels[rows],
        shares_of_classes(pack.distributions()[rows], labels[rows], classes),
        soft=config.targets == "distribution",
        smoothing=config.label_smoothing,
    )
    if config.soft_labels is None:
        return TrainingFaces(pack, crops, rows, labels[rows], targets, {})
    soft, weight = read_soft_labels(config.soft_labels, pack, classes), config.soft_weight
    mixed = ((1 - weight) * targets + weight * soft.probabilities[rows]).astype(np.float32)
    return TrainingFaces(pack, crops, rows, labels[rows], mixed, {"models": list(soft.models), "weight": weight})


def unlabelled_faces(
    source: Unlabelled, config: TrainConfig, known: set[str], progress: Progress = no_progress
) -> TrainingFaces:
    """Faces of a pack's train split that the teacher is sure enough of; its answers are the targets.

    Args:
        source: pack, soft labels, and how sure.
        config: of the run.
        known: pictures that are left out, see `nkf.recipes.rows.known_pictures`.
        progress: shows how far the preparation of crops is.

    Raises:
        NkfError: when pack or soft labels are unusable, or no face is left.
    """
    pack = Pack(source.data)
    crops = load_crops(pack, "aligned", config.crop_size, progress)
    soft = read_soft_labels(source.soft_labels, pack, config.protocol.classes)
    rows = pack.rows("train")
    sure = crops.shown[rows] & (soft.probabilities[rows].max(axis=1) >= source.min_confidence)
    rows = rows[sure & np.array([key not in known for key in picture_keys(pack.table)[rows].tolist()], bool)]
    if not len(rows):
        raise NkfError(
            f"{pack.path}: no face of its train split that the teacher is sure of by {source.min_confidence:g} or more,"
            " and that has no label yet; lower min_confidence, or leave it out of 'unlabelled'"
        )
    targets = soft.probabilities[rows]
    facts = {
        "source": pack.manifest.get("source"),
        "models": list(soft.models),
        "min_confidence": source.min_confidence,
        "images": len(rows),
    }
    return TrainingFaces(pack, crops, rows, targets.argmax(axis=1), targets, facts)


def shares_of_classes(
    distributions: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> NDArray[np.float32]:
    """Restrict (N, 8) vote shares to some classes: (N, C) with sum 1; the label alone where nobody voted for these.

    Args:
        distributions: in the order of `EXPRESSIONS`.
        labels: (N,) indices into `classes`.
        classes: names.
    """
    kept = distributions[:, [EXPRESSIONS.index(name) for name in classes]]
    others = distributions[:, [row for row, name in enumerate(EXPRESSIONS) if name not in classes]]
    sum_kept, sum_others = (part.sum(axis=1, keepdims=True) for part in (kept, others))
    # The part that is kept of all votes is exactly 1 when no class is left out: shares stay as they are.
    part = np.divide(sum_kept, sum_kept + sum_others, out=np.ones_like(sum_kept), where=sum_kept > 0)
    return np.where(sum_kept > 0, kept / part, np.eye(len(classes), dtype=np.float32)[labels])
