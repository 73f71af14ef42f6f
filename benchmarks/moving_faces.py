"""A video of two faces that move and come near each other, through all of ``nkf video``.

python benchmarks/moving_faces.py --out results/video             # 60 s at 30 a second, then 12 s of a varying rate
python benchmarks/moving_faces.py --out results/video --stride 3  # every third frame

One photo makes both faces: one as it is, the other mirrored, darker and smaller. Each is cut out in an oval and moves
on a smooth way of its own; five times in a minute the ways come so near that the second face hides a part of the first.
Writes video.json and, to be looked at, the clips, their overlays and timelines. In video.json, for each clip:

  tracks         how many there were; two faces, so two if no face was ever lost or taken for a new one
  kept           share of the frames with this face in them in which it had the track that it had most often
  missed         share of the frames in which it was not found
  max_time_error_s     against the times that were written into the file
  fps            frames a second, with all outputs written
  peak_rss_mib   of the process while the first, second and last third of the frames were worked on
"""

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from nkf.machine import machine
from nkf.predict import Predictor
from nkf.timeline import Timeline, draw_timeline
from nkf.timeline_html import write_timeline_html
from nkf.video import FrameSelection, Video
from nkf.video_output import FrameCsvWriter, FrameParquetWriter, OverlayWriter
from nkf.video_predict import FramePrediction, VideoPredictor

Array = NDArray[np.float64]

WIDTH, HEIGHT, FPS = 640, 480, 30
PORTRAIT_BOX = (135, 15, 310, 220)  # head and hair in examples/eileen_collins.jpg
SIZES = (190, 150)  # height of the two heads, pixels
MAX_MATCH = 0.5  # a found face belongs to the true one if their centres are nearer than that, in head heights


@dataclass(frozen=True)
class Clip:
    """`times_ms` of the frames; the ways of both faces are functions of time alone."""

    name: str
    times_ms: list[int]


def steady_clip(seconds: float) -> Clip:
    return Clip("steady", [round(k * 1000 / FPS) for k in range(round(seconds * FPS))])


def varying_clip(seconds: float) -> Clip:
    """Steps of 8 to 120 ms, as a phone or a screen recorder writes them."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.choice([8, 17, 33, 33, 33, 50, 120], round(seconds * 40)))
    return Clip("varying", [0, *(int(ms) for ms in times if ms < seconds * 1000)])


def heads(photo: Path) -> list[Image.Image]:
    """Both heads as RGBA, soft at the rim."""
    with Image.open(photo) as image:
        head = image.convert("RGB").crop(PORTRAIT_BOX)
    mask = Image.new("L", head.size, 0)
    ImageDraw.Draw(mask).ellipse((6, 6, head.width - 6, head.height - 6), fill=255)
    head.putalpha(mask.filter(ImageFilter.GaussianBlur(5)))
    other = head.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    *colours, alpha = other.split()
    darker = [band.point([round(255 * (k / 255) ** 1.25 * 0.75) for k in range(256)]) for band in colours]
    other = Image.merge("RGBA", [*darker, alpha])
    return [
        one.resize((round(one.width * size / one.height), size), Image.Resampling.LANCZOS)
        for one, size in zip((head, other), SIZES, strict=True)
    ]


def centres(time_s: float) -> Array:
    """(2, 2) centres of both heads, pixels: on two figures of eight that overlap, at different speeds."""
    a, b = 2 * np.pi * time_s / 7.3, 2 * np.pi * time_s / 5.1 + 6.2
    return np.array(
        [
            [225 + 95 * np.cos(a), 250 + 75 * np.sin(2 * a / 3 + 2.0)],
            [445 - 95 * np.cos(b), 235 + 90 * np.sin(2 * b / 3 + 5.2)],
        ]
    )


def draw_frame(background: Image.Image, both: list[Image.Image], time_s: float, rng: np.random.Generator) -> Any:
    """The second head in front where they meet; pixel noise as a camera has."""
    picture = background.copy()
    for head, (x, y) in zip(both, centres(time_s), strict=True):
        picture.paste(head, (round(x - head.width / 2), round(y - head.height / 2)), head)
    noisy = np.asarray(picture) + rng.normal(0, 3, (HEIGHT, WIDTH, 1))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def write_clip(clip: Clip, photo: Path, file: Path) -> None:
    import av

    across = np.linspace(0, 1, WIDTH)[None, :, None] * [40, 30, 10]
    down = np.linspace(0, 1, HEIGHT)[:, None, None] * [20, 40, 60]
    background = Image.fromarray((70 + across + down).astype(np.uint8))
    both, rng = heads(photo), np.random.default_rng(0)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in clip.times_ms:
            frame = av.VideoFrame.from_ndarray(draw_frame(background, both, time_ms / 1000, rng), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def nearest_distance_px(clip: Clip) -> float:
    return float(min(np.linalg.norm(np.subtract(*centres(ms / 1000))) for ms in clip.times_ms))


def run(clip: Clip, photo: Path, out: Path, stride: int) -> dict[str, Any]:
    file = out / f"{clip.name}.mp4"
    write_clip(clip, photo, file)
    predictor = Predictor()
    timeline = Timeline(str(file), predictor.classes)
    expected = len(range(0, len(clip.times_ms), stride))
    marks, peaks = [expected // 3, 2 * expected // 3, expected], []
    judge = Judge(clip)
    reset_peak()
    start = time.perf_counter()
    with (
        Video(file) as video,
        FrameCsvWriter(out / f"{clip.name}.csv", predictor.classes) as csv,
        FrameParquetWriter(out / f"{clip.name}.parquet", predictor.classes) as parquet,
        OverlayWriter(out / f"{clip.name}-overlay.mp4") as overlay,
    ):
        frames = video.frames(FrameSelection(stride=stride))
        for done, (frame, prediction) in enumerate(VideoPredictor(predictor).predict(frames, str(file)), 1):
            for writer in (csv, parquet):
                writer.write(prediction.to_dict())
            overlay.write(frame.image_rgb, prediction)
            timeline.add(prediction)
            judge.add(prediction)
            if done in marks:
                peaks.append(peak_mib())
                reset_peak()
    seconds = time.perf_counter() - start
    draw_timeline(timeline, out / f"{clip.name}.png")
    write_timeline_html(timeline, out / f"{clip.name}.html")
    return {
        "frames": len(clip.times_ms),
        "looked_at": expected,
        "stride": stride,
        "seconds": clip.times_ms[-1] / 1000,
        "nearest_centres_px": round(nearest_distance_px(clip), 1),
        "tracks": timeline.tracks,
        **judge.result(),
        "fps": round(expected / seconds, 2),
        "peak_rss_mib": peaks,
    }


class Judge:
    """Compares what is found with where the faces are."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._tracks: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._frames = 0
        self._extra = 0
        self._time_error_s = 0.0

    def add(self, prediction: FramePrediction) -> None:
        assert prediction.frame is not None
        assert prediction.time_s is not None
        true_s = self._clip.times_ms[prediction.frame] / 1000
        self._time_error_s = max(self._time_error_s, abs(prediction.time_s - true_s))
        self._frames += 1
        for face in prediction.faces:
            centre = face.face.landmarks_px.mean(axis=0)
            distances = np.linalg.norm(centres(true_s) - centre, axis=1) / SIZES
            nearest = int(distances.argmin())
            if distances[nearest] < MAX_MATCH:
                self._tracks[nearest][face.track] += 1
            else:
                self._extra += 1

    def result(self) -> dict[str, Any]:
        found = [counts.total() for counts in self._tracks]
        most = [max(counts.values(), default=0) for counts in self._tracks]
        return {
            "kept": [round(k / max(n, 1), 5) for k, n in zip(most, found, strict=True)],
            "missed": [round(1 - n / self._frames, 5) for n in found],
            "tracks_of_each": [dict(counts.most_common()) for counts in self._tracks],
            "other_faces": self._extra,
            "max_time_error_s": self._time_error_s,
        }


def reset_peak() -> None:
    """Linux: the peak of this process starts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024, 1)


def clips(seconds: float, varying_seconds: float) -> Iterator[Clip]:
    yield steady_clip(seconds)
    yield varying_clip(varying_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/video"))
    parser.add_argument("--photo", type=Path, default=Path("examples/eileen_collins.jpg"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--varying-seconds", type=float, default=12.0)
    parser.add_argument("--stride", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "schema": 1,
        "date": date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
    }
    for clip in clips(options.seconds, options.varying_seconds):
        document[clip.name] = run(clip, options.photo, options.out, options.stride)
        print(clip.name, json.dumps(document[clip.name]), flush=True)
        (options.out / "video.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
