"""Jitter against lag of landmark smoothers, on a drawn face that moves, and on a photo that is moved.

python benchmarks/smoothing.py points --out results/smoothing   # numbers only, some minutes
python benchmarks/smoothing.py photo --out results/smoothing    # through detector and alignment network

Both write a JSON file, `points` also a picture. Errors are in % of the distance of the outer eye corners:
  rest    RMS distance of a landmark to the truth while the face rests
  jitter  RMS second difference from frame to frame, at rest: what the eye sees
  moving  RMS distance while it moves (slow, fast, turning its head, opening its mouth, blinking)
  delay   of the smoothed landmarks behind the truth, by the shift with the best fit
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nkf.geometry import LANDMARK_GROUPS, invert_transform, transform_points
from nkf.images import read_image, warp_similarity
from nkf.pose import MEAN_SHAPE_3D
from nkf.report import draw_tradeoff
from nkf.smoothing import MOTION, SHAPE, LandmarkSmoother, OneEuroSettings, SmoothedFinder

Array = NDArray[np.float64]
Smoother = Callable[[Array, Array], Array]  # (N, 68, 2) and (N,) seconds to (N, 68, 2)

FPS = 30.0
SECONDS = 20.0
SEGMENTS = {  # seconds from, to
    "rest": [(1.0, 4.0), (17.5, 20.0)],
    "slow": [(4.0, 7.0)],
    "fast": [(8.0, 10.5)],
    "turn": [(11.0, 12.9)],
    "mouth": [(14.0, 15.1)],
    "blink": [(15.6, 17.0)],
}
MOVING = ("slow", "fast", "turn", "mouth", "blink")
LIPS = list(LANDMARK_GROUPS["inner_lip"])


def ease(time: Array, start: float, seconds: float) -> Array:
    """From 0 to 1, with a smooth start and end."""
    u = np.clip((time - start) / seconds, 0, 1)
    return u * u * (3 - 2 * u)


def true_landmarks(time: Array) -> Array:
    """Landmarks (N, 68, 2) of the moving face, in distances of the outer eye corners.

    The face is not the one that the smoother knows: 20 % deeper, and each landmark elsewhere.
    """
    generator = np.random.default_rng(5)
    person = MEAN_SHAPE_3D * [1.04, 0.97, 1.2] + generator.normal(0, 0.03, MEAN_SHAPE_3D.shape)
    face = np.repeat(person[None], len(time), axis=0)
    opened = ease(time, 14, 0.15) - ease(time, 14.8, 0.15)
    weights = {57: 1, 58: 1, 56: 1, 66: 1, 65: 0.9, 67: 0.9, 59: 0.6, 55: 0.6, 48: 0.3, 54: 0.3, 60: 0.3, 64: 0.3}
    for point, weight in (weights | dict.fromkeys((7, 8, 9), 0.8) | dict.fromkeys((6, 10), 0.6)).items():
        face[:, point, 1] += 0.35 * weight * opened
    closed = sum(ease(time, start, 0.08) - ease(time, start + 0.12, 0.1) for start in (15.6, 16.4))
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46)):
        face[:, upper, 1] += 0.85 * (person[lower, 1] - person[upper, 1]) * closed
    yaw = np.radians(45) * (ease(time, 11, 0.3) - ease(time, 12.3, 0.3))
    wave = np.where((time >= 8) & (time < 10.5), np.sin(2 * np.pi * 0.8 * (time - 8)), 0)
    x = np.cos(yaw)[:, None] * face[..., 0] - np.sin(yaw)[:, None] * face[..., 2]
    roll = np.radians(15) * wave
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    along = 0.25 * np.clip(time - 4, 0, 3) + 0.75 * wave
    return np.stack([cos * x - sin * face[..., 1] + along[:, None], sin * x + cos * face[..., 1]], axis=-1)


def noise(kind: str, count: int, sd: float, generator: np.random.Generator) -> Array:
    """Errors (N, 68, 2) with the given standard deviation of each coordinate, new in each frame.

    ``independent``: each landmark for itself. ``common``: half of the variance moves, turns and scales the whole face,
    as a detector's box does that jumps.
    """
    if kind == "independent":
        return generator.normal(0, sd, (count, 68, 2))
    own = generator.normal(0, sd * np.sqrt(0.5), (count, 68, 2))
    shift = generator.normal(0, sd * 0.5, (count, 1, 2))
    face = MEAN_SHAPE_3D[:, :2]
    grow, turn = generator.normal(0, sd * 0.5 / np.sqrt((face**2).mean() * 2), (2, count, 1))
    return own + shift + np.stack([grow * face[:, 0] - turn * face[:, 1], turn * face[:, 0] + grow * face[:, 1]], -1)


def moving_average(frames: int) -> Smoother:
    return lambda points, time: np.array(
        [points[max(0, k - frames + 1) : k + 1].mean(axis=0) for k in range(len(points))]
    )


def alpha_beta(memory: float) -> Smoother:
    """Constant-velocity filter of each point: the steady state of a Kalman filter, critically damped."""
    alpha, beta = 1 - memory**2, (1 - memory) ** 2

    def smooth(points: Array, time: Array) -> Array:
        place, velocity, results = points[0], np.zeros_like(points[0]), [points[0]]
        for point, seconds in zip(points[1:], np.diff(time), strict=True):
            place = place + velocity * seconds
            miss = point - place
            place, velocity = place + alpha * miss, velocity + beta * miss / seconds
            results.append(place)
        return np.array(results)

    return smooth


def one_euro(min_cutoff_hz: float, per_speed: float, speed_hz: float) -> Smoother:
    """The One-Euro filter of the paper, for each landmark; in distances of the outer eye corners."""

    def gain(cutoff_hz: Any, seconds: float) -> Any:
        return -np.expm1(-2 * np.pi * cutoff_hz * seconds)

    def smooth(points: Array, time: Array) -> Array:
        place, velocity, results = points[0], np.zeros_like(points[0]), [points[0]]
        for last, point, seconds in zip(points[:-1], points[1:], np.diff(time), strict=True):
            velocity = velocity + gain(speed_hz, seconds) * ((point - last) / seconds - velocity)
            speed = np.linalg.norm(velocity, axis=1, keepdims=True)
            place = place + gain(min_cutoff_hz + per_speed * speed, seconds) * (point - place)
            results.append(place)
        return np.array(results)

    return smooth


def ours(motion: tuple[float, float, float], shape: tuple[float, float, float]) -> Smoother:
    def smooth(points: Array, time: Array) -> Array:
        smoother = LandmarkSmoother(OneEuroSettings(*motion), OneEuroSettings(*shape))
        return np.array([smoother(point, second) for point, second in zip(points, time, strict=True)])

    return smooth


def families() -> dict[str, dict[str, Smoother]]:
    """Smoothers by family and setting."""
    default = tuple((s.min_cutoff_hz, s.cutoff_per_speed, s.speed_cutoff_hz) for s in (MOTION, SHAPE))
    grid = list(itertools.product((0.3, 1.0, 2.0), (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), (1.0, 3.0)))
    motions = list(itertools.product((0.5, 1.0), (2.5, 5.0, 10.0, 20.0), (2.0,)))
    shapes = [(0.3, speed, 2.0) for speed in (1.0, 2.0, 4.0, 8.0, 16.0)]
    return {
        "raw": {"": lambda points, time: points},
        "moving average": {f"{n} frames": moving_average(n) for n in range(2, 9)},
        "constant velocity (alpha-beta)": {
            f"memory {m}": alpha_beta(m) for m in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        },
        "One-Euro, each landmark": {str(values): one_euro(*values) for values in grid},
        "One-Euro, motion and shape": {
            f"{motion} {shape}": ours(motion, shape) for motion, shape in itertools.product(motions, shapes)
        },
        "default": {f"{default[0]} {default[1]}": ours(*default)},
    }


def measure(smoothed: Array, truth: Array, time: Array) -> dict[str, float]:
    """Errors in % by segment, and jitter."""
    error = (smoothed - truth) * 100
    result = {name: rms(error[inside(time, name)]) for name in SEGMENTS}
    second = np.diff(error, n=2, axis=0)
    result["jitter"] = rms(second[inside(time, "rest")[1:-1]])
    result["moving"] = rms(error[np.any([inside(time, name) for name in MOVING], axis=0)])
    return result


def delay_ms(smoothed: Array, truth_at: Callable[[Array], Array], time: Array, points: Any = slice(None)) -> float:
    """Shift of the truth with the least error."""
    shifts = np.arange(-20, 200, 2) / 1000
    errors = [rms((smoothed - truth_at(time - shift))[:, points]) for shift in shifts]
    return float(shifts[int(np.argmin(errors))] * 1000)


def delays(smoothed: Array, truth_at: Callable[[Array], Array], time: Array) -> dict[str, float]:
    parts: dict[str, Any] = {"fast": slice(None), "turn": slice(None), "mouth": LIPS, "blink": [37, 38, 43, 44]}
    return {
        f"delay_{name}_ms": delay_ms(smoothed[inside(time, name)], truth_at, time[inside(time, name)], points)
        for name, points in parts.items()
    }


def inside(time: Array, segment: str) -> NDArray[np.bool_]:
    return np.any([(time >= start) & (time < end) for start, end in SEGMENTS[segment]], axis=0)


def rms(vectors: Array) -> float:
    return float(np.sqrt((vectors**2).sum(axis=-1).mean()))


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def measure_points(seeds: int, sds: list[float]) -> list[dict[str, Any]]:
    time = np.arange(0, SECONDS, 1 / FPS)
    truth = true_landmarks(time)
    fine = true_landmarks(np.arange(0, SECONDS, 0.001))
    results = []
    for sd, kind in itertools.product(sds, ("independent", "common")):
        noisy = [truth + noise(kind, len(time), sd, np.random.default_rng(seed)) for seed in range(seeds)]
        for family, members in families().items():
            for setting, smooth in members.items():
                rows = []
                for points in noisy:
                    smoothed = smooth(points, time)
                    late = delays(smoothed, lambda seconds: fine[np.rint(seconds * 1000).astype(int)], time)
                    rows.append(measure(smoothed, truth, time) | late)
                results.append({"noise": kind, "sd": sd, "family": family, "setting": setting, **mean_of(rows)})
    return results


def beside_default(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick raw, the default, and of the other families the setting with the least error in motion at its jitter."""
    rows = []
    for family in dict.fromkeys(row["family"] for row in results):
        members = [row for row in results if row["family"] == family]
        limit = next(row["jitter"] for row in results if row["family"] == "default") * 1.02
        steady = [row for row in members if row["jitter"] <= limit] or members
        rows.append(min(steady, key=lambda row: row["moving"]))
    return rows


def run_points(options: argparse.Namespace) -> None:
    results = measure_points(options.seeds, options.sd)
    document = {"schema": 1, "unit": "% of the distance of the outer eye corners", "fps": FPS, "seeds": options.seeds}
    (options.out / "points.json").write_text(json.dumps(document | {"results": results}, indent=1))
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in results:
        panel = panels.setdefault(f"noise {row['sd']:.1%}, {row['noise']}", {})
        panel.setdefault(row["family"], []).append((row["jitter"], row["moving"]))
    draw_tradeoff(panels, options.out / "points.png", x="jitter at rest (%)", y="error in motion (%)")
    names = ("jitter", "rest", *MOVING, "moving")
    for sd, kind in itertools.product(options.sd, ("independent", "common")):
        print(f"\nnoise {sd:.1%} {kind:12} {'':38}", *(f"{name:>6}" for name in names), "delays ms")
        for row in beside_default([row for row in results if (row["sd"], row["noise"]) == (sd, kind)]):
            found = [f"{row[name]:.0f}" for name in row if name.startswith("delay")]
            print(f"{row['family']:31}{row['setting']:36}", *(f"{row[name]:6.2f}" for name in names), *found)


def photo_matrix(time_s: float, centre: Array) -> Array:
    """How the photo lies at a time: at rest, from 2 to 5 s swinging, then at rest again."""
    wave = np.sin(2 * np.pi * 0.8 * (time_s - 2)) if 2 <= time_s < 4.5 else 0.0
    cos, sin = np.cos(np.radians(10) * wave), np.sin(np.radians(10) * wave)
    linear = np.array([[cos, -sin], [sin, cos]]) * (1 + 0.05 * wave)
    return np.column_stack([linear, centre - linear @ centre + [60 * wave, 0]])


def run_photo(options: argparse.Namespace) -> None:
    from nkf.finder import FaceFinder

    photo = read_image(options.photo)
    side = min(photo.shape[:2])
    finder = FaceFinder(options.detector, options.fan)
    time = np.arange(0, 6.5, 1 / FPS)
    start = finder(photo)[0].landmarks_px
    assert start is not None
    matrices = [photo_matrix(second, start.mean(axis=0)) for second in time]
    generator = np.random.default_rng(0)
    found = []
    for matrix in matrices:
        frame = warp_similarity(photo, matrix, side) + generator.normal(0, options.pixel_noise, (side, side, 3))
        found.append(finder(np.clip(np.rint(frame), 0, 255).astype(np.uint8))[:1])  # the face with the largest box
    if not all(found):
        raise SystemExit(f"no face in {sum(not faces for faces in found)} of {len(found)} frames")
    replayed = iter(found)
    smoothed_finder = SmoothedFinder(lambda image: next(replayed))
    smoothed = [smoothed_finder(photo, float(second)) for second in time]
    rest = (time < 2) | (time >= 5)
    moving = (time >= 2) & (time < 4.5)
    raw = np.array([faces[0].landmarks_px for faces in found])
    in_photo = [transform_points(invert_transform(m), p) for m, p in zip(matrices, raw, strict=True)]
    mean_px = np.array(in_photo)[rest].mean(axis=0)
    size = float(np.linalg.norm(mean_px[45] - mean_px[36]))

    def truth_at(seconds: Array) -> Array:
        return np.array([transform_points(photo_matrix(s, start.mean(axis=0)), mean_px) for s in seconds]) / size

    result: dict[str, Any] = {"schema": 1, "fps": FPS, "size_px": size, "pixel_noise": options.pixel_noise, "seed": 0}
    for name, points in {"raw": raw, "smoothed": np.array([faces[0].landmarks_px for faces in smoothed])}.items():
        points = points / size
        error = (points - truth_at(time)) * 100
        settled = time < 2 if name == "raw" else (time >= 0.5) & (time < 2)
        result[name] = {
            "rest": rms(error[settled]),
            "jitter": rms(np.diff(error, n=2, axis=0)[settled[1:-1]]),
            "moving": rms(error[moving]),
            "delay_ms": delay_ms(points[moving], truth_at, time[moving]),
        }
        print(name, {key: round(value, 3) for key, value in result[name].items()})
    (options.out / "photo.json").write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("level", choices=("points", "photo"))
    parser.add_argument("--out", type=Path, default=Path("results/smoothing"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sd", type=float, nargs="+", default=[0.005, 0.02], help="noise of a coordinate")
    parser.add_argument("--photo", type=Path, default=Path("examples/eileen_collins.jpg"))
    parser.add_argument("--pixel-noise", type=float, default=5.0, help="standard deviation of 0 to 255")
    parser.add_argument("--detector", default="auto")
    parser.add_argument("--fan", default="fan")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    {"points": run_points, "photo": run_photo}[options.level](options)


if __name__ == "__main__":
    main()
