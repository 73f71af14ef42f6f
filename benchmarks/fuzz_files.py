"""Good files of every kind that `benchmarks/fuzz.py` starts from, and nasty ones."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nkf.ablate import Measured
from nkf.data.labels import EXPRESSIONS
from nkf.data.pack import Pack, Sample
from nkf.data.pack_writer import PackWriter
from nkf.geometry import MEAN_SHAPE
from nkf.weights import WeightsInfo

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "DIB", "JPEG2000", "PPM", "QOI", "TGA")
MOVING = ("PNG", "GIF", "WEBP", "TIFF", "AVIF", "MPO")

# Where a search by small changes would hardly get: put in the place of every file.
NASTY: tuple[bytes, ...] = (
    b"",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b"0",
    b'""',
    b"\n\n",
    b"\r",
    b"NaN\n",
    b"[" * 3_000,
    b'{"a":' * 3_000,
    b"- " * 3_000,
    b"9" * 5_000,
    b"1e999",
    b"-Infinity",
    b"a: &a [*a]\n",
    b"&a {name: *a, task: *a, base: *a, rows: *a}\n",
    b"base: &a {network: *a}\nrepeats: [{seed: 0}, {seed: 1}]\nrows: {a: &b {network: *b}, b: {}}\n"
    b"studies: {s: {title: t, reference: a, rows: [a, b]}}\n",
    b"l: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"m%d: &%c [%s]\n" % (k, 98 + k, b",".join([b"*%c" % (97 + k)] * 10)) for k in range(9))
    + b"name: *j\n",
    b"name: 2001-99-99\n",
    b"name: !!bool x\n",
    b"name: !!int ''\n",
    b"name: !!timestamp x\n",
    b"name: !!float x\n",
    b"name: !!python/object:os.system x\n",
    b"? [a]\n: b\n",
    b'base: "a\\0b"\n',
    b'{"step": Infinity, "time": 1}\n' * 3,
    b'{"step": 1, "time": 1, "loss": "x"}\n' * 3,
    b'{"step": 1, "time": 1, "loss": null}\n{"step": 2, "time": 2, "loss": {}}\n',
    b"[1]\n" * 3,
    b'{"step": 1e308, "time": NaN}\n{"step": 2, "time": []}\n',
    b'{"step": 1, "time": 1}\n' * 3,
    b'{"model": "m"}',
    b'{"model": []}',
    b'{"accuracy": {"clean": Infinity}}',
    b'{"accuracy": [1]}',
)

CONFIG = "name: a\ntask: expression\ndata: [pack]\nnetwork: {backbone: tiny, strides: [8, 16]}\nepochs: 1e-1\n"
GRID = (
    "base: {task: expression, data: [p]}\nrepeats: [{fold: 0, seed: 0}, {seed: 1}]\n"
    "rows: {a: {}, b: {network: {sigma: 0.1}}}\n"
    "studies: {one: {title: T, reference: a, rows: [a, b]}}\n"
)
SETTINGS = "network.sigma=0.1\nprotocol=rafdb\nmix={probability: 1}\nseed=3"
FIGURES = dict.fromkeys(
    ("data", "split", "rule", "landmarks", "n", "date", "method", "before", "after", "target_accuracy",
     "at_min_confidence", "accuracy", "accuracy_ci95", "mean_class_accuracy", "recall_by_class", "confusion",
     "accuracy_leakfree", "accuracy_leakfree_ci95", "n_leakfree", "ece", "nll", "brier", "machine"), 1
)  # fmt: skip
STEPS = [{"step": step, "time": step * 0.5, "loss": 1.0 / step} for step in (10, 20, 30)]
LOG = "".join(json.dumps(row) + "\n" for row in (*STEPS, {"step": 30, "time": 20.0, "accuracy": 0.5, "epoch": 1.0}))
PARAMETERS = {"model": "m", "temperature": 1.5, "class_biases": [0.5] * 8, "min_confidence": 0.5}
CALIBRATION = json.dumps(FIGURES | PARAMETERS)
EVALUATION = json.dumps(FIGURES | {"model": "m"})


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def make_pictures() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (9, 7, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    pictures = {name: encoded(colour, name) for name in FORMATS}
    pictures |= {f"exif-{name}": encoded(colour, name, exif=exif) for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")}
    frames = [Image.new("RGB", colour.size, tone) for tone in ("lime", "blue")]
    pictures |= {f"moving-{name}": encoded(colour, name, save_all=True, append_images=frames) for name in MOVING}
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "CMYK", "YCbCr", "LAB"):
        picture = Image.new(mode, colour.size) if mode in ("I;16", "LAB") else colour.convert(mode)
        for name in ("PNG", "TIFF", "JPEG", "TGA", "WEBP"):
            try:
                pictures[f"{mode.replace(';', '')}-{name}"] = encoded(picture, name)
            except (OSError, ValueError, KeyError):  # not every format knows every mode
                continue
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        pictures[f"{packing}-TIFF"] = encoded(colour, "TIFF", compression=packing)
    pictures["group4-TIFF"] = encoded(colour.convert("1"), "TIFF", compression="group4")
    pictures["progressive-JPEG"] = encoded(colour, "JPEG", progressive=True)
    pictures["PGM"] = b"P5 3 1 65535\n" + bytes(6)
    return pictures


PICTURES = make_pictures()


def write_measured(folder: Path) -> None:
    Measured(np.arange(3), np.zeros(3, np.int64), np.full((3, 8), 0.125, np.float32)).write(folder / "measured.npz")
    write(folder, {"noise.json": json.dumps({"accuracy": {"clean": 0.5}})})


def write_pack(folder: Path) -> None:
    with PackWriter(folder / "pack", {"dataset": "made up"}) as pack:
        for number, split in enumerate(("train", "train", "valid", "test")):
            votes = np.eye(10, dtype=np.uint8)[number] * 9 if number else None
            image = encoded(Image.new("RGB", (8, 6), (number, 0, 0)), "PNG")
            points = (MEAN_SHAPE * 8).astype(np.float32) if number else None
            pack.add(Sample(f"{number}.png", split, image, label="fear", votes=votes, landmarks_px=points))


def write_soft_labels(folder: Path) -> None:
    from safetensors.numpy import save_file

    write_pack(folder)
    rows = Pack(folder / "pack").manifest["rows_sha256"]
    metadata = {"classes": json.dumps(EXPRESSIONS), "models": '["m"]', "rows_sha256": rows}
    save_file({"probabilities": np.full((4, 8), 0.125, np.float16)}, folder / "soft.safetensors", metadata)


def write_teacher(folder: Path) -> None:
    points = np.zeros((2, 68, 2), np.float32)
    np.savez_compressed(folder / "t.npz", name=np.array(["a", "b"]), found=np.array([True, False]), landmarks68=points)
    write(folder, {"md5.txt": "0" * 32 + "\n", "subset.txt": "# names\na.png\nb.png, 3\n"})


def sidecar(name: str, architecture: dict[str, Any]) -> WeightsInfo:
    return WeightsInfo(
        name=name, kind="fan", architecture=architecture, input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3,
        parameters=1, nkf_version="0",
    )  # fmt: skip


def write_torch(folder: Path) -> None:
    from nkf.models import create_model, save_model

    network = create_model("fan", {"backbone": "tiny"})
    save_model(network, folder / "a.safetensors", sidecar("a", {"backbone": "tiny"}))
    content = json.loads((folder / "a.json").read_text())  # without the hash, which would keep all damage out
    write(folder, {"a.json": json.dumps(content | {"sha256": {}})})


def write_onnx(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    crops = helper.make_tensor_value_info("crops", TensorProto.FLOAT, ["batch", 3, 32, 32])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None, None])
        for name in ("landmarks_px", "spread_px")
    ]
    nodes = [helper.make_node("Flatten", ["crops"], [value.name]) for value in outputs]
    graph = helper.make_graph(nodes, "fan", [crops], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "a.onnx")
    sidecar("a", {"backbone": "tiny"}).write(folder / "a.json")


def write_ferplus(folder: Path) -> None:
    row = 'fer1.png,"(0, 0, 48, 48)",1,2,3,4,0,0,0,0,0,0\nfer2.png,"(0, 0, 48, 48)",2,0,0,0,0,0,8,0,0,0\n'
    write(folder, {"set/FER2013Train/label.csv": row, "set/FER2013Train/fer1.png": b""})


def write_fer2013(folder: Path) -> None:
    pixels = f"emotion,pixels,Usage\n0,{' '.join(['0'] * 2304)},Training\n"
    votes = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
    write(
        folder,
        {"set/fer2013.csv": pixels, "set/fer2013new.csv": votes + "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0\n"},
    )


def write_rafdb(folder: Path) -> None:
    points = "40.5 50.25\n61 50\n50 60\n44 70\n58 70.125\n"
    write(folder, {
        "set/EmoLabel/list_patition_label.txt": "train_00001.jpg 5\ntest_0001.jpg 7\n",
        "set/Annotation/manual/train_00001_manu_attri.txt": f"{points}0\n1\n2\n",
        "set/Annotation/boundingbox/train_00001_boundingbox.txt": "1 2 9.5 11 \n",
        "set/Image/original/train_00001.jpg": b"", "set/Image/original/test_0001.jpg": b"",
    })  # fmt: skip


def write_affectnet(folder: Path) -> None:
    points = ";".join(["1.5"] * 136)
    row = f"1/a.jpg,3,4,10,20,{points},1,0.5,-0.25\n"
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    write(folder, {
        "set/Manually_Annotated_file_lists/training.csv": header + row,
        "set/Manually_Annotated_file_lists/validation.csv": row,
        "set/Manually_Annotated/Manually_Annotated_Images/1/a.jpg": b"",
    })  # fmt: skip


def write_second_affectnet(folder: Path) -> None:
    for name, array in (("exp", np.array("1")), ("val", np.array("0.5")), ("aro", np.array("-0.5"))):
        file = folder / f"set/val_set/annotations/1_{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, array)
    np.save(folder / "set/val_set/annotations/1_lnd.npy", np.zeros(136))
    write(folder, {"set/val_set/images/1.jpg": b""})


def write_expw(folder: Path) -> None:
    row = "a.jpg 0 10 20 90 80 55.5 3\na.jpg 1 10 20 90 80 5 6\n"
    write(folder, {"set/label/label.lst": row, "set/image/origin/a.jpg": b""})


def write_ckplus(folder: Path) -> None:
    files: dict[str, str | bytes] = {
        f"set/cohn-kanade-images/S005/001/S005_001_0000000{frame}.png": b"" for frame in range(1, 6)
    }
    files["set/Emotion/S005/001/S005_001_00000005_emotion.txt"] = "   3.0000000e+00\n"
    files["set/Landmarks/S005/001/S005_001_00000005_landmarks.txt"] = "   1.5e+00   2.5e+00\n" * 68
    write(folder, files)


def write_tables(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "path": ["a.png", "b.png"], "label": ["fear", "anger"], "split": ["train", "test"], "x0": ["1", "2"],
        "y0": ["1", "2"], "x1": ["8", "9"], "y1": ["8", "9"], "age": ["20", ""], "subject": ["s1", "s2"],
    }  # fmt: skip
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t")):
        with (folder / name).open("w", newline="") as stream:
            csv.writer(stream, delimiter=delimiter).writerows([list(columns), *zip(*columns.values(), strict=True)])
    pyarrow.parquet.write_table(pa.table(columns), folder / "t.parquet")
    write(folder, {"votes.csv": "path,neutral,fear,contempt,unknown\na.png,5,3,0,2\n"})


def write_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("faces/a.png", PICTURES["PNG"])
        archive.writestr("faces/b.jpg", PICTURES["JPEG"])
