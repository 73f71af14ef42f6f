"""Which rows of a pack an expression network is trained on, chosen by and measured on, under a protocol."""

import numpy as np
from numpy.typing import NDArray

from nkf.data.groups import linked_rows, picture_keys
from nkf.data.labels import DROPPED
from nkf.data.pack import Pack
from nkf.data.splitting import folds, stratified_groups
from nkf.errors import NkfError
from nkf.protocols import Protocol


def labelled(pack: Pack, split: str, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of a split that have a label."""
    rows = pack.rows(split)
    return rows[labels[rows] != DROPPED]


def chosen_rows(
    pack: Pack, protocol: Protocol, labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that are trained on, and rows that choose the checkpoint: none where the last weights are kept.

    Raises:
        NkfError: when there are no such rows.
    """
    rows = np.concatenate([labelled(pack, split, labels) for split in protocol.train])
    rows = rows[~np.isin(rows, fold_rows(pack, protocol, labels))]
    if not len(rows):
        raise NkfError(f"{pack.path}: no labelled image of the protocol's classes in {' and '.join(protocol.train)}")
    if protocol.choose == "last":
        return rows, rows[:0]
    ready = protocol.choose == "carved" and pack.manifest.get("valid_carved") and "valid" not in protocol.train
    if protocol.choose == "carved" and not ready:
        shares = (1 - protocol.valid_share, protocol.valid_share)
        try:
            parts = stratified_groups(labels[rows], linked_rows(pack.table)[rows], shares, protocol.seed)
        except NkfError as error:
            raise NkfError(f"{pack.path}: no images to choose the checkpoint can be carved ({error})") from error
        return rows[parts == 0], rows[parts == 1]
    valid = labelled(pack, "valid", labels)
    if not len(valid):
        raise NkfError(
            f"{pack.path}: no labelled image in its valid split to choose the checkpoint by; set protocol.choose to"
            " carved (a part of the training images), or make a valid split with 'nkf data split'"
        )
    return rows, valid


def drawn(rows: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """So many of some rows at most, drawn at random, always the same; in order."""
    if limit is None or limit >= len(rows):
        return rows
    return np.sort(np.random.default_rng(0).permutation(rows)[:limit])


def fold_rows(pack: Pack, protocol: Protocol, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the fold that is left out of training; none without one. Copies of a picture are in one fold."""
    rows = np.concatenate([labelled(pack, split, labels) for split in protocol.train])
    if protocol.fold is None:
        return rows[:0]
    return rows[folds(labels[rows], linked_rows(pack.table)[rows], protocol.folds, protocol.seed) == protocol.fold]


def known_pictures(pack: Pack, protocol: Protocol, labels: NDArray[np.int64]) -> set[str]:
    """Keys of the pictures (`nkf.data.groups.picture_keys`) that are not to be trained on without their labels.

    These have a label, to be trained on, to choose by or to be measured on; or they are in a split that is not trained
    on.
    """
    known = (labels != DROPPED) | ~np.isin(pack.splits, protocol.train)
    return set(picture_keys(pack.table)[known].tolist())
