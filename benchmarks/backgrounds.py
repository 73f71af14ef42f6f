"""Collect the pictures without faces that detection scenes are composed over, from unpacked Debian packages and wheels.

    python benchmarks/backgrounds.py data/backgrounds UNPACKED_PACKAGE ... [--exclude NAME_PART ...]

Writes OUT/train and OUT/held_out: pictures of at most 800 px, stamps (drawings and photos with transparency) as they
are. Each picture counts once, however many sizes of it a package has; whole pictures are kept out, by the hash of their
name, unless a variant of them (another format, the dark one, a mirror image) trains. Letters, symbols and cartoons are
no natural pictures: they all go to training.
"""

import argparse
import hashlib
import re
from pathlib import Path

import numpy as np
from PIL import Image

LONG_SIDE, SMALLEST_SIDE = 800, 48
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
DRAWN = ("cartoon", "/symbols/", "roadsigns", "flags", "outline", "chess", "/theme", "preview", "grub", "plymouth")
# Folders with pictures of people, found with CenterFace and by eye.
PEOPLE = (
    "/people/",
    "/money/us",
    "/money/canadian",
    "coins.png",
    "sacagawea",
    "Santa.png",
    "astronaut",
    "camera.png",
    "fireman",
    "paratrooper",
    "spacewalk",
    "body_parts",
    "/hobbies/people",
)
SKIPPED = ("/icons/", "/pixmaps/", "screenshot", "preview", "/plymouth/", "/grub/", "thumbnail", "logo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--exclude", nargs="*", default=[], help="parts of paths to leave out, beside the known ones")
    args = parser.parse_args()
    seen: list[np.ndarray] = []
    counts = {"train": 0, "held_out": 0}
    for source in args.sources:
        files = [f for f in source.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file() and not f.is_symlink()]
        names = {file: "/" + file.relative_to(source).as_posix() for file in files}
        trained = {family(name) for name in names.values() if not is_kept_out(name)}
        for file in sorted(files, key=lambda f: (-f.stat().st_size, f)):
            name = names[file]
            if any(part in name for part in (*PEOPLE, *SKIPPED, *args.exclude)):
                continue
            if is_kept_out(name) and family(name) in trained:
                continue
            try:
                image = Image.open(file)
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            except (OSError, ValueError):
                continue
            if min(image.size) < SMALLEST_SIDE and image.mode == "RGB":
                continue
            image.thumbnail((LONG_SIDE, LONG_SIDE))
            if is_copy(image, seen):
                continue
            part = "held_out" if is_kept_out(name) else "train"
            stem = f"{source.name}-{hashlib.md5(name.encode()).hexdigest()[:6]}-{file.stem}".replace(" ", "_")
            folder = args.out / part
            folder.mkdir(parents=True, exist_ok=True)
            if image.mode == "RGBA":
                image.save(folder / f"{stem}.png")
            else:
                image.save(folder / f"{stem}.jpg", quality=92)
            counts[part] += 1
    print(counts)


def is_kept_out(name: str) -> bool:
    return not any(part in name for part in DRAWN) and hashlib.md5(name.encode()).digest()[0] % 2 == 0


def family(name: str) -> str:
    """What variants of a picture have in common: the wallpaper's folder, or the name without its endings."""
    folder = name.partition("/contents/")[0]
    return (
        folder if folder != name else re.sub(r"([-_ ]?(l|d|dark|light|mirror|left|right|\d+))+$", "", Path(name).stem)
    )


def is_copy(image: Image.Image, seen: list[np.ndarray]) -> bool:
    """Tell whether a picture has been seen in another size, and remember it."""
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image.convert("RGBA"))
    small = np.asarray(flat.convert("RGB").resize((12, 12), Image.Resampling.BOX), np.int16)
    mirrored = small[:, ::-1]
    if any(min(np.abs(small - other).mean(), np.abs(mirrored - other).mean()) < 5 for other in seen):
        return True
    seen.append(small)
    return False


if __name__ == "__main__":
    main()
