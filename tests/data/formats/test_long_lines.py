"""A file of another kind in the place of a label file, all of it one line: the message stays short."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nkf.data.formats.expw import list_expw
from nkf.data.formats.ferplus import list_ferplus
from nkf.data.formats.rafdb import list_rafdb
from nkf.data.listing import Listing
from nkf.data.sources import FolderSource, Source
from nkf.errors import NkfError

LONG = "9" * 20_000
CASES: dict[str, tuple[Callable[[Source], Listing], dict[str, str]]] = {
    "rafdb": (list_rafdb, {"EmoLabel/list_patition_label.txt": LONG, "Image/aligned/a.jpg": ""}),
    "rafdb code": (
        list_rafdb,
        {"EmoLabel/list_patition_label.txt": f"train_00001.jpg {LONG}\n", "Image/aligned/a.jpg": ""},
    ),
    "rafdb name": (
        list_rafdb,
        {"EmoLabel/list_patition_label.txt": f"train_{LONG}.jpg 5\n", "Image/aligned/a.jpg": ""},
    ),
    "expw": (list_expw, {"label/label.lst": LONG, "image/origin/a.jpg": ""}),
    "ferplus": (list_ferplus, {"FER2013Train/label.csv": f"a.png,,{LONG},1,1,1,1,1,1,1,1,1\n"}),
}


@pytest.mark.parametrize("case", CASES)
def test_messages_stay_short(case: str, tmp_path: Path) -> None:
    list_dataset, files = CASES[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(NkfError, match="expected") as caught:
        list(list_dataset(FolderSource(tmp_path)).entries)
    assert len(str(caught.value)) < 700
