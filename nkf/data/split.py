"""Other splits of a pack: new packs whose images are the old one's, linked and not copied where the disk allows it."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.data.counts import count_rows, find_leaks, train_with_valid
from nkf.data.groups import LINKS, linked_rows, picture_keys
from nkf.data.listing import known_from_json, known_to_json
from nkf.data.pack import Pack
from nkf.data.pack_writer import check_names, write_manifest
from nkf.data.splitting import folds, stratified_groups
from nkf.data.tables import Table, TableWriter
from nkf.errors import NkfError

LOCK = "split.lock"


def split_pack(
    path: Path, out: Path, *, valid: float, test: float, seed: int = 0, by: str = "", keep_test: bool = False
) -> NDArray[np.str_]:
    """Make a pack with new splits: stratified by class, without a person, a photo or a picture in two.

    Args:
        path: the pack.
        out: folder of the new one.
        valid: share that becomes valid.
        test: share that becomes test.
        seed: of the choice.
        by: a further metadata column whose equal values stay together; people, photos and copies do so anyway.
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
        told |= {"test_split_is": pack.manifest.get("test_split_is"), "valid_carved": {"share": valid, "seed": seed}}
        told["known_counts"] = pack.manifest.get("known_counts", {})
        if (pack.splits == "valid").any() and not pack.manifest.get("valid_carved"):  # the dataset has a valid split
            told["known_counts"] = known_to_json(train_with_valid(known_from_json(told["known_counts"])))
    with _new_folder(out) as partial:
        _write(pack, partial, splits, _names(pack, [splits]), told)
    return splits


def fold_pack(path: Path, out: Path, *, count: int, seed: int = 0, by: str = "") -> list[Path]:
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
    splits = [np.where(parts == fold, "test", "train") for fold in range(count)]
    names = _names(pack, splits)
    folders = [f"fold-{fold:02}" for fold in range(count)]
    with _new_folder(out) as partial:
        for fold, folder in enumerate(folders):
            place = {"fold": fold, "folds": count, "seed": seed, "by": by}
            (partial / folder).mkdir()
            _write(pack, partial / folder, splits[fold], names, {"split": place})
    return [out / folder for folder in folders]


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise NkfError(f"seed {seed}: expected a whole number from 0")


def _groups(pack: Pack, by: str) -> NDArray[np.int64]:
    if by and by not in pack.metadata_names:
        known = ", ".join(pack.metadata_names) or "none"
        raise NkfError(f"{pack.path}: has no column {by!r}; its metadata columns: {known}")
    return linked_rows(pack.table, [*LINKS, *([by] if by else [])])


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield the folder ``OUT.partial``; it becomes `out` if the block ends without an error, else it goes.

    After a kill it stays, and the next run replaces it; the lock in it tells that it is ours.
    """
    from filelock import FileLock, Timeout

    partial = out.with_name(out.name + ".partial")
    try:
        if out.exists():
            raise NkfError(f"{out}: exists already; name a new folder")
        if partial.exists() and not (partial / LOCK).exists():
            raise NkfError(f"{partial}: is in the way, and not of another split; rename it, or name another folder")
        partial.mkdir(parents=True, exist_ok=True)
        with FileLock(partial / LOCK).acquire(timeout=0):
            try:
                _empty(partial)
                yield partial
                partial.rename(out)
            except BaseException:  # only then: after the renaming another run may have one of this name
                shutil.rmtree(partial, ignore_errors=True)
                raise
            (out / LOCK).unlink()
    except Timeout as error:
        raise NkfError(f"{out}: another split is writing it; wait for it, or name another folder") from error
    except OSError as error:
        raise NkfError(f"{out}: cannot be written ({error.strerror or error})") from error


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name != LOCK:
            file.unlink()


def _write(
    pack: Pack, folder: Path, splits: NDArray[np.str_], names: NDArray[np.str_], more: Mapping[str, Any]
) -> None:
    """Fill a folder with a pack of the same images and other splits."""
    for shard in pack.shard_files:
        if not shard.is_file():
            raise NkfError(f"{shard}: missing; import the dataset again")
        _link(shard, folder / shard.name)
    with TableWriter(folder / "rows.arrow", pack.table.columns) as table:
        table.copy(pack.table, split=splits.tolist(), name=names.tolist())
    rows = Table(folder / "rows.arrow")
    check_names(rows, folder)
    leaks = find_leaks(rows.column("split"), picture_keys(rows))
    changed = {"counts": count_rows(rows), "leaks_found": leaks}
    no_longer: dict[str, Any] = {"known_counts": {}, "valid_carved": None, "test_split_is": None}
    write_manifest(folder, {**pack.manifest, **changed, **no_longer, **more}, pack.manifest["shards"])


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
