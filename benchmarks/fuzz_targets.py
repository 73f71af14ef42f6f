"""What `benchmarks/fuzz.py` feeds with broken files: every reader that a user's file reaches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_files as files
import numpy as np

from nkf.ablate import Measured, read_damage
from nkf.ablation_grid import load_grid
from nkf.config import load_config, override
from nkf.data.counts import read_md5_list
from nkf.data.formats.affectnet import list_affectnet
from nkf.data.formats.ckplus import list_ckplus
from nkf.data.formats.expw import list_expw
from nkf.data.formats.faces import list_faces
from nkf.data.formats.ferplus import list_ferplus
from nkf.data.formats.rafdb import list_rafdb
from nkf.data.formats.table import list_table
from nkf.data.labels import EXPRESSIONS
from nkf.data.listing import Listing
from nkf.data.pack import Pack
from nkf.data.sources import Source, open_source
from nkf.data.subsets import read_subsets
from nkf.data.teacher import TeacherLandmarks
from nkf.data.texts import print_pack
from nkf.export import read_calibration, read_figures
from nkf.images import decode_image
from nkf.run_log import learning, training_seconds
from nkf.run_report import read_log
from nkf.runtime import load_fan
from nkf.soft_labels import read_soft_labels


@dataclass(frozen=True)
class Target:
    """A reader of files.

    Attributes:
        prepare: writes good files into a folder.
        fuzzed: which of these are broken, by their names in the folder; one at a time.
        read: reads the folder as users do, given it and the file that was broken.
    """

    prepare: Callable[[Path], None]
    fuzzed: tuple[str, ...]
    read: Callable[[Path, Path], object]


def of_one_file(name: str, content: str, read: Callable[[Path, Path], object]) -> Target:
    return Target(lambda folder: files.write(folder, {name: content}), (name,), read)


def read_picture(_: Path, file: Path) -> None:
    data = file.read_bytes()
    frame = data[-1] % 3 if file.name.startswith("moving") and data else 0
    image = decode_image(data, file.name, frame=frame)
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.size


def read_settings(_: Path, file: Path) -> None:
    text = file.read_bytes().decode(errors="replace")
    override(load_config(file.with_name("config.yaml")), text.split("\n"))


def read_run(folder: Path, _: Path) -> None:
    for read in (read_log, training_seconds, learning):
        read(folder)


def read_measured(folder: Path, _: Path) -> None:
    read_damage(folder / "noise.json")
    Measured.read(folder / "measured.npz")


def read_pack(folder: Path, _: Path) -> None:
    pack = Pack(folder / "pack")
    print_pack(pack)
    list(pack.table.rows())
    for name in pack.table.columns:
        pack.column(name)
    pack.labels()
    pack.distributions()
    for row in range(len(pack)):
        pack.image(row)


def read_lists(folder: Path, _: Path) -> None:
    TeacherLandmarks(folder / "t.npz").columns()
    read_md5_list(folder / "md5.txt")
    read_subsets({"one": folder / "subset.txt"})


def lister(list_dataset: Callable[[Source], Listing]) -> Callable[[Path, Path], None]:
    def read(folder: Path, _: Path) -> None:
        with open_source(folder / "set") as source:
            list(list_dataset(source).entries)

    return read


def read_zip(folder: Path, _: Path) -> None:
    with open_source(folder / "set.zip") as source:
        for entry in list_faces(source).entries:
            source.read(entry.member)


def read_tables(folder: Path, file: Path) -> None:
    with open_source(folder) as source:
        list(list_table(source, file.name).entries)


ANNOTATIONS = tuple(f"set/val_set/annotations/1_{name}.npy" for name in ("exp", "val", "aro", "lnd"))
LISTS = "set/Manually_Annotated_file_lists/"
TARGETS: dict[str, Target] = {
    "images": Target(lambda folder: files.write(folder, dict(files.PICTURES)), tuple(files.PICTURES), read_picture),
    "config": of_one_file("c.yaml", files.CONFIG, lambda _, file: load_config(file)),
    "settings": Target(
        lambda folder: files.write(folder, {"config.yaml": files.CONFIG, "s.txt": files.SETTINGS}),
        ("s.txt",),
        read_settings,
    ),
    "grid": of_one_file("g.yaml", files.GRID, lambda _, file: load_grid(file)),
    "run log": of_one_file("log.jsonl", files.LOG, read_run),
    "ablation": Target(files.write_measured, ("noise.json", "measured.npz"), read_measured),
    "calibration": of_one_file("c.json", files.CALIBRATION, lambda _, file: read_calibration(file, "m")),
    "evaluation": of_one_file("e.json", files.EVALUATION, lambda _, file: read_figures(file, "m")),
    "pack": Target(files.write_pack, ("pack/manifest.json", "pack/rows.arrow", "pack/images-00000.bin"), read_pack),
    "soft labels": Target(
        files.write_soft_labels,
        ("soft.safetensors",),
        lambda folder, file: read_soft_labels(file, Pack(folder / "pack"), EXPRESSIONS),
    ),
    "lists": Target(files.write_teacher, ("t.npz", "md5.txt", "subset.txt"), read_lists),
    "torch weights": Target(
        files.write_torch, ("a.safetensors", "a.json"), lambda folder, _: load_fan(str(folder / "a.safetensors"), "cpu")
    ),
    "onnx weights": Target(
        files.write_onnx, ("a.onnx", "a.json"), lambda folder, _: load_fan(str(folder / "a.onnx"), "cpu")
    ),
    "zip": Target(files.write_zip, ("set.zip",), read_zip),
    "table": Target(files.write_tables, ("t.csv", "t.tsv", "t.parquet", "votes.csv"), read_tables),
    "ferplus": Target(files.write_ferplus, ("set/FER2013Train/label.csv",), lister(list_ferplus)),
    "fer2013": Target(files.write_fer2013, ("set/fer2013.csv", "set/fer2013new.csv"), lister(list_ferplus)),
    "rafdb": Target(
        files.write_rafdb,
        (
            "set/EmoLabel/list_patition_label.txt",
            "set/Annotation/manual/train_00001_manu_attri.txt",
            "set/Annotation/boundingbox/train_00001_boundingbox.txt",
        ),
        lister(list_rafdb),
    ),
    "affectnet": Target(
        files.write_affectnet, (f"{LISTS}training.csv", f"{LISTS}validation.csv"), lister(list_affectnet)
    ),
    "affectnet 2": Target(files.write_second_affectnet, ANNOTATIONS, lister(list_affectnet)),
    "expw": Target(files.write_expw, ("set/label/label.lst",), lister(list_expw)),
    "ckplus": Target(
        files.write_ckplus,
        (
            "set/Emotion/S005/001/S005_001_00000005_emotion.txt",
            "set/Landmarks/S005/001/S005_001_00000005_landmarks.txt",
        ),
        lister(list_ckplus),
    ),
}  # fmt: skip
