"""Videos that the tests make: each frame a grey that tells its number, so that a reader can be checked."""

from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np

from nkf.geometry import MEAN_SHAPE
from nkf.predict import FacePrediction, Prediction, best_status

WIDTH, HEIGHT = 96, 64
CODECS = {
    ".mp4": "libx264",
    ".mov": "libx264",
    ".mkv": "libx264",
    ".ts": "libx264",
    ".webm": "libvpx-vp9",
    ".avi": "mpeg4",
}


def grey(number):
    """What frame `number` is filled with."""
    return 20 + 5 * (number % 40)


def grey_frames(count):
    return [np.full((HEIGHT, WIDTH, 3), grey(number), np.uint8) for number in range(count)]


def make_video(file, frames, times_ms=None, *, rotation=0, codec=None, faststart=False):
    """Write (H, W, 3) frames; `times_ms` may have any gaps, AVI takes 25 frames a second whatever they are."""
    steady = file.suffix == ".avi"
    times_ms = [40 * k for k in range(len(frames))] if times_ms is None else times_ms
    with av.open(str(file), "w", container_options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec or CODECS[file.suffix], rate=25, options={"deadline": "realtime"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        base = Fraction(1, 25) if steady else Fraction(1, 1000)
        stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        for number, (image, time_ms) in enumerate(zip(frames, times_ms, strict=True)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number if steady else time_ms, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file


def cut(file, share=0.7):
    """Leave only the first part of a file."""
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    return file


CLASSES = ("neutral", "happiness", "anger")


class FakePredictor:
    """In the place of `nkf.predict.Predictor`: knows a frame of `grey_frames` by its grey, and finds what it is told.

    `faces` takes a frame's number to [(x of the face, probabilities, problems)].
    """

    classes = CLASSES
    info = SimpleNamespace(name="fake")

    def __init__(self, faces):
        self._faces = faces
        self.batches = []

    def __call__(self, *arguments, **options):
        """Stand in for the class too."""
        return self

    def predict_batch(self, images_rgb, paths=None):
        self.batches.append(len(images_rgb))
        return [self._predict(image, path) for image, path in zip(images_rgb, paths, strict=True)]

    def _predict(self, image_rgb, path):
        number = round((float(image_rgb.mean()) - 20) / 5)
        faces = tuple(self._face(*face) for face in self._faces(number))
        status = best_status(faces) if faces else "no_face"
        return Prediction(path, image_rgb.shape[1], image_rgb.shape[0], status, faces=faces)

    def _face(self, x, probabilities, problems=()):
        landmarks = MEAN_SHAPE * 30 + [x, 20]
        by_class = dict(zip(CLASSES, probabilities, strict=True))
        box = np.array([x, 20.0, x + 30, 50.0])
        best = max(by_class, key=by_class.get)
        return FacePrediction(box, 0.9, landmarks, np.full(68, 0.5), best, by_class, problems)


def two_faces(number):
    """One that is neutral and then happy, one that is angry and missing in frames 5 to 7, blurred in frame 3."""
    first = (5.0 + number % 3, (0.8, 0.1, 0.1) if number < 12 else (0.1, 0.85, 0.05))
    second = (55.0, (0.2, 0.1, 0.7) if number != 3 else (0.1, 0.8, 0.1), ("blurred",) if number == 3 else ())
    return [first] if 5 <= number <= 7 else [first, second]
