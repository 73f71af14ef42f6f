"""Draw the portrait under 24 random conditions with the landmarks that the networks find: docs/landmarks_portrait.jpg.

    python benchmarks/portrait_sheet.py docs/landmarks_portrait.jpg

Photo: NASA, public domain. Seed 0. Each cell: rotation up to ±60°, size 24 to 150 px, some blurred, dark, grey or
partly covered; found by our detector and alignment network, as `nkf predict` does; discs show the expected errors.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from nkf.finder import FaceFinder
from nkf.geometry import square_transform
from nkf.images import read_image, warp_similarity

CELL, COLUMNS, ROWS = 200, 8, 3
FACE_CENTRE, FACE_SIDE = (225, 115), 110  # in the portrait, pixels


def main() -> None:
    portrait, finder = read_image(Path("examples/eileen_collins.jpg")), FaceFinder(device="cpu")
    sheet = Image.new("RGB", (CELL * COLUMNS, CELL * ROWS))
    for cell in range(COLUMNS * ROWS):
        rng = np.random.default_rng([0, cell])
        side = FACE_SIDE * CELL / np.exp(rng.uniform(np.log(24), np.log(150)))
        angle = np.radians(rng.uniform(-60, 60))
        image = Image.fromarray(warp_similarity(portrait, square_transform([*FACE_CENTRE, side, angle], CELL), CELL))
        kind = cell % 6
        if kind == 1:
            image = image.filter(ImageFilter.GaussianBlur(3))
        elif kind == 2:
            image = image.point(lambda value: value // 5)
        elif kind == 3:
            image = image.convert("L").convert("RGB")
        elif kind == 4:
            x, y = rng.uniform(70, 110, 2)
            ImageDraw.Draw(image).rectangle((x, y, x + 25, y + 40), fill=tuple(rng.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image, "RGBA")
        faces = finder(np.asarray(image))
        for face in faces:
            for (x, y), spread in zip(face.landmarks_px, face.landmark_spread_px, strict=True):
                draw.ellipse((x - spread, y - spread, x + spread, y + spread), fill=(255, 193, 37, 60))
                draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(255, 193, 37))
        label = faces[0].status if faces else "no face"
        draw.text((4, CELL - 14), ", ".join(faces[0].problems) or label if faces else label, fill="white")
        sheet.paste(image, (cell % COLUMNS * CELL, cell // COLUMNS * CELL))
    sheet.save(sys.argv[1])


if __name__ == "__main__":
    main()
