"""Whether `nkf predict` gets through a folder as people have them, and through being killed on the way.

    python benchmarks/mixed_folder.py --out runs/mixed --json benchmarks/results/mixed_folder.json --check

Makes a folder of pictures in many formats, sizes and modes, in subfolders, with a face (cut, mirrored and tinted from
``examples/eileen_collins.jpg``) and without; one in twenty is broken, each kind at least once. Beside it ``truth.csv``
says what each file is. The same seed makes the same folder. With ``--check`` it is then predicted, and looked at:

* every file has its place in JSON lines and in the table, in order; exactly the broken ones have status "error", and
  each of these one line on standard error, where nothing else is; the exit code is 1;
* a run that gets SIGKILL at random moments, and is started with ``--resume`` each time, ends in the same bytes;
* peak memory does not grow with the number of files: all of them against a tenth (median of three runs), and against
  all of them three times over.

Exit code 1 if one of the first two does not hold.
"""

import argparse
import csv
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from nkf.files import replacing
from nkf.images import read_image
from nkf.machine import machine

PHOTO = Path("examples/eileen_collins.jpg")
SHARE_BROKEN, SHARE_WITH_FACE = 0.05, 0.6
FORMATS = {  # ending -> weight, and the modes that it is written in
    ".jpg": (40, ("RGB", "RGB", "RGB", "L", "CMYK")),
    ".JPEG": (5, ("RGB",)),
    ".png": (15, ("RGB", "L", "RGBA", "LA", "P", "I;16", "1")),
    ".webp": (10, ("RGB", "RGBA")),
    ".gif": (5, ("P", "L")),
    ".bmp": (5, ("RGB", "L", "P")),
    ".tif": (5, ("RGB", "L", "CMYK", "RGBA", "I;16", "YCbCr")),
    ".avif": (3, ("RGB", "RGBA")),
    ".jp2": (3, ("RGB", "L")),
    ".ppm": (3, ("RGB", "L")),
    ".tga": (3, ("RGB", "RGBA", "L")),
    ".qoi": (3, ("RGB", "RGBA")),
}
FOLDERS = ("", "2019", "2019/summer", "2020 (new)", "2020 (new)/Ünïcode ☀", "scans.jpg", "z/y/x")
POLL_SECONDS = 0.02
SMALL_SHARE = 10  # of so many files, one is in the runs that memory is compared with
LARGE_TIMES = 3  # so often the list of all files is given at once, for the same comparison
SMALL_RUNS = 3  # of these, whose median counts: the peak differs by a tenth from run to run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/mixed"), help="holds photos/, truth.csv and results")
    parser.add_argument("--check", action="store_true", help="predict, and look at what comes out")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--nkf", type=Path, default=Path(sys.executable).with_name("nkf"))
    parser.add_argument("--json", type=Path, help="where to write the result of the check")
    options = parser.parse_args()
    folder = options.out / "photos"
    truth = make_folder(folder, options.files, options.seed)
    with (options.out / "truth.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["path", "broken", "face", "mode"])
        writer.writeheader()
        writer.writerows(truth)
    print(f"{folder}: {len(truth):,} files, {sum(bool(row['broken']) for row in truth):,} of them broken")
    if options.check:
        result = check(folder, truth, options)
        print(json.dumps(result, indent=1))
        if options.json:
            with replacing(options.json) as file:
                file.write_text(json.dumps(result, indent=1) + "\n")
        sys.exit(0 if all(result["checks"].values()) else 1)


# The folder


def make_folder(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Write the files; returns what each one is, in the order in which they are read: name by name in each folder."""
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder}: not empty; remove it, or choose another --out")
    generator = random.Random(seed)
    broken = set(generator.sample(range(count), min(count, max(round(count * SHARE_BROKEN), len(DAMAGES)))))
    portrait = Image.fromarray(read_image(PHOTO))
    damages = list(DAMAGES)
    truth = []
    for number in range(count):
        place = folder / generator.choice(FOLDERS)
        place.mkdir(parents=True, exist_ok=True)
        if number in broken:
            damage = damages[len(broken & set(range(number))) % len(damages)]
            file = place / f"{number:05} {damage}{DAMAGES[damage][0]}"
            DAMAGES[damage][1](file, generator)
            truth.append({"path": file.relative_to(folder), "broken": damage, "face": "", "mode": ""})
            continue
        ending = generator.choices(list(FORMATS), [weight for weight, _ in FORMATS.values()])[0]
        mode, face = generator.choice(FORMATS[ending][1]), generator.random() < SHARE_WITH_FACE
        file = place / f"IMG_{number:05}{ending}"
        save(vary(portrait, generator) if face else pattern(generator), file, mode, generator)
        truth.append({"path": file.relative_to(folder), "broken": "", "face": "yes" if face else "no", "mode": mode})
    return sorted(truth, key=lambda row: row["path"].parts)


def vary(portrait: Image.Image, generator: random.Random) -> Image.Image:
    """The portrait, cut around the face at random, mirrored, tinted, small."""
    box = [generator.uniform(0, 90), generator.uniform(0, 60), generator.uniform(400, 512), generator.uniform(380, 512)]
    picture = portrait.crop(tuple(map(round, box)))  # type: ignore[arg-type]
    if generator.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = generator.uniform(0.25, 0.9)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    picture = ImageEnhance.Brightness(picture).enhance(generator.uniform(0.6, 1.3))
    return ImageEnhance.Color(picture).enhance(generator.uniform(0, 1.6))


def pattern(generator: random.Random) -> Image.Image:
    """A picture without a face: blurred noise and a gradient."""
    noise = np.random.default_rng(generator.getrandbits(32))
    height, width = (generator.randrange(48, 320) for _ in range(2))
    waves = noise.integers(0, 256, (height, width, 3), np.uint8)
    gradient = np.linspace(0, 128, width)[None, :, None] + np.zeros((height, width, 3))
    blurred = Image.fromarray(waves).filter(ImageFilter.GaussianBlur(generator.uniform(1, 8)))
    return Image.fromarray(((np.asarray(blurred) + gradient) / 2).astype(np.uint8))


def save(picture: Image.Image, file: Path, mode: str, generator: random.Random) -> None:
    """Write a picture in a mode; JPEG, WebP and AVIF may be stored turned, and say so in EXIF."""
    options: dict[str, Any] = {}
    if file.suffix.lower() in (".jpg", ".jpeg", ".webp", ".avif") and generator.random() < 0.3:
        exif = Image.Exif()
        exif[274] = 6
        picture, options = picture.transpose(Image.Transpose.ROTATE_90), {"exif": exif}
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    picture.save(file, **options)


# What is broken


def encoded(file_format: str) -> bytearray:
    stream = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    picture.save(stream, file_format)
    return bytearray(stream.getvalue())


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bomb(file: Path, _: random.Random) -> None:
    """A PNG of 30,000x30,000 pixels in a hundred bytes."""
    header = b"".join(side.to_bytes(4, "big") for side in (30_000, 30_000)) + bytes([8, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


def wrong_compression(file: Path, generator: random.Random) -> None:
    """A PNG whose rows are noise, not a zlib stream; the chunk's own checksum is right."""
    header = (64).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", generator.randbytes(500)), (b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))


def wrong_beginning(file: Path, _: random.Random) -> None:
    file.write_bytes(b"\xde\xad\xbe\xef" + encoded("JPEG")[4:])


DAMAGES: dict[str, tuple[str, Callable[[Path, random.Random], object]]] = {
    "empty": (".jpg", lambda file, _: file.write_bytes(b"")),
    "cut off": (".jpg", lambda file, _: file.write_bytes(encoded("JPEG")[:1500])),
    "cut off too": (".png", lambda file, _: file.write_bytes(encoded("PNG")[:3000])),
    "text": (".jpg", lambda file, _: file.write_text("Dear Sir or Madam,\nplease find attached\n")),
    "wrong beginning": (".jpeg", wrong_beginning),
    "bomb": (".png", bomb),
    "link to nothing": (".jpg", lambda file, _: file.symlink_to("not there.jpg")),
    "wrong compression": (".png", wrong_compression),
    "noise after the header": (".tif", lambda file, rng: file.write_bytes(b"II*\0\x08\0\0\0" + rng.randbytes(900))),
    "error page": (".png", lambda file, _: file.write_text("<!DOCTYPE html>\n<title>404 Not Found</title>\n")),
    "zeros": (".webp", lambda file, _: file.write_bytes(bytes(5000))),
    "heic": (".heic", lambda file, rng: file.write_bytes(b"\0\0\0\x18ftypheic" + rng.randbytes(500))),
}


# The check


@dataclass
class Run:
    """A process that has ended: exit code, lines on standard error, seconds, and MB of peak memory."""

    code: int
    errors: list[str]
    seconds: float
    peak_mb: float


def run(command: list[str], names: bytes = b"") -> Run:
    begun = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(names)
        process.stdin.close()
        errors = process.stderr.read().decode().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Run(process.returncode, errors, time.monotonic() - begun, usage.ru_maxrss / 1024)


def check(folder: Path, truth: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Predict the folder unbroken, killed again and again, and in part."""
    out: Path = options.out
    whole = run(command(options.nkf, folder, out / "whole"))
    documents = [json.loads(line) for line in (out / "whole.jsonl").read_text().splitlines()]
    kills = killed_run(command(options.nkf, folder, out / "killed"), out / "killed", len(truth), options)
    few = [str(folder / row["path"]) for row in truth[::SMALL_SHARE]]
    small = [run(command(options.nkf, Path("-"), out / "part"), listed(few)) for _ in range(SMALL_RUNS)]
    small_mb = statistics.median(part.peak_mb for part in small)
    every = [str(folder / row["path"]) for row in truth]
    large = run(command(options.nkf, Path("-"), out / "part"), listed(LARGE_TIMES * every))
    found = Counter((row["face"], len(document["faces"]) > 0) for row, document in zip(truth, documents, strict=False))
    return {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "command": " ".join(["python", "benchmarks/mixed_folder.py", *sys.argv[1:]]),
        "seed": options.seed,
        "files": len(truth),
        "broken": dict(Counter(row["broken"] for row in truth if row["broken"])),
        "seconds": round(whole.seconds, 1),
        "ms_a_file": round(1000 * whole.seconds / len(truth), 1),
        "face_found": {"with a face": found["yes", True], "of": found["yes", True] + found["yes", False],
                       "without a face": found["no", True], "of these": found["no", True] + found["no", False]},
        "kills": kills,
        "peak_mb": {
            str(len(few)): round(small_mb),
            str(len(truth)): round(whole.peak_mb),
            str(LARGE_TIMES * len(truth)): round(large.peak_mb),
        },
        "peak_ratio": round(whole.peak_mb / small_mb, 3),
        "peak_ratio_of_more": round(large.peak_mb / whole.peak_mb, 3),
        "checks": look_at(whole, documents, out / "whole.csv", folder, truth)
        | {
            f"same {kind} after kills": (out / f"killed.{kind}").read_bytes() == (out / f"whole.{kind}").read_bytes()
            for kind in ("jsonl", "csv")
        },
    }  # fmt: skip


def listed(files: list[str]) -> bytes:
    """A list for standard input."""
    return "\0".join(files).encode() + b"\0"


def command(nkf: Path, source: Path, out: Path) -> list[str]:
    return [str(nkf), "predict", str(source), "--jsonl", f"{out}.jsonl", "--csv", f"{out}.csv"]


def look_at(
    whole: Run, documents: list[dict[str, Any]], table: Path, folder: Path, truth: list[dict[str, Any]]
) -> dict[str, bool]:
    """Compare what came out with what the folder holds."""
    paths = [str(folder / row["path"]) for row in truth]
    broken = [path for path, row in zip(paths, truth, strict=True) if row["broken"]]
    with table.open(newline="", encoding="utf-8") as stream:
        rows = [row["path"] for row in csv.DictReader(stream)]
    expected = [document["path"] for document in documents for _ in range(max(1, len(document["faces"])))]
    return {
        "exit code 1": whole.code == 1,
        "every file in order": [document["path"] for document in documents] == paths,
        "exactly the broken are errors": broken == [d["path"] for d in documents if d["status"] == "error"],
        "every error has a message": all(d["status"] != "error" or d.get("message") for d in documents),
        "rows of the table in order": rows == expected,
        "one line on standard error each": len(whole.errors) == len(broken)
        and all(path in line for path, line in zip(broken, whole.errors, strict=True)),
    }


def killed_run(arguments: list[str], out: Path, count: int, options: argparse.Namespace) -> list[dict[str, int]]:
    """Start, and kill when a number of files drawn at random is done and a random moment later; at last finish."""
    for file in out.parent.glob(f"{out.name}.*"):
        file.unlink()
    generator, journal = random.Random(options.seed), Path(f"{out}.jsonl.journal")
    kills = []
    for target in sorted(generator.randrange(count * 9 // 10) for _ in range(options.kills)):
        process = subprocess.Popen([*arguments, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and done_in(journal) <= target:
            time.sleep(POLL_SECONDS)
        time.sleep(generator.uniform(0, 0.5))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break  # it was done before
        kills.append({"drawn": target, "done": done_in(journal)})
    last = run([*arguments, "--resume"])
    if last.code != 1:
        sys.exit(f"the run that was killed cannot be finished: {last.errors}")
    return kills


def done_in(journal: Path) -> int:
    """Files that a journal tells of; its first line is about the run."""
    return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0


if __name__ == "__main__":
    main()
