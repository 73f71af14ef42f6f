"""The command ``nkf align``: aligned crops of all faces, and a table of their landmarks."""

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from nkf.cli_files import FreeNames, ImageInputs, InputImage, check_no_input, is_signed, make_folder, signature
from nkf.errors import ImageError, NkfError
from nkf.faces import Face
from nkf.files import real_path, replacing
from nkf.finder import FaceFinder
from nkf.geometry import NUM_LANDMARKS, Matrix, face_transform
from nkf.images import ImageRGB, read_image, warp_similarity
from nkf.progress import track
from nkf.runtime import Device

MIN_SIZE, MAX_SIZE = 8, 4096
MATRIX_COLUMNS = ("m00", "m01", "m02", "m10", "m11", "m12")
LANDMARK_COLUMNS = tuple(f"lm{point:02}_{axis}" for point in range(NUM_LANDMARKS) for axis in "xy")
COLUMNS = (
    *("path", "status", "problems", "face", "crop", "x0", "y0", "x1", "y1", "detection_score", "landmark_spread_px"),
    *MATRIX_COLUMNS,
    *LANDMARK_COLUMNS,
)
_SOFTWARE = "nkf align"  # signs our crops: no other file is ever replaced by one
_HEAD = ",".join(COLUMNS[:5])


def align_all(paths: Sequence[Path], *, size: int, largest: bool, detector: str, device: Device) -> int:
    """Cut the faces out of all inputs, the last path being the folder to write; returns the exit code."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise NkfError(f"size {size}: expected {MIN_SIZE} to {MAX_SIZE} pixels")
    if len(paths) < 2:
        raise NkfError("give image files or folders, and last the folder to write, such as nkf align photos/ aligned")
    *inputs, out = paths
    for folder in (out, out / "crops"):
        if folder.exists() and not folder.is_dir():
            raise NkfError(f"{folder}: a file, expected a folder to write; it is the last argument")
    images = list(ImageInputs(inputs, written={out / "crops": _SOFTWARE}))
    crops = _CropNames(out / "crops", images)
    check_no_input([*crops.first, out / "landmarks.csv"], images)
    _check_foreign(crops.first, out / "landmarks.csv")
    finder = FaceFinder(detector, device=device)
    make_folder(out / "crops")
    counts: Counter[str] = Counter()
    with _table(out / "landmarks.csv") as table:
        for k, image in enumerate(track(images, "aligning", len(images))):
            try:
                image_rgb = read_image(image.file)
                faces = finder(image_rgb)[: 1 if largest else None]
                rows = [_save_face(image_rgb, faces[n], n, size, crops.name(k, n), out) for n in range(len(faces))]
            except ImageError as error:
                rows = [_error_row(str(error))]
            for row in rows or [{"status": "no_face"}]:
                counts[row["status"]] += 1
                table.writerow({"path": str(image.file), **row})
    faces_found = _count(counts["ok"] + counts["low_quality"], "face")
    without, failed = counts["no_face"], counts["error"]
    print(f"{faces_found} in {_count(len(images), 'image')}, {without} without a face, {failed} failed: {out}")
    return int(failed > 0)


def _save_face(image_rgb: ImageRGB, face: Face, index: int, size: int, crop: Path, out: Path) -> dict[str, Any]:
    """Write one crop and return its row; one that cannot be written is an error of its own, the others go on."""
    try:
        crop.parent.mkdir(parents=True, exist_ok=True)
        pixels = warp_similarity(image_rgb, _transform(face, size), size)
        with replacing(crop) as partial:
            Image.fromarray(pixels).save(partial, "PNG", exif=signature(_SOFTWARE))
    except OSError as error:
        return {"face": index, **_error_row(f"{crop}: cannot be written ({error.strerror or error})")}
    return {"face": index, "crop": crop.relative_to(out).as_posix(), **_values(face, size)}


def _transform(face: Face, size: int) -> Matrix:
    """The (2, 3) map from image to crop pixels."""
    assert face.landmarks_px is not None
    return face_transform(face.landmarks_px, face.box_xyxy, size)[0]


def _error_row(message: str) -> dict[str, Any]:
    print("nkf:", message.replace("\n", " "), file=sys.stderr)
    return {"status": "error"}


class _CropNames:
    """Files of the crops: those of the first faces are known before any is written, and checked then."""

    def __init__(self, folder: Path, images: Sequence[InputImage]) -> None:
        self._folder = folder
        self._sources = {real_path(image.file) for image in images}
        self._names = FreeNames(images)
        self.first = [folder / self._names.take(image.stem, ".png") for image in images]

    def name(self, image: int, face: int) -> Path:
        """Name the crop of a face; after the first with a number that no crop, input or foreign file has taken."""
        crop = self.first[image]
        stem = str(crop.relative_to(self._folder).with_suffix(""))
        while face:
            crop = self._folder / self._names.take(stem, ".png")
            if not crop.exists() or (is_signed(crop, _SOFTWARE) and real_path(crop) not in self._sources):
                break
        return crop


def _check_foreign(crops: Sequence[Path], table: Path) -> None:
    if table.exists() and not _is_our_table(table):
        raise NkfError(f"{table}: exists and is no table of nkf align; choose another folder")
    for crop in crops:
        if crop.exists() and not is_signed(crop, _SOFTWARE):
            raise NkfError(f"{crop}: exists and is no crop of nkf align; choose another folder")


def _is_our_table(table: Path) -> bool:
    try:
        with table.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(len(_HEAD)) == _HEAD
    except OSError:
        return False


def _values(face: Face, size: int) -> dict[str, Any]:
    assert face.landmarks_px is not None
    assert face.landmark_spread_px is not None
    return {
        "status": face.status,
        "problems": " ".join(face.problems),
        **dict(zip(("x0", "y0", "x1", "y1"), face.box_xyxy.round(2).tolist(), strict=True)),
        "detection_score": round(face.detection_score, 4),
        "landmark_spread_px": round(float(face.landmark_spread_px.mean()), 2),
        **dict(zip(MATRIX_COLUMNS, _transform(face, size).ravel().tolist(), strict=True)),
        **dict(zip(LANDMARK_COLUMNS, face.landmarks_px.round(2).ravel().tolist(), strict=True)),
    }


@contextmanager
def _table(file: Path) -> Iterator["csv.DictWriter[str]"]:
    # Paths that are not valid Unicode come back as the bytes they were.
    form: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(stack.enter_context(replacing(file)).open("w", **form))
        except OSError as error:
            raise NkfError(f"{file}: cannot be written ({error.strerror})") from error
        rows = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
        rows.writeheader()
        yield rows


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
