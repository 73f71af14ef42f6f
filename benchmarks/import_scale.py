"""Import a synthetic AffectNet of many small files: time, peak memory, and the same pack after being killed.

    python benchmarks/import_scale.py --work /tmp/affectnet --images 3000 30000 300000 --release second --kills 3

The synthetic dataset has the layout of a release (second: for each image four .npy files; first: CSV lists), random
small JPEGs, and random labels. Each import is a process of its own. The one of the largest size is done once more,
killed by SIGKILL after random times, and started again each time; its files are compared with those of the first.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
CLASSES = 8
HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"


def make_jpeg(rng: np.random.Generator) -> bytes:
    """A small picture of its own: coarse noise, enlarged."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    coarse.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def make_second(folder: Path, count: int) -> None:
    """Write ``train_set`` and ``val_set`` of the second release; one image in 75 is of the latter."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / ("val_set" if number % 75 == 0 else "train_set")
        if number < 2:
            (place / "images").mkdir(parents=True)
            (place / "annotations").mkdir()
        (place / f"images/{number}.jpg").write_bytes(make_jpeg(rng))
        values = {
            "exp": np.array(str(rng.integers(CLASSES))),
            "val": np.array(f"{rng.uniform(-1, 1):.4f}"),
            "aro": np.array(f"{rng.uniform(-1, 1):.4f}"),
            "lnd": rng.uniform(0, SIDE, 136),
        }
        for name, value in values.items():
            np.save(place / f"annotations/{number}_{name}.npy", value)


def make_first(folder: Path, count: int) -> None:
    """Write ``Manually_Annotated`` and its lists; one image in 75 is of the validation list."""
    rng = np.random.default_rng(0)
    lists, images = folder / "Manually_Annotated_file_lists", folder / "Manually_Annotated/Manually_Annotated_Images"
    lists.mkdir(parents=True)
    with (lists / "training.csv").open("w") as training, (lists / "validation.csv").open("w") as validation:
        training.write(HEADER)
        for number in range(count):
            name = f"{number % 1000}/{number:032x}.jpg"
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            (images / name).write_bytes(make_jpeg(rng))
            points = ";".join(f"{value:.2f}" for value in rng.uniform(0, SIDE, 136))
            valence, arousal = rng.uniform(-1, 1, 2)
            row = f"{name},2,2,{SIDE - 4},{SIDE - 4},{points},{rng.integers(CLASSES)},{valence:.4f},{arousal:.4f}\n"
            (validation if number % 75 == 0 else training).write(row)


def command(source: Path, out: Path) -> list[str]:
    nkf = [sys.executable, "-m", "nkf", "data", "import", "affectnet"]
    return [*nkf, str(source), str(out), "--landmarks", "dataset"]


def run(source: Path, out: Path, kill_after: float | None = None) -> tuple[float, float]:
    """Seconds and peak MB of one import; killed after some seconds if it is still running then."""
    start = time.perf_counter()
    process = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while kill_after is not None and process.poll() is None and time.perf_counter() - start < kill_after:
        time.sleep(0.05)
    if kill_after is not None and process.poll() is None:
        process.kill()
    _, _, usage = os.wait4(process.pid, 0) if process.returncode is None else (0, 0, None)
    return time.perf_counter() - start, usage.ru_maxrss / 1000 if usage else float("nan")


def digests(pack: Path) -> dict[str, str]:
    """SHA-256 of each file of a pack."""
    return {
        file.relative_to(pack).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(pack.rglob("*"))
        if file.is_file()
    }


def measure(work: Path, count: int, release: str) -> dict[str, float]:
    source, out = work / f"{release}-{count}", work / f"pack-{release}-{count}"
    if not source.exists():
        partial = work / f"{release}-{count}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        {"first": make_first, "second": make_second}[release](partial, count)
        partial.rename(source)
    shutil.rmtree(out, ignore_errors=True)
    seconds, megabytes = run(source, out)
    assert (out / "manifest.json").exists(), f"{out}: the import failed"
    return {"images": count, "seconds": round(seconds, 1), "peak_mb": round(megabytes, 1)}


def kill_and_resume(work: Path, count: int, release: str, kills: int, seconds: float) -> dict[str, object]:
    """Import again with kills at random times; tell whether the pack is the same."""
    source, out = work / f"{release}-{count}", work / f"killed-{release}-{count}"
    for path in (out, out.with_name(out.name + ".partial")):
        shutil.rmtree(path, ignore_errors=True)
    rng, times = random.Random(0), []
    for _ in range(kills):
        after = rng.uniform(0.2, 0.5) / kills * seconds  # so that together they end before the import would
        run(source, out, kill_after=after)
        assert not out.exists(), "it was complete before it was killed"
        parts = len(list(out.with_name(out.name + ".partial").glob("part-*.arrow")))
        times.append({"killed_after_s": round(after, 1), "complete_parts": parts})
    last, _ = run(source, out)
    same = digests(out) == digests(work / f"pack-{release}-{count}")
    return {"kills": times, "last_run_s": round(last, 1), "identical": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the synthetic dataset and the packs")
    parser.add_argument("--images", type=int, nargs="+", default=[3000, 30_000, 300_000])
    parser.add_argument("--release", choices=("first", "second"), default="second")
    parser.add_argument("--kills", type=int, default=2, help="0 keeps what an earlier run found")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/import_scale.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = [measure(options.work, count, options.release) for count in options.images]
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "command": "python "
        + " ".join([sys.argv[0], "--images", *map(str, options.images), "--release", options.release]),
        "imports": rows,
    }
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    if options.kills:
        count, seconds = options.images[-1], float(rows[-1]["seconds"])
        result["killed"] = kill_and_resume(options.work, count, options.release, options.kills, seconds)
    else:
        result["killed"] = known.get(options.release, {}).get("killed")  # of an earlier run
    options.out.write_text(json.dumps(known | {options.release: result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
