"""What the perceptual hash of `nkf.data.similar` finds and what it takes for a copy, on real faces.

    python benchmarks/near_duplicates.py data/ferplus data/fairface data/faces

Recall: the share of pictures whose harmlessly changed copy is within the distance. False pairs: all pairs of different
pictures (pixel-identical ones count once) by distance, as they are and with one of the two mirrored; since the sources
hold true near-duplicates, pairs were looked at and judged by eye (`JUDGED_FALSE`); ``--sheet`` draws those pairs that
correlate least, which are the ones to look at. Search: seconds for many hashes, made of the same pictures by crops and
mirroring.
"""

import argparse
import datetime
import hashlib
import io
import json
import os
import platform
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nkf.data.pack import Pack
from nkf.data.sheets import contact_sheet
from nkf.data.similar import DEFAULT_DISTANCE, HASH_BITS, near_duplicates, perceptual_hash
from nkf.images import ImageRGB
from nkf.metrics import wilson_interval
from nkf.progress import track

FARTHEST = 20  # distances up to here are reported
BLOCK = 2000  # hashes compared with all others at once

# Pairs of different photos up to distance 18 in ferplus, fairface and faces: beginnings of the MD5 of their RGB pixels.
# Judged by eye on 21 November 2026: the 72 of 1,839 pairs that correlate least, and 54 random ones at 16 or 17.
JUDGED_FALSE = {
    frozenset(pair.split())
    for pair in (
        "f7ffde4dda68 47e83ad88c58",
        "652506bbfadd 219712281356",
        "fabec5a5a83c 187964bb5eb5",
        "7832f84d215f 363a54cc67ac",
        "20ca4524fa85 6aab7ee3f4ab",
        "019e933792f4 1c39c8a76077",
        "73c0e5899560 d272b83e4872",
        "53f701e62c75 56f5ea7af33d",
        "a38c078dbfdf d59cfc622aec",
    )
}

Change = Callable[[ImageRGB, np.random.Generator], ImageRGB]
Pairs = NDArray[np.int64]  # (P, 3): two rows and their distance


def pictures(paths: list[Path]) -> list[ImageRGB]:
    """All pictures of some packs, as RGB."""
    packs = [Pack(path) for path in paths]
    return [pack.image(row) for pack in packs for row in track(range(len(pack)), pack.path.name, len(pack))]


def jpeg(quality: int) -> Change:
    def change(image: ImageRGB, _: np.random.Generator) -> ImageRGB:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream).convert("RGB"))

    return change


def resized(factor: float, *, back: bool = False) -> Change:
    def change(image: ImageRGB, _: np.random.Generator) -> ImageRGB:
        picture = Image.fromarray(image)
        small = picture.resize([round(factor * v) for v in picture.size], Image.Resampling.BICUBIC)
        return np.asarray(small.resize(picture.size, Image.Resampling.BICUBIC) if back else small)

    return change


def brightness(share: float) -> Change:
    return lambda image, _: np.clip(image * (1 + share) + 0.5, 0, 255).astype(np.uint8)


def contrast(share: float) -> Change:
    return lambda image, _: np.clip((image - image.mean()) * (1 + share) + image.mean() + 0.5, 0, 255).astype(np.uint8)


def cropped(left: float, top: float, right: float, bottom: float) -> Change:
    """Cut shares of the size off the borders, and keep the size."""

    def change(image: ImageRGB, _: np.random.Generator) -> ImageRGB:
        picture = Image.fromarray(image)
        width, height = picture.size
        box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
        return np.asarray(picture.resize(picture.size, Image.Resampling.BICUBIC, box))

    return change


def cropped_at_random(most: float) -> Change:
    return lambda image, rng: cropped(*rng.uniform(0, most, 4))(image, rng)


def grey(image: ImageRGB, _: np.random.Generator) -> ImageRGB:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def combined(image: ImageRGB, rng: np.random.Generator) -> ImageRGB:
    image = cropped_at_random(0.03)(jpeg(70)(image, rng), rng)
    return brightness(rng.uniform(-0.2, 0.2))(image, rng)


CHANGES: dict[str, Change] = {
    **{f"JPEG quality {quality}": jpeg(quality) for quality in (90, 70, 50)},
    **{f"resized to {factor:.0%}": resized(factor) for factor in (0.9, 0.7, 0.5)},
    **{f"resized to {factor:.0%} and back": resized(factor, back=True) for factor in (0.9, 0.7, 0.5)},
    **{f"brightness {share:+.0%}": brightness(share) for share in (-0.2, 0.2)},
    **{f"contrast {share:+.0%}": contrast(share) for share in (-0.2, 0.2)},
    "grey": grey,
    **{f"each border cropped by 0 to {most:.0%}": cropped_at_random(most) for most in (0.01, 0.02, 0.03)},
    "two borders cropped by 3%": cropped(0.03, 0.03, 0, 0),
    "all borders cropped by 3%": cropped(0.03, 0.03, 0.03, 0.03),
    "JPEG 70, borders cropped by 0 to 3%, brightness ±20%": combined,
}


def hash_bits(images: list[ImageRGB]) -> NDArray[np.uint8]:
    return np.unpackbits(np.array([perceptual_hash(image) for image in images]), axis=1)


def recall(images: list[ImageRGB], bits: NDArray[np.uint8], sample: int, seed: int) -> dict[str, Any]:
    rows = np.random.default_rng(seed).choice(len(images), min(sample, len(images)), replace=False)
    result = {}
    for number, (title, change) in enumerate(CHANGES.items()):
        copies = [change(images[row], np.random.default_rng([seed, number, row])) for row in rows]
        distances = (hash_bits(copies) != bits[rows]).sum(axis=1)
        found = int((distances <= DEFAULT_DISTANCE).sum())
        result[title] = {
            "recall": found / len(rows),
            "ci95": wilson_interval(found, len(rows)),
            "distance_median": float(np.median(distances)),
            "distance_p95": float(np.percentile(distances, 95)),
        }
    return result


def close_pairs(bits: NDArray[np.uint8], others: NDArray[np.uint8]) -> Pairs:
    """All pairs i < j of a row of `bits` and one of `others` up to `FARTHEST`, by comparing each with each."""
    left, right = (2 * array.astype(np.float32) - 1 for array in (bits, others))
    found = []
    for start in track(range(0, len(left), BLOCK), "pairs", -(-len(left) // BLOCK)):
        agreement = left[start : start + BLOCK] @ right[start:].T
        i, j = np.nonzero(agreement >= HASH_BITS - 2 * FARTHEST)
        distance = ((HASH_BITS - agreement[i, j]) / 2).round().astype(np.int64)
        found.append(np.stack([i + start, j + start, distance], axis=1)[i < j])
    return np.concatenate(found)


def counted(pairs: Pairs) -> dict[str, int]:
    return {str(distance): int((pairs[:, 2] <= distance).sum()) for distance in range(FARTHEST + 1)}


def correlation(first: ImageRGB, second: ImageRGB) -> float:
    """Highest correlation of two pictures over shifts of up to 2 of 32 pixels."""
    a, b = (
        np.asarray(Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.BILINEAR), np.float64)
        for image in (first, second)
    )
    b = b[2:30, 2:30]
    parts = [a[y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
    return max(float(((p - p.mean()) * (b - b.mean())).mean() / max(p.std() * b.std(), 1e-9)) for p in parts)


def draw_doubtful(images: list[ImageRGB], pairs: Pairs, file: Path, count: int = 72) -> None:
    values = np.array([correlation(images[i], images[j]) for i, j, _ in pairs])
    chosen = np.argsort(values, kind="stable")[:count]
    shown = [images[row] for row in pairs[chosen, :2].ravel()]
    captions = [text for k in chosen for text in (f"{values[k]:.2f}", f"distance {pairs[k, 2]}")]
    contact_sheet(shown, captions, columns=14, title="Pairs of least correlation").save(file)


def false_pairs(images: list[ImageRGB], digests: list[str], bits: NDArray[np.uint8], sheet: Path | None) -> Any:
    pairs = close_pairs(bits, bits)
    mirrored = hash_bits([np.ascontiguousarray(image[:, ::-1]) for image in images])
    if sheet is not None:
        draw_doubtful(images, pairs[pairs[:, 2] <= DEFAULT_DISTANCE + 2], sheet)
    judged = np.array([frozenset((digests[i][:12], digests[j][:12])) in JUDGED_FALSE for i, j, _ in pairs], bool)
    wrong = int((judged & (pairs[:, 2] <= DEFAULT_DISTANCE)).sum())
    return {
        "pairs_up_to_distance": counted(pairs),
        "mirrored_pairs_up_to_distance": counted(close_pairs(bits, mirrored)),
        "judged_false_up_to_distance": {k: v for k, v in counted(pairs[judged]).items() if int(k) <= 18},
        "false_pairs_per_10000_pictures": 1e4 * wrong / len(images),
    }


def search_times(images: list[ImageRGB], bits: NDArray[np.uint8], count: int, seed: int) -> dict[str, Any]:
    """Seconds of the search, a fifth of the hashes in another split."""
    rng = np.random.default_rng(seed)
    hashes = [np.packbits(bits, axis=1)]
    while sum(map(len, hashes)) < count:
        change = cropped(*rng.uniform(0.05, 0.25, 4))
        mirrored = len(hashes) % 2
        copies = [change(image[:, ::-1] if mirrored else image, rng) for image in images]
        hashes.append(np.packbits(hash_bits(copies), axis=1))
    stacked = np.concatenate(hashes)[:count]
    groups = (rng.random(len(stacked)) < 0.2).astype(np.int64)
    blank = stacked.copy()
    blank[: count // 3] = 0
    result = {}
    for title, array in (("faces", stacked), ("a third of them blank", blank)):
        start = time.perf_counter()
        similar = near_duplicates(array, groups)
        seconds = time.perf_counter() - start
        result[title] = {"hashes": len(array), "seconds": seconds, "pairs": len(similar.pairs), "note": similar.note}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PICTURES")
    parser.add_argument("--sample", type=int, default=3000, help="pictures that are changed")
    parser.add_argument("--hashes", type=int, default=300_000, help="size of the timed search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/near_duplicates.json"))
    parser.add_argument("--sheet", type=Path, help="picture of the pairs to judge by eye")
    options = parser.parse_args()
    images = pictures(options.paths)
    digests, first = np.unique([hashlib.md5(image.tobytes()).hexdigest() for image in images], return_index=True)
    total, images = len(images), [images[row] for row in first]
    bits = hash_bits(images)
    result = {
        "schema": 1,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical cores",
        "command": f"python benchmarks/near_duplicates.py {shlex.join(path.name for path in options.paths)}"
        f" --sample {options.sample} --hashes {options.hashes} --seed {options.seed}",
        "seed": options.seed,
        "hash_bits": HASH_BITS,
        "max_distance": DEFAULT_DISTANCE,
        "pictures": {"total": total, "distinct": len(images), "changed": min(options.sample, len(images))},
        "changed_copies": recall(images, bits, options.sample, options.seed),
        "different_pictures": false_pairs(images, digests.tolist(), bits, options.sheet),
        "search": search_times(images, bits, options.hashes, options.seed),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
