"""Videos that the tests make: each frame a grey that tells its number, so that a reader can be checked."""

from fractions import Fraction

import av
import numpy as np

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
