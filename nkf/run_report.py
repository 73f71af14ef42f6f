"""The report of one training run: a page of HTML that needs nothing beside itself.

It tells what was trained, how the training went and, for expression networks whose pack is at hand, where the best
checkpoint is wrong. The images are those that chose the checkpoint, or a fold that was left out of training: never the
reported split, which nobody should get to know by its mistakes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel

from nkf import __version__
from nkf.config import TrainConfig, read_yaml
from nkf.data.pack import Pack
from nkf.errors import NkfError
from nkf.files import replacing
from nkf.progress import Progress, no_progress
from nkf.protocols import DEFAULT_PROTOCOL, PROTOCOLS
from nkf.report import require_matplotlib
from nkf.report_html import Markup, element, page, table
from nkf.report_run import Panel, draw_curves
from nkf.run_mistakes import Judged, judge_run, mistakes
from nkf.runtime import Device
from nkf.weights import WeightsInfo, read_info

_BREAK = 10  # times the usual time between two lines of the log: the run stood still
_LEAST_BREAK_SECONDS = 600.0
# Metrics that share a unit are shown in one panel; all others get their own.
_PANELS = {
    "Accuracy": ("accuracy", "mean_class_accuracy"),
    "Detection": ("average_precision", "recall"),
    "Landmark error": ("error", "median_error", "loose_error"),
}
_NOT_METRICS = {"time", "step", "epoch", "score", "loss", "learning_rate", "skipped", "finished"}
_ALWAYS_SET = ("name", "task", "data")
_NOT_SET = "protocol.expected"  # follows from the protocol


@dataclass(frozen=True)
class RunLog:
    """What ``log.jsonl`` holds.

    Attributes:
        losses: lines with ``step``, ``loss``, ``learning_rate``, and ``skipped`` where steps were.
        validations: lines with ``step``, ``epoch`` and metrics.
        times: of all lines, seconds since 1970.
    """

    losses: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    times: list[float]

    @cached_property
    def step(self) -> int:
        """The last step that it tells of."""
        return max(int(row["step"]) for row in (*self.losses, *self.validations))

    @cached_property
    def steps_per_epoch(self) -> float | None:
        """Told by the validations only."""
        rows = [row for row in self.validations if row.get("epoch")]
        return rows[-1]["step"] / rows[-1]["epoch"] if rows else None

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The validation whose checkpoint is kept: the first of the highest score, or the last where none scores."""
        if not self.validations:
            return None
        return max(self.validations, key=lambda row: row.get("score", row["step"]))

    @cached_property
    def seconds(self) -> tuple[float, int]:
        """Time from the first line to the last without breaks, and the number of breaks."""
        gaps = [late - early for early, late in zip(self.times, self.times[1:], strict=False)]
        limit = max(_BREAK * median(gaps), _LEAST_BREAK_SECONDS) if gaps else math.inf
        return sum(gap for gap in gaps if gap <= limit), sum(gap > limit for gap in gaps)


def write_run_report(
    run: Path,
    file: Path,
    *,
    data: Path | None = None,
    worst: int = 24,
    pictures: bool = True,
    device: Device = "auto",
    progress: Progress = no_progress,
) -> None:
    """Write a report of a run folder of the trainer, finished or not, as one file.

    Args:
        run: run folder.
        file: HTML to write; missing folders are made.
        data: the pack, where it is not where the run's configuration says.
        worst: number of mistakes to show.
        pictures: show the faces of these; they are people out of the dataset.
        device: where the network runs.
        progress: shows how far the preparation of the data is.

    Raises:
        NkfError: when it is no run folder or has logged nothing yet, `data` is no pack, or matplotlib is missing. Where
            the network cannot be judged for another reason, the report tells it.
    """
    require_matplotlib()
    if worst < 0:
        raise NkfError(f"worst {worst}: expected a number of mistakes, 0 or more")
    settings, log = _read_settings(run), read_log(run)
    if data is not None:
        Pack(data)
    judged, why_not = None, ""
    if settings.get("task") == "expression":
        try:
            judged = judge_run(run, settings, data=data, device=device, progress=progress)
        except NkfError as error:
            why_not = f"The network was not judged: {error}"
    name, folder = str(settings.get("name")), run.absolute().name
    title = f"Run {name}" if name == folder else f"Run {name} ({folder})"
    parts = [*_heading(title, settings, judged if pictures else None), *_summary(run, settings, log), *_curves(log)]
    if judged is not None:
        parts += mistakes(judged, worst, pictures)
    elif why_not:
        parts += [element("h2", "Mistakes"), element("p", why_not)]
    parts += [*_configuration(settings), _footer()]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(page(title, parts), encoding="utf-8")
    except OSError as error:
        raise NkfError(f"{file}: cannot be written ({error.strerror or error})") from error


def _read_settings(run: Path) -> dict[str, Any]:
    """Fields of the configuration as they are in the file, which may be of another version of nkf."""
    if not (run / "config.yaml").is_file():
        raise NkfError(f"{run}: no run folder (config.yaml is missing), expected one that 'nkf train' made")
    settings = read_yaml(run / "config.yaml")
    if not isinstance(settings, dict):
        raise NkfError(f"{run / 'config.yaml'}: no configuration, expected keys and values")
    return settings


def read_log(run: Path) -> RunLog:
    """Read ``log.jsonl``; a last line that is just being written does not count.

    Raises:
        NkfError: when it is missing, without a line, or damaged.
    """
    file = run / "log.jsonl"
    nothing = NkfError(f"{run}: the run has logged nothing yet; go on with 'nkf train', the first line comes soon")
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        raise nothing from None
    except (OSError, UnicodeDecodeError) as error:
        raise NkfError(f"{file}: unreadable ({error})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"]), "time": float(row.get("time", 0))})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if number < len(lines):
                raise NkfError(f"{file}: damaged in line {number}, expected one JSON object with a step") from error
    if not rows:
        raise nothing
    losses = [row for row in rows if "loss" in row]
    return RunLog(losses, [row for row in rows if "loss" not in row], [row["time"] for row in rows])


def _heading(title: str, settings: Mapping[str, Any], shown: Judged | None) -> list[Markup]:
    backbone = "" if settings.get("task") == "detection" else (settings.get("network") or {}).get("backbone", "")
    data = ", ".join(str(path) for path in settings.get("data", []))
    what = f"{settings.get('task')} {backbone}".strip()
    parts = [element("h1", title), element("p", f"{what}, trained on {data}", kind="lead")]
    if shown is not None:
        text = f"This report holds pictures of people from {shown.dataset}, under its terms. Do not publish it."
        parts.append(element("p", element("strong", text), f" {shown.licence}", kind="note"))
    return parts


def _summary(run: Path, settings: Mapping[str, Any], log: RunLog) -> list[Markup]:
    seconds, breaks = log.seconds
    pause = f", without {breaks} break{'s' * (breaks > 1)}" if breaks else ""
    rows: list[tuple[object, ...]] = [
        ("progress", _progress(settings, log)),
        ("time", f"{_duration(seconds)} between the first line of the log and the last{pause}; {_when(log.times)}"),
    ]
    if len(log.losses) > 1:
        rows.append(("pace", f"{_pace(log):.3g} s a step, the median"))
    skipped = sum(int(row.get("skipped", 0)) for row in log.losses)
    if skipped:
        rows.append(("skipped", f"{skipped} steps, whose loss or gradient was no finite number"))
    if log.losses:
        first, last = log.losses[0], log.losses[-1]
        rows.append(("loss", f"{first['loss']:.4g} at step {first['step']:,}, {last['loss']:.4g} at {last['step']:,}"))
    if log.best is not None:
        metrics = ", ".join(f"{_name(key)} {_number(key, log.best[key])}" for key in _metrics([log.best]))
        place = f"step {log.best['step']:,}, epoch {log.best.get('epoch', '?')}"
        rows.append(("best checkpoint", f"{place}: {metrics}" if metrics else f"{place}, the last: nothing validates"))
    info = _sidecar(run)
    if info is not None:
        rows.append(
            ("network", f"{info.parameters:,} parameters, crops of {info.input_size} px, nkf {info.nkf_version}")
        )
    return [element("h2", "Training"), table((), rows)]


def _progress(settings: Mapping[str, Any], log: RunLog) -> str:
    wanted = settings.get("epochs")
    text = f"step {log.step:,}"
    if log.steps_per_epoch is None or not isinstance(wanted, (int, float)):
        return f"{text} so far, of {wanted} epochs"
    total = max(1, int(wanted * round(log.steps_per_epoch)))
    # The log rounds epochs to three digits, so that the total may be wrong by a few steps.
    finished = log.step >= total - max(1, 0.001 * total)
    text += f", epoch {log.step / log.steps_per_epoch:.4g} of {wanted:g}"
    return text if finished else f"{text}: not finished, {log.step / total:.0%} of about {total:,} steps"


def _pace(log: RunLog) -> float:
    pairs = zip(log.losses, log.losses[1:], strict=False)
    return median((late["time"] - early["time"]) / max(1, late["step"] - early["step"]) for early, late in pairs)


def _sidecar(run: Path) -> WeightsInfo | None:
    for folder in ("best", "last"):
        file = run / folder / "model.json"
        if file.is_file():
            return read_info(file)
    return None


def _curves(log: RunLog) -> list[Markup]:
    scale, label = (1.0, "step") if log.steps_per_epoch is None else (log.steps_per_epoch, "epoch")

    def curve(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
        known = [row for row in rows if isinstance(row.get(key), (int, float))]
        return [row["step"] / scale for row in known], [float(row[key]) for row in known]

    panels = []
    if log.losses:
        panels.append(Panel("Training loss", {"loss": curve(log.losses, "loss")}, dots=False, noisy=True))
        panels.append(Panel("Learning rate", {"rate": curve(log.losses, "learning_rate")}, dots=False))
    names = _metrics(log.validations)
    for title, members in _PANELS.items():
        shown = {_name(key): curve(log.validations, key) for key in members if key in names}
        if shown:
            panels.append(Panel(title, shown, percent=True))
    grouped = {key for members in _PANELS.values() for key in members}
    panels += [
        Panel(_name(key).capitalize(), {key: curve(log.validations, key)}) for key in names if key not in grouped
    ]
    best = log.best["step"] / scale if log.best is not None and names else None
    parts = [element("h2", "Curves"), Markup(draw_curves(panels, label, best))] if panels else []
    if best is not None:
        parts.append(element("p", "Dotted: the best checkpoint. Validations measure the weight average.", kind="quiet"))
    return parts


def _metrics(rows: list[dict[str, Any]]) -> list[str]:
    """Names of what the validations measured, in their order."""
    names = dict.fromkeys(key for row in rows for key in row if isinstance(row[key], (int, float)))
    return [key for key in names if key not in _NOT_METRICS]


def _configuration(settings: Mapping[str, Any]) -> list[Markup]:
    """What differs from the defaults in full, all else folded."""
    described = dict(_descriptions(TrainConfig))
    defaults = _defaults(settings)
    changed, same = [], []
    for key, value in _flat(settings):
        if key.startswith(_NOT_SET):
            continue
        known = key in described or key in defaults
        text = described.get(key, "") if known else "this nkf does not know it"
        if key in _ALWAYS_SET or key not in defaults or defaults[key] != value:
            default = "" if key in _ALWAYS_SET or key not in defaults else _setting(defaults[key])
            changed.append((key, element("td", _setting(value), kind="changed"), default, text))
        else:
            same.append((key, _setting(value), text))
    parts = [element("h2", "Configuration"), table(("field", "value", "default", "meaning"), changed)]
    if same:
        rest = element("summary", f"{len(same)} more, as by default")
        parts.append(element("details", rest, table(("field", "value", "meaning"), same)))
    return parts


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of every field that has a default, those of the named protocol."""
    fields = TrainConfig.model_construct().model_dump(mode="json", exclude=set(_ALWAYS_SET), warnings=False)
    protocol = settings.get("protocol")
    name = protocol.get("name") if isinstance(protocol, Mapping) else protocol
    known = PROTOCOLS.get(str(name), PROTOCOLS[DEFAULT_PROTOCOL])
    fields["protocol"] = known.model_dump(mode="json") | {"name": DEFAULT_PROTOCOL}
    return dict(_flat(fields))


def _descriptions(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _descriptions(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_setting(one) for one in value) or "none"
    return "none" if value is None or value == {} else str(value)


def _name(key: str) -> str:
    return key.replace("_", " ")


def _number(key: str, value: float) -> str:
    shares = {name for members in _PANELS.values() for name in members}
    return f"{value:.2%}" if key in shares else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


def _when(times: list[float]) -> str:
    start, end = (datetime.fromtimestamp(time, UTC) for time in (times[0], times[-1]))
    form = "%H:%M" if start.date() == end.date() else "%Y-%m-%d %H:%M"
    return f"{start:%Y-%m-%d %H:%M} to {end.strftime(form)} UTC"


def _footer() -> Markup:
    return element("p", f"Made by nkf {__version__} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.", kind="quiet")
