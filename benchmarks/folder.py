"""Prediction on a folder of 640x480 photos: images a second, by stage, beside the floor; and the cold start.

    python benchmarks/folder.py

The photos are JPEG files made from examples/eileen_collins.jpg, one to three times over a blurred part of itself, at
different places and sizes. One after another (by turns, best of several rounds, on one thread unless a row says
otherwise):

- all of prediction, on one worker and on two, as `nkf predict --workers` runs it;
- the stages in one pass, each call timed: decode, detect, landmarks, judge, align, classify;
- the floor: the bare ONNX Runtime calls of the same networks with the same inputs, and the decoding by Pillow alone.

The cold start is a whole process, `nkf predict PHOTO`, after one run that warms the disk cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageFilter
from timing import seconds

import nkf.finder
import nkf.predict
from nkf.files import replacing
from nkf.machine import machine
from nkf.predict import Predictor
from nkf.runtime import OnnxModel

PHOTO = Path("examples/eileen_collins.jpg")
SIZE_WH = (640, 480)
SIDES = (120, 180, 260, 360)  # of the pasted portrait, whose face takes a fifth of it
FILES, ROUNDS, COLD_STARTS = 60, 2, 5
# Stage -> where prediction finds the function that does it. What lies within another stage is counted there alone.
STAGES = {
    "decode": (nkf.predict, "read_image"),
    "landmarks": (nkf.finder.FaceFinder, "_with_landmarks"),
    "judge": (nkf.finder.FaceFinder, "_judged"),
    "align": (nkf.predict, "align"),
    "classify": (nkf.predict.Predictor, "_probabilities"),
}


def make_photos(folder: Path, count: int, seed: int) -> list[Path]:
    """Write photos with one to three faces."""
    portrait = Image.open(PHOTO).convert("RGB")
    files = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        x, y = rng.uniform(0, portrait.width / 2), rng.uniform(0, portrait.height / 2)
        part = portrait.crop((int(x), int(y), int(x) + portrait.width // 2, int(y) + portrait.height // 2))
        canvas = part.resize(SIZE_WH).filter(ImageFilter.GaussianBlur(40))
        columns = 1 + int(rng.integers(3))
        for column in range(columns):
            width = SIZE_WH[0] / columns
            side = int(min(rng.choice(SIDES), width))
            corner = (column * width + rng.uniform(0, width - side), rng.uniform(0, SIZE_WH[1] - side))
            canvas.paste(portrait.resize((side, side), Image.Resampling.LANCZOS), (int(corner[0]), int(corner[1])))
        files.append(folder / f"{number:04}.jpg")
        canvas.save(files[-1], quality=90)
    return files


def predict_all(predictor: Predictor, files: list[Path], workers: int) -> int:
    """Predict all files; returns the number of faces."""
    return sum(len(prediction.faces) for prediction in predictor.predict_files(files, workers=workers))


class Clock:
    """Adds up the time of named calls; a call within another one counts for the outer one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._busy = False

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time counts for a stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return function(*args, **kwargs)
            self._busy, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._busy = False
                self.seconds[stage] += time.perf_counter() - start

        return call


@contextmanager
def timed_stages(clock: Clock, predictor: Predictor) -> Iterator[None]:
    """Time the stages of prediction while inside."""
    with ExitStack() as stack:
        for stage, (place, name) in {"detect": (predictor._finder, "_detector"), **STAGES}.items():
            stack.enter_context(patch.object(place, name, clock.timed(stage, getattr(place, name))))
        yield


def stages(predictor: Predictor, files: list[Path]) -> dict[str, float]:
    """Milliseconds an image of each stage, and of what is left, in one pass on one worker."""
    clock = Clock()
    with timed_stages(clock, predictor):
        whole = seconds(lambda: predict_all(predictor, files, 1))
    times = {stage: 1000 * clock.seconds[stage] / len(files) for stage in ("decode", "detect", *list(STAGES)[1:])}
    return times | {"the rest": 1000 * whole / len(files) - sum(times.values())}


class Call(NamedTuple):
    """A network, the outputs that are wanted of it (None: all), and its inputs."""

    model: OnnxModel
    outputs: Sequence[str] | None
    inputs: dict[str, Any]


def recorded_calls(predictor: Predictor, files: list[Path]) -> list[Call]:
    """Every call of a network that a prediction of the files makes."""
    calls: list[Call] = []
    run = OnnxModel.__call__

    def record(self: OnnxModel, outputs: Sequence[str] | None = None, /, **inputs: Any) -> Any:
        calls.append(Call(self, outputs, inputs))
        return run(self, outputs, **inputs)

    with patch.object(OnnxModel, "__call__", record):
        predict_all(predictor, files, 1)
    return calls


def run_bare(calls: Sequence[Call]) -> None:
    for model, outputs, inputs in calls:
        model._session.run(outputs, inputs)


def floor(predictor: Predictor, files: list[Path]) -> dict[str, float]:
    """Milliseconds an image that the bare networks take, by name, and Pillow to decode."""

    def decode() -> None:
        for file in files:
            with Image.open(file) as image:
                np.asarray(image.convert("RGB"))

    times = {"decode": min(seconds(decode) for _ in range(ROUNDS))}
    by_network: dict[str, list[Call]] = {}
    for call in recorded_calls(predictor, files):
        by_network.setdefault(Path(call.model.name).stem, []).append(call)
    for name, calls in by_network.items():
        times[name] = min(seconds(partial(run_bare, calls)) for _ in range(ROUNDS))
    return {name: 1000 * value / len(files) for name, value in times.items()}


def throughput(files: list[Path], one: Predictor) -> dict[str, dict[str, Any]]:
    """Images a second on one thread, on two threads of one worker, and with two workers; the best of several rounds."""
    two = Predictor(device="cpu", threads=2)
    runs = {
        "1 worker, 1 thread": lambda: predict_all(one, files, 1),
        "1 worker, 2 threads": lambda: predict_all(two, files, 1),
        "2 workers, 1 thread each": lambda: predict_all(one, files, 2),
    }
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(ROUNDS)]
    best = {name: min(times[name] for times in rounds) for name in runs}
    return {name: {"images_per_second": len(files) / value, "seconds": value} for name, value in best.items()}


def cold_start(nkf_command: list[str]) -> dict[str, Any]:
    """Seconds of whole processes."""
    command = [*nkf_command, "predict", str(PHOTO)]

    def once() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    once()
    times = [seconds(once) for _ in range(COLD_STARTS)]
    return {"median": statistics.median(times), "range": [min(times), max(times)], "n": len(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/folder.json"))
    options = parser.parse_args()
    start = time.monotonic()
    cold = cold_start([sys.executable, "-m", "nkf"])
    with tempfile.TemporaryDirectory() as folder:
        files = make_photos(Path(folder), options.files, options.seed)
        predictor = Predictor(device="cpu", threads=1)
        faces = predict_all(predictor, files, 1)
        result = {
            "schema": 1,
            "command": "python benchmarks/folder.py" + (f" --files {options.files}" if options.files != FILES else ""),
            "model": predictor.info.name,
            "seed": options.seed,
            "n": len(files),
            "faces": faces,
            "cold_start_seconds": cold,
            "throughput": throughput(files, predictor),
            "stages_ms": stages(predictor, files),
            "floor_ms": floor(predictor, files),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
        }
    result["seconds"] = round(time.monotonic() - start, 1)
    with replacing(options.json) as file:
        file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
