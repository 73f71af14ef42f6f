"""Images a second that reach the training step: from the cache of crops, and by decoding and resizing each file.

    python benchmarks/loader.py data/ferplus

Rows are drawn at random, as in training. `cache` copies uint8 batches out of the memory-mapped cache; `cache, float`
also makes the float batch that the network takes; `memory copy` is what copying the same bytes within memory costs, the
floor; `decode and resize` is the plain loop over files. All are taken by turns in one process.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nkf.costs import by_turns
from nkf.data.dataset import CropRows, load_crops
from nkf.data.pack import Pack
from nkf.preprocess import to_float
from nkf.progress import track
from nkf.recipes.common import FaceTensors

SIZE = 112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loader.json"))
    options = parser.parse_args()
    pack = Pack(options.pack)
    crops = load_crops(pack, "aligned", SIZE, track)
    rows_of_pack = CropRows([(crops.images, np.arange(len(pack)))])
    faces = FaceTensors(rows_of_pack, crops.landmarks_px, torch.device("cpu"))
    rng = np.random.default_rng(0)
    block = np.zeros((options.batch, SIZE, SIZE, 3), np.uint8)

    def rows() -> np.ndarray[Any, Any]:
        return rng.integers(0, len(pack), options.batch)

    def decode() -> None:
        for row in rows():
            image = Image.fromarray(pack.image(row)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            block[0] = np.asarray(image)

    calls: dict[str, Callable[[], Any]] = {
        "cache": lambda: faces.images_uint8(rows()),
        "cache, float": lambda: to_float(faces.images_uint8(rows())),
        "memory copy": block.copy,
        "decode and resize": decode,
    }
    times = by_turns(calls, options.runs)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "command": f"python benchmarks/loader.py {options.pack}",
        "pack": pack.manifest.get("dataset"),
        "images": len(pack),
        "batch": options.batch,
        "images_per_second": {
            name: {
                "median": round(1e3 * options.batch / t["median_ms"]),
                "best": round(1e3 * options.batch / t["min_ms"]),
            }
            for name, t in times.items()
        },
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
