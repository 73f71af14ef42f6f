"""Importing made-up datasets: landmarks from everywhere, counts, leaks, a carved valid split, memory."""

import io
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nkf.data import importers
from nkf.data.counts import differences, sums
from nkf.data.formats.ferplus import list_ferplus
from nkf.data.importers import ImportOptions, import_dataset
from nkf.data.listing import Entry, KnownCount, Listing
from nkf.data.pack import Pack
from nkf.data.sources import Children, Source
from nkf.errors import NkfError
from nkf.geometry import Points


def picture(number: int) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (48, 48), np.uint8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "PNG")
    return buffer.getvalue()


SOURCE = Path("made up")


class MemorySource:
    """A source that makes each picture when it is read, and notes which ones were."""

    def __init__(self, path: Path = SOURCE, data: Callable[[str], bytes] | None = None) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.opened: dict[str, list[int]] = {}
        self.read_members: list[str] = []
        self.data = data or (lambda member: png(int(member)))

    def children(self, folder: str = "") -> Children:
        return Children([], [])

    def has(self, name: str) -> bool:
        return True

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.read(name))

    def read(self, name: str, limit: int = 0) -> bytes:
        self.read_members.append(name)
        return self.data(name)


@pytest.fixture
def memory_source(monkeypatch: pytest.MonkeyPatch) -> MemorySource:
    """Stands in for whatever source is opened."""
    source = MemorySource()

    @contextmanager
    def open_source(_: Path) -> Iterator[MemorySource]:
        yield source

    monkeypatch.setattr(importers, "open_source", open_source)
    return source


def made_up(entries: Iterable[Entry], **changes: Any) -> Callable[[Source], Listing]:
    """A dataset of given entries; `member` is the number of the picture."""

    def list_made_up(_: Source) -> Listing:
        return Listing("made up", "none", entries, **changes)

    return list_made_up


LANDMARKS = np.arange(136, dtype=np.float32).reshape(68, 2)
BOX = np.array([1, 2, 40, 48], np.float32)
LANDMARK_ENTRIES = (
    Entry("given", "train", "0", box_xyxy=BOX, landmarks_px=LANDMARKS),
    Entry("boxed", "train", "1", box_xyxy=BOX),
    Entry("plain", "train", "2"),
    Entry("faceless", "train", "3"),
)


class Finder:
    """Finds landmarks shifted by the number of the picture, but none in picture 3; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Any, str]] = []

    def __call__(self, images: Sequence[Any], boxes_xyxy: Sequence[Any], shows: str, /) -> list[Points | None]:
        numbers = [next(k for k in range(4) if (image[..., 0] == picture(k)).all()) for image in images]
        boxes = [None if box is None else box.tolist() for box in boxes_xyxy]
        self.asked += zip(numbers, boxes, [shows] * len(images), strict=True)
        return [None if number == 3 else LANDMARKS + np.float32(number) for number in numbers]


ALL_ASKED = [(0, BOX.tolist()), (1, BOX.tolist()), (2, None), (3, None)]


@pytest.mark.parametrize("read_ahead", [1, 3, 64])
@pytest.mark.parametrize(
    ("landmarks", "with_finder", "sources", "asked"),
    [
        ("auto", True, ["dataset", "fan", "fan", "none"], ALL_ASKED[1:]),
        (None, True, ["dataset", "fan", "fan", "none"], ALL_ASKED[1:]),
        (None, False, ["dataset", "none", "none", "none"], []),
        ("dataset", True, ["dataset", "none", "none", "none"], []),
        ("search", True, ["fan", "fan", "fan", "none"], ALL_ASKED),
        ("none", True, ["none", "none", "none", "none"], []),
        ("teacher", True, ["none", "none", "teacher", "none"], []),
    ],
)
def test_landmarks(
    tmp_path: Path,
    memory_source: MemorySource,
    landmarks: Any,
    with_finder: bool,
    sources: list[str],
    asked: list[Any],
    read_ahead: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importers, "READ_AHEAD", read_ahead)
    taught = np.random.default_rng(0).uniform(0, 48, (2, 68, 2)).astype(np.float32)
    known = {"name": np.array(["plain", "faceless"]), "found": np.array([True, False]), "landmarks68": taught}
    np.savez(tmp_path / "teacher.npz", **known)
    told = landmarks or ("auto" if with_finder else "dataset")
    if landmarks == "teacher":
        landmarks = tmp_path / "teacher.npz"
    finder = Finder()
    options = ImportOptions(landmarks=landmarks, find_faces=finder if with_finder else None)
    report = import_dataset(made_up(LANDMARK_ENTRIES, shows="photo"), SOURCE, tmp_path / "pack", options)
    pack = Pack(tmp_path / "pack")
    assert pack.column("landmarks_source").tolist() == sources
    values = {"dataset": LANDMARKS, "teacher": taught[0], "none": np.full((68, 2), np.nan)}
    for row, source in enumerate(sources):
        expected = values.get(source, LANDMARKS + row)
        np.testing.assert_array_equal(pack.landmarks_px[row], expected)
    assert finder.asked == [(number, box, "photo") for number, box in asked]
    assert (report.landmarks_found, report.landmarks_missing) == (4 - sources.count("none"), sources.count("none"))
    assert pack.manifest["landmarks"] == told


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        ("auto", r"^landmarks 'auto': needs find_faces, such as a nkf\.finder\.LandmarkFinder$"),
        ("search", r"^landmarks 'search': needs find_faces"),
        (
            "serach",
            r"^landmarks 'serach': expected one of auto, dataset, search, none, or the path of a teacher's NPZ$",
        ),
    ],
)
def test_landmarks_that_nobody_can_find(
    tmp_path: Path, memory_source: MemorySource, landmarks: Any, message: str
) -> None:
    with pytest.raises(NkfError, match=message):
        import_dataset(made_up(LANDMARK_ENTRIES), SOURCE, tmp_path / "pack", ImportOptions(landmarks=landmarks))
    assert list(tmp_path.iterdir()) == []


def test_all_of_an_entry_gets_into_the_pack(tmp_path: Path, memory_source: MemorySource) -> None:
    shares = np.full(8, 1 / 8, np.float32)
    entries = [
        Entry(
            "a", "train", "0", label="fear", distribution=shares, box_xyxy=BOX, metadata={"age": 3, "subject": "Ann"}
        ),
        Entry("b", "train", "table, line 2", image_bytes=png(7), votes=np.arange(10, dtype=np.uint8)),
    ]
    metadata = {"age": "integer", "subject": "text", "yaw": "number", "shape": 2}
    details = {"layout": "flat"}
    import_dataset(made_up(entries, metadata=metadata, details=details), SOURCE, tmp_path / "pack")
    pack = Pack(tmp_path / "pack")
    assert memory_source.read_members == ["0"]
    assert pack.image_bytes(1) == png(7)
    assert pack.column("file").tolist() == ["0", "table, line 2"]
    assert pack.column("label").tolist() == ["fear", ""]
    np.testing.assert_array_equal(pack.column("distribution"), [shares, np.full(8, np.nan)])
    np.testing.assert_array_equal(pack.column("votes"), [[0] * 10, range(10)])
    np.testing.assert_array_equal(pack.column("box_xyxy"), [BOX, np.full(4, np.nan)])
    np.testing.assert_array_equal(pack.column("age"), [3, np.nan])
    assert pack.column("subject").tolist() == ["Ann", ""]
    assert pack.metadata_names == list(metadata)
    assert pack.manifest["layout"] == "flat"


def test_two_faces_of_one_photo_share_their_bytes(tmp_path: Path, memory_source: MemorySource) -> None:
    entries = [Entry(f"{photo}#{face}", "train", str(photo)) for photo in range(3) for face in range(3)]
    import_dataset(made_up(entries), SOURCE, tmp_path / "pack")
    pack = Pack(tmp_path / "pack")
    length = pack.column("length")[::3]
    assert pack.column("offset").tolist() == np.repeat(np.cumsum(length) - length, 3).tolist()
    assert [pack.image_bytes(row) for row in range(9)] == [png(row // 3) for row in range(9)]


def test_left_out_and_warnings_reach_the_report(tmp_path: Path, memory_source: MemorySource) -> None:
    listing = Listing("made up", "none", ())

    def entries() -> Iterator[Entry]:
        yield Entry("a", "train", "0", label="fear")
        listing.warnings.append("a warning at the end")
        listing.left_out.update({"without a face": 3, "uncertain": 1})
        memory_source.warnings.append("left out 'b'")

    listing.entries = entries()
    report = import_dataset(lambda _: listing, SOURCE, tmp_path / "pack")
    assert report.left_out == {"without a face": 3, "uncertain": 1}
    assert report.warnings == ("left out 'b'", "a warning at the end")
    assert Pack(tmp_path / "pack").manifest["left_out"] == report.left_out


KNOWN_LABELS = {"label": {"train": KnownCount(3, {"fear": 2, "anger": 1}), "test": KnownCount(1)}}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["fear", "fear", "anger"], []),
        (["fear", "anger", "anger"], ["fear 1 not 2, anger 2 not 1"]),
        (["fear", "fear", "anger", "sadness"], ["total 4 not 3"]),
        (["fear", None, "anger"], ["total 2 not 3, fear 1 not 2"]),
    ],
)
def test_differing_counts_are_named(
    tmp_path: Path, memory_source: MemorySource, labels: list[str | None], expected: list[str]
) -> None:
    entries = [Entry(f"{k}", "train", f"{k}", label=label) for k, label in enumerate(labels)]
    report = import_dataset(made_up(entries, known=KNOWN_LABELS), SOURCE, tmp_path / "pack")
    start = "counts differ from the known made up (label, train): "
    no_test = "made up: no images of the split test, a complete copy has 1"
    assert sorted(report.warnings) == sorted([no_test, *(start + line for line in expected)])


def test_dropped_leaks_count_for_the_known_counts(tmp_path: Path, memory_source: MemorySource) -> None:
    entries = [
        Entry("a", "train", "0", label="fear"),
        Entry("b", "train", "1", label="fear"),
        Entry("c", "train", "2", label="anger"),
        Entry("d", "test", "1", label="fear"),
    ]
    options = ImportOptions(drop_leaks=True)
    report = import_dataset(made_up(entries, known=KNOWN_LABELS), SOURCE, tmp_path / "pack", options)
    assert report.images == {"train": 2, "test": 1}
    assert (report.leaks_found, report.leaks_dropped) == ({"test in train": 1}, 1)
    assert report.warnings == ()
    assert sums(report.counts) == {"label": {"train": 2, "test": 1}}


def test_names_twice_in_a_split_are_refused_before_an_image_is_read(
    tmp_path: Path, memory_source: MemorySource
) -> None:
    entries = [Entry("a", "train", "0"), Entry("b", "train", "1"), Entry("a", "train", "2"), Entry("a", "test", "3")]
    with pytest.raises(NkfError, match=r"^made up: train: 1 names come twice, such as a$"):
        import_dataset(made_up(entries), SOURCE, tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []
    assert memory_source.read_members == []


def people(count: int) -> list[Entry]:
    """Pictures of people, four each; each class once a person, and a copy of picture 0 under another name."""
    labels = ("fear", "anger", "sadness", "neutral")
    entries = [
        Entry(f"{k}", "train", f"{k}", label=labels[k % 4], metadata={"subject": f"{k // 4}"}) for k in range(count)
    ]
    entries.append(Entry("copy", "train", "0", label="fear", metadata={"subject": "another"}))
    return [*entries, Entry("last", "test", "9999", label="fear")]


def test_valid_is_carved_out_of_train(tmp_path: Path, memory_source: MemorySource) -> None:
    known = {"label": {"train": KnownCount(81, {"fear": 21, "anger": 20, "sadness": 20, "neutral": 20})}}
    listed = made_up(people(80), known=known, metadata={"subject": "text"})
    options = ImportOptions(valid_share=0.25, seed=3)
    report = import_dataset(listed, SOURCE, tmp_path / "pack", options)
    pack = Pack(tmp_path / "pack")
    assert report.warnings == ()
    assert report.splits_as_known == ("train",)
    assert differences(pack) == []
    assert (
        report.images
        == pack.manifest["images_by_split"]
        == {"train": 81 - report.images["valid"], "valid": report.images["valid"], "test": 1}
    )
    assert 16 <= report.images["valid"] <= 24
    valid = Counter(pack.column("label")[pack.rows("valid")].tolist())
    assert max(valid.values()) - min(valid.values()) <= 1
    assert sums(report.counts)["label"] == report.images
    splits_of: dict[str, set[str]] = {}
    for subject, split in zip(pack.column("subject").tolist(), pack.splits.tolist(), strict=True):
        splits_of.setdefault(subject, set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    of_name = dict(zip(pack.names.tolist(), pack.splits.tolist(), strict=True))
    assert of_name["copy"] == of_name["0"]
    assert of_name["last"] == "test"
    assert report.leaks_found["valid in train"] == 0
    assert pack.manifest["valid_carved"] == {"share": 0.25, "seed": 3}


def test_the_seed_decides_what_is_carved(tmp_path: Path, memory_source: MemorySource) -> None:
    listed = made_up(people(80), metadata={"subject": "text"})
    splits = []
    for number, seed in enumerate([0, 0, 1]):
        out = tmp_path / f"pack{number}"
        import_dataset(listed, SOURCE, out, ImportOptions(valid_share=0.25, seed=seed))
        splits.append(Pack(out).splits.tolist())
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_unusable_valid_share(tmp_path: Path, share: float) -> None:
    with pytest.raises(NkfError, match=r"^valid_share .*: expected a share from 0 to below 1$"):
        import_dataset(list_ferplus, SOURCE, tmp_path / "pack", ImportOptions(valid_share=share))


def test_valid_is_not_carved_where_there_is_one(tmp_path: Path, memory_source: MemorySource) -> None:
    entries = [Entry("a", "train", "0"), Entry("b", "train", "1"), Entry("c", "valid", "2")]
    with pytest.raises(NkfError, match=r": has a valid split of its own; leave out valid_share$"):
        import_dataset(made_up(entries), SOURCE, tmp_path / "pack", ImportOptions(valid_share=0.5))
    assert memory_source.read_members == []
    import_dataset(made_up(()), SOURCE, tmp_path / "pack")  # is not listed again
    assert Pack(tmp_path / "pack").manifest["images_by_split"] == {"train": 2, "valid": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "pack"]


class CountedBytes(bytes):
    """Image files that count how many of them are in memory."""

    alive = most = 0

    def __init__(self, *_: Any) -> None:
        CountedBytes.alive += 1
        CountedBytes.most = max(CountedBytes.most, CountedBytes.alive)

    def __del__(self) -> None:
        CountedBytes.alive -= 1


def test_memory_does_not_grow_with_the_number_of_images(
    tmp_path: Path, memory_source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedBytes, "most", 0)
    data = [png(number) for number in range(7)]
    memory_source.data = lambda member: CountedBytes(data[int(member) % 7])
    pictures: list[weakref.ref[Any]] = []
    most = [0]

    def find(images: Sequence[Any], _: Sequence[Any], __: str) -> list[Points | None]:
        pictures[:] = [picture for picture in pictures if picture() is not None]
        pictures.extend(weakref.ref(image) for image in images)
        most[0] = max(most[0], len(pictures))
        return [None] * len(images)

    entries = (Entry(f"{number}", "train", f"{number}") for number in range(3000))
    report = import_dataset(made_up(entries), SOURCE, tmp_path / "pack", ImportOptions(find_faces=find))
    assert report.images == {"train": 3000}
    most_at_once = importers.READ_AHEAD + importers.THREADS
    assert 1 < CountedBytes.most <= most_at_once
    assert 1 < most[0] <= most_at_once
    assert CountedBytes.alive == 0
