"""Other splits of a pack: new packs whose images are the old one's, linked and not copied where the disk allows it."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nkf.data.counts import count_rows, find_leaks
from nkf.data.groups import LINKS, linked_rows
from nkf.data.pack import Pack
from nkf.data.pack_writer import check_names, write_manifest
from nkf.data.splitting import folds, stratified_groups
from nkf.data.tables import Table, TableWriter
from nkf.errors import NkfError

By = Literal["auto", "subject", "photo", "image"]


def split_pack(
    path: Path, out: Path, *, valid: float, test: float, seed: int = 0, by: By = "auto", keep_test: bool = False
) -> NDArray[np.str_]:
    """Make a pack with new splits: stratified by class, and without a person, a photo or a picture in two of them.

    Args:
        path: the pack.
        out: folder of the new one.
        valid: share that becomes valid.
        test: share that becomes test.
        seed: of the choice.
        by: what stays together besides copies: ``auto`` takes people and photos where the pack tells them.
        keep_test: leave the test split as it is, and share out the rest.

    Returns:
        (N,) the new split of each row.

    Raises:
        NkfError: when the shares are unusable, the pack cannot be split so, or `out` exists.
    """
    pack = Pack(path)
    _check_seed(seed)
    if not (valid >= 0 and test >= 0 and 0 < valid + test < 1):
        raise NkfError(f"valid {valid:g} and test {test:g}: expected shares from 0 to below 1, and one above 0")
    rows = np.flatnonzero(pack.splits != "test") if keep_test else np.arange(len(pack))
    if keep_test and test:
        raise NkfError("keep_test: the test split stays as it is, give no share for it")
    shares = [share for share in (1 - valid - test, valid, test) if share]
    names = [name for name, share in (("train", 1.0), ("valid", valid), ("test", test)) if share]
    parts = stratified_groups(pack.labels()[rows], _groups(pack, by)[rows], shares, seed)
    splits = pack.splits.astype("<U5")
    splits[rows] = np.array(names)[parts]
    told: dict[str, Any] = {"split": {"valid": valid, "test": test, "seed": seed, "by": by}}
    if keep_test:
        told["test_split_is"] = pack.manifest.get("test_split_is")
    if keep_test and (pack.manifest.get("valid_carved") or not (pack.splits == "valid").any()):
        # Train and valid together still are what the dataset calls train.
        told |= {"valid_carved": {"share": valid, "seed": seed}, "known_counts": pack.manifest.get("known_counts", {})}
    _write(pack, out, splits, _names(pack, [splits]), told)
    return splits


def fold_pack(path: Path, out: Path, *, count: int, seed: int = 0, by: By = "auto") -> list[Path]:
    """Make packs for a cross-validation: ``OUT/fold-00`` tests on the first of the folds, and so on.

    Args:
        path: the pack.
        out: folder of the new ones.
        count: number of folds.
        seed: of the choice.
        by: as in `split_pack`.

    Raises:
        NkfError: when the pack cannot be split so, or `out` exists.
    """
    pack = Pack(path)
    _check_seed(seed)
    parts = folds(pack.labels(), _groups(pack, by), count, seed)
    if out.exists():
        raise NkfError(f"{out}: exists already; name a new folder")
    splits = [np.where(parts == fold, "test", "train") for fold in range(count)]
    names = _names(pack, splits)
    made = []
    for fold in range(count):
        place = {"fold": fold, "folds": count, "seed": seed, "by": by}
        made.append(_write(pack, out / f"fold-{fold:02}", splits[fold], names, {"split": place}))
    return made


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise NkfError(f"seed {seed}: expected a whole number from 0")


def _groups(pack: Pack, by: By) -> NDArray[np.int64]:
    links = LINKS if by == "auto" else ("pixels_md5",) if by == "image" else (by, "pixels_md5")
    if by in ("subject", "photo") and by not in pack.metadata_names:
        raise NkfError(f"{pack.path}: does not tell the {by} of an image; choose another --by")
    for name in ("subject", "photo"):
        if name in pack.metadata_names and name not in links:
            raise NkfError(f"{pack.path}: splits would share a {name}, which makes results too good; use --by auto")
    return linked_rows(pack.table, links)


def _write(pack: Pack, out: Path, splits: NDArray[np.str_], names: NDArray[np.str_], more: Mapping[str, Any]) -> Path:
    """A pack with the same images and other splits."""
    if out.exists():
        raise NkfError(f"{out}: exists already; name a new folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for shard in pack.shard_files:
            _link(shard, partial / shard.name)
        with TableWriter(partial / "rows.arrow", pack.table.columns) as table:
            table.copy(pack.table, split=splits.tolist(), name=names.tolist())
        rows = Table(partial / "rows.arrow")
        check_names(rows, out)
        leaks = find_leaks(rows.column("split"), rows.column("pixels_md5"))
        changed = {"counts": count_rows(rows), "leaks_found": leaks}
        no_longer: dict[str, Any] = {"known_counts": {}, "valid_carved": None, "test_split_is": None}
        write_manifest(partial, {**pack.manifest, **changed, **no_longer, **more}, pack.manifest["shards"])
        partial.rename(out)
    except OSError as error:
        raise NkfError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _names(pack: Pack, several: Sequence[NDArray[np.str_]]) -> NDArray[np.str_]:
    """Names for new splits: where two images of one name come together, those get the old split before them."""
    if not any(_doubled(_paths(splits, pack.names)).any() for splits in several):
        return pack.names
    return np.where(_doubled(pack.names), _paths(pack.splits, pack.names), pack.names)


def _doubled(names: NDArray[np.str_]) -> NDArray[np.bool_]:
    _, inverse, counts = np.unique(names, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)


def _paths(splits: NDArray[np.str_], names: NDArray[np.str_]) -> NDArray[np.str_]:
    return np.char.add(np.char.add(splits, "/"), names)


def _link(source: Path, target: Path) -> None:
    """A second name for a file, which costs no space; a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
