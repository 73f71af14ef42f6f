"""The datasets themselves, where they are at hand: what is listed has the known counts.

The environment variable NKF_DATASETS names a folder that has a folder or a zip for each: ``rafdb`` or ``rafdb.zip``,
and so on. Those that are absent are skipped.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nkf.data.counts import compare_counts, count_classes, votes_of
from nkf.data.formats.affectnet import list_affectnet
from nkf.data.formats.ckplus import list_ckplus
from nkf.data.formats.expw import list_expw
from nkf.data.formats.ferplus import list_ferplus
from nkf.data.formats.jaffe import list_jaffe
from nkf.data.formats.kdef import list_kdef
from nkf.data.formats.rafdb import list_rafdb
from nkf.data.formats.sfew import list_sfew
from nkf.data.importers import ImportOptions, import_dataset
from nkf.data.labels import VOTE_COLUMNS
from nkf.data.listing import Listing
from nkf.data.sources import Source, open_source

VARIABLE = "NKF_DATASETS"
READERS: dict[str, Callable[[Source], Listing]] = {
    "rafdb": list_rafdb,
    "affectnet": list_affectnet,
    "ferplus": list_ferplus,
    "expw": list_expw,
    "ckplus": list_ckplus,
    "kdef": list_kdef,
    "jaffe": list_jaffe,
    "sfew": list_sfew,
}
NO_VOTES = [0] * len(VOTE_COLUMNS)


def find(name: str) -> Path:
    """The folder or zip of a dataset; skips the test where there is none."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} names no folder of datasets")
    assert Path(folder).is_dir(), f"{VARIABLE}: {folder} is no folder"
    places = [place for place in (Path(folder, name), Path(folder, f"{name}.zip")) if place.exists()]
    if not places:
        pytest.skip(f"no {name} in {folder}")
    return places[0]


def differences_of(listing: Listing) -> list[str]:
    """Read all entries, and compare their counts with the known ones."""
    splits, labels, votes = [], [], []
    for entry in listing.entries:
        splits.append(entry.split)
        labels.append(entry.label or "")
        votes.append(NO_VOTES if entry.votes is None else entry.votes.tolist())
    for split, row in listing.uncounted:
        splits.append(split)
        labels.append("")
        votes.append(row.tolist())
    counts = count_classes(np.array(splits, str), votes_of(votes), np.array(labels, str))
    compared = [(how, split) for how, known in listing.known.items() for split in known if split in counts.get(how, {})]
    assert compared, "no count was compared"
    found = compare_counts(listing.dataset, listing.known, counts)
    return [str(difference) for difference in found if difference.how is not None]  # a copy may come without test


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_counts_are_the_known_ones(name: str) -> None:
    with open_source(find(name)) as source:
        listing = READERS[name](source)
        assert listing.dataset == name
        assert differences_of(listing) == []


@pytest.mark.slow
def test_ferplus_is_imported_with_its_counts_and_its_copies(tmp_path: Path) -> None:
    report = import_dataset(list_ferplus, find("ferplus"), tmp_path / "pack", ImportOptions(landmarks="none"))
    assert [warning for warning in report.warnings if "counts differ" in warning] == []
    assert report.images_skipped == 0
    majority = {split: sum(classes.values()) for split, classes in report.counts["majority"].items()}
    known = {"train": 25_045, "valid": 3_191, "test": 3_137}  # of label.csv; a copy may come without test
    assert {"train", "valid"} <= set(majority)
    assert majority == {split: known[split] for split in majority}
    assert report.leaks_found["valid in train"] == 279
