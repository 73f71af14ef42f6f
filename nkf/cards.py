"""Model cards: what a network was made from, how good it is, what it cannot tell and must not be used for.

Numbers come from the sidecar, all else from the texts in ``weights/cards``: Markdown, a section for each title, with
``{figures}`` and the like where the sidecar speaks.

    any.md         every section in its order, as it holds for any network
    kind-KIND.md   sections that are told better of one kind; kind-expressions.md of all that tell expressions
    NAME.md        sections that are told better of one packaged network
    origins.md     a section for each network of others that one may start from

``python -m nkf.cards FILE`` writes the cards of the packaged networks into one page, sorted by section.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nkf import weights
from nkf.files import replacing
from nkf.metrics import wilson_interval
from nkf.weights import ATTENTION, INPUTS, OUTPUTS, Calibration, WeightsInfo, find_weights, packaged_models

TEXTS = Path(weights.__file__).parent / "cards"
# Figures that are shares, or errors over the distance of the outer eye corners: shown in per cent.
_SHARES = {
    "accuracy", "accuracy_leakfree", "mean_class_accuracy", "average_precision", "recall", "error", "median_error",
    "loose_error", "coverage", "mean_confidence", "ece", "ece_equal_mass", "ece_if_perfect",
}  # fmt: skip
_TITLES = {
    "accuracy_leakfree": "accuracy without copies of training images",
    "mean_class_accuracy": "mean of the classes' recalls",
    "error": "landmark error, well-placed crops",
    "median_error": "its median",
    "loose_error": "landmark error, loose crops",
    "ece": "expected calibration error",
    "ece_equal_mass": "the same, bins of equally many images",
    "ece_if_perfect": "the same by chance, if all were true",
    "nll": "negative log-likelihood",
    "brier": "Brier score",
}
_NOT_FIGURES = {"n", "n_leakfree", "step", "epoch", "score", "schema", "seed"}  # the score is one of the others
_OF_EXPRESSIONS = {"rule", "targets"}  # older sidecars of other kinds tell them too
_BESIDE = {"start_landmark_trunk": "landmark trunk", "teacher": "teacher"}  # networks that it took beside its start
_NOT_SETTINGS = {"data", "start", "start_backbone", "pretrained", "protocol", *_BESIDE}  # have their own place

Row = tuple[str, ...]
Table = list[Row]


def model_card(name: str) -> str:
    """Write the card of a network.

    Args:
        name: a packaged NAME, a run folder, or a weights file with its sidecar beside it.

    Returns:
        Markdown.

    Raises:
        NkfError: when there is no such network, or it is damaged.
    """
    file, info = find_weights(name)
    sections = _sections(info, packaged=file.parent == weights.WEIGHTS_FOLDER)
    return "\n\n".join([f"# Model card: `{info.name}`", *(f"## {title}\n\n{text}" for title, text in sections.items())])


def packaged_cards() -> str:
    """Write the cards of all packaged networks into one page of Markdown: what is the same for all is there once."""
    cards = {name: _sections(info, packaged=True) for name, info in packaged_models().items()}
    names = [f"`{name}`" for name in cards]
    parts = [
        f"# Model cards: {', '.join(names[:-1])} and {names[-1]}",
        "What the packaged networks are, what they were made from, and what they cannot tell.\n"
        "`nkf models NAME` shows one card. This page is made by `python -m nkf.cards docs/model_card.md`\n"
        "from the sidecars (`nkf/weights/NAME.json`) and the texts in `nkf/weights/cards`: change those.",
    ]
    for title in next(iter(cards.values())):
        texts = [card[title] for card in cards.values()]
        parts.append(f"## {title}")
        same = len(set(texts)) == 1
        parts += texts[:1] if same else [f"### {name}\n\n{text}" for name, text in zip(names, texts, strict=True)]
    return "\n\n".join(parts) + "\n"


def _sections(info: WeightsInfo, *, packaged: bool) -> dict[str, str]:
    """Title -> Markdown, in the order of ``any.md``."""
    kind = "expressions" if info.tells_expressions else info.kind
    texts = _read_texts("any") | _read_texts(f"kind-{kind}") | (_read_texts(info.name) if packaged else {})
    told = {
        "facts": _table(("property", "value"), _facts(info)),
        "data": _data(info.training),
        "start": _start(info.training),
        "training": _table(("training", "value"), _settings(info)),
        "figures": _figures(info.metrics),
        "recalls": _recalls(info),
        "calibration": _calibration(info),
    }
    return {title: _fill(text, told) for title, text in texts.items()}


def _read_texts(name: str) -> dict[str, str]:
    """Title -> text of a file in `TEXTS`; nothing where it is missing."""
    file = TEXTS / f"{name}.md"
    if not file.is_file():
        return {}
    parts = re.split(r"^## (.+)\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def _fill(text: str, told: Mapping[str, str]) -> str:
    filled = re.sub(r"\{(\w+)\}", lambda hole: told[hole[1]], text)
    return re.sub(r"\n{3,}", "\n\n", filled).strip()  # where a hole stayed empty


def _facts(info: WeightsInfo) -> Table:
    size = f"{info.input_size} × {info.input_size} pixels"
    inputs = {"crops": f"crops of {size}", "landmarks_px": "their landmarks", "images": f"photos, trained at {size}"}
    form = "; ".join(f"{key} {_value(key, value)}" for key, value in info.architecture.items())
    outputs = [*OUTPUTS[info.kind], *([ATTENTION] if info.kind == "nkf" and info.architecture.get("strides") else [])]
    return [
        ("kind", f"`{info.kind}`"),
        ("takes", ", ".join(inputs[name] for name in INPUTS[info.kind]) + "; RGB in [0, 1]"),
        ("gives", ", ".join(f"`{name}`" for name in outputs)),
        *([("classes", ", ".join(info.classes))] if info.classes else []),
        *([("architecture", form)] if form else []),
        ("parameters", f"{info.parameters:,}"),
        *([("multiply-adds of one input", f"{info.macs / 1e6:,.0f} million")] if info.macs else []),
        ("made with", f"nkf {info.nkf_version}"),
        *((f"SHA-256 of `{name}`", f"`{digest}`") for name, digest in info.sha256.items()),
    ]


def _data(training: Mapping[str, Any]) -> str:
    """A list of all data, those of the starting weights too, with their terms."""
    lines = {_told_of(entry): "" for entry in _entries(training)}
    for ancestor in _ancestors(training):
        for entry in _entries(ancestor):
            lines.setdefault(_told_of(entry), f" Through the starting weights `{ancestor.get('name')}`.")
    for what, network in _beside(training):
        for entry in (entry for one in (network, *_ancestors(network)) for entry in _entries(one)):
            lines.setdefault(_told_of(entry), f" Through the {what} `{network.get('name')}`.")
    return "\n".join(f"- {line}{note}" for line, note in lines.items()) or "Its sidecar names no data."


def _entries(training: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What the sidecar tells of each pack."""
    data = training.get("data")
    yield from (entry for entry in data if isinstance(entry, Mapping)) if isinstance(data, list) else ()


def _told_of(entry: Mapping[str, Any]) -> str:
    licence = str(entry.get("licence") or "its terms are not told").rstrip(".")
    more = [f"{entry['images']:,} images"] if isinstance(entry.get("images"), int) else []
    more += [f"{key} {_value(key, value)}" for key, value in entry.items()
             if value and key not in ("source", "licence", "images")]  # fmt: skip
    remarks = f" ({'; '.join(more)})" if more else ""
    return f"**{entry.get('source', 'unnamed data')}**{remarks}: {licence}."


def _ancestors(training: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What the sidecar tells of the networks that it started from, the newest first."""
    start = training.get("start") or training.get("start_backbone")
    if isinstance(start, Mapping):
        yield start
        yield from _ancestors(start)


def _beside(training: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the sidecar tells of a landmark trunk and a teacher, each after its name."""
    for field, what in _BESIDE.items():
        if isinstance(network := training.get(field), Mapping):
            yield what, network


def _start(training: Mapping[str, Any]) -> str:
    lines, first = [], training
    for first in _ancestors(training):
        told = ", ".join(f"{key} {_value(key, first[key])}" for key in ("epochs", "seed") if key in first)
        lines.append(f"- `{first.get('name')}`" + (f" ({told})" if told else ""))
    if first.get("pretrained"):
        lines.append(f"- {_origin(first['pretrained'])}")
    elif lines:
        lines.append("- nothing before that: random numbers")
    if not lines:
        but = " but for its landmark trunk" if "start_landmark_trunk" in training else ""
        return f"Starting weights: none, it was trained from random numbers{but}."
    return "Starting weights, the newest first:\n\n" + "\n".join(lines)


def _origin(pretrained: Any) -> str:
    """Name and terms of a face-identity network of others, by the folder that its file was in."""
    name = str(pretrained.get("file") if isinstance(pretrained, Mapping) else pretrained).split("/")[0]
    text = _read_texts("origins").get(name, "where it comes from, and on what terms, its sidecar does not tell.")
    return f"`{name}`, a face-identity network: {' '.join(text.split())}"


def _settings(info: WeightsInfo) -> Table:
    """How it was trained, as far as the sidecar tells."""
    hidden = _NOT_SETTINGS | (_OF_EXPRESSIONS if not info.tells_expressions else set())
    rows: Table = []
    protocol = info.training.get("protocol")
    if isinstance(protocol, Mapping):
        rows.append(("protocol", _protocol(protocol)))
    rows += [(what, f"`{network.get('name')}`") for what, network in _beside(info.training)]
    kept = {key: value for key, value in info.training.items() if key not in hidden}
    return rows + [(key.replace("_", " "), text) for key, text in _flat(kept)]


def _protocol(protocol: Mapping[str, Any]) -> str:
    chosen = {"valid": "by the split valid", "carved": "by a part of the training images", "last": "as the last one"}
    told = {key: _value(key, value) for key, value in protocol.items()}
    text = f"`{told.get('name')}`: rule {told.get('rule')}; trained on {told.get('train')}; checkpoint chosen "
    text += f"{chosen.get(told.get('choose', ''), '')}; reported on {told.get('test')}; {told.get('sampling')}"
    return text + (f"; fold {told['fold']} of {told['folds']} left out" if protocol.get("fold") is not None else "")


def _figures(metrics: Mapping[str, Any]) -> str:
    """A table for each measurement."""
    parts, header = [], ("figure", "value", "95 % interval", "images")
    for title, entry in metrics.items():
        if not isinstance(entry, Mapping):
            continue
        where = title
        if title == "validation_in_training":
            where = f"What chose the checkpoint, in training (epoch {_value('', entry.get('epoch', '?'))})"
        if isinstance(entry.get("landmarks"), str):
            where += f", landmarks of {entry['landmarks']}"
        where += "".join(f", {entry[key]}" for key in ("date", "machine") if entry.get(key))
        rows = [
            _figure(key, entry) for key in entry if key not in _NOT_FIGURES and isinstance(entry[key], (int, float))
        ]
        parts.append(f"{where}:\n\n{_table(header, rows)}")
    if any(key.endswith("ci95") for entry in metrics.values() if isinstance(entry, Mapping) for key in entry):
        parts.append("Intervals come from the choice of images alone: another training run would give other figures.")
    return "\n\n".join(parts) or "Its sidecar holds no figures: nothing is known about how good it is."


def _figure(key: str, entry: Mapping[str, Any]) -> Row:
    images = entry.get("n_leakfree" if key == "accuracy_leakfree" else "n")
    count = f"{images:,}" if isinstance(images, int) else ""
    return _title(key), _value(key, entry[key]), _interval(entry, key), count


def _recalls(info: WeightsInfo) -> str:
    """A table of the recall of each class for each measurement that has it."""
    if not info.tells_expressions or not info.metrics:
        return ""
    parts = []
    for title, entry in info.metrics.items():
        recalls = entry.get("recall_by_class") if isinstance(entry, Mapping) else None
        if isinstance(recalls, Mapping):
            header = ("class", "recall", "95 % interval", "images")
            counts = [sum(row) for row in entry.get("confusion", [])] or [None] * len(recalls)
            rows = [_recall(name, value, count) for (name, value), count in zip(recalls.items(), counts, strict=True)]
            parts.append(f"By class, {title}:\n\n{_table(header, rows)}")
    return "\n\n".join(parts) or "How good it is for each class, its sidecar does not tell."


def _recall(name: str, value: float | None, count: int | None) -> Row:
    if value is None:
        return name, "", "", "0"
    interval = _percents(*wilson_interval(round(value * count), count)) if count else ""
    return name, _percent(value), interval, "" if count is None else f"{count:,}"


def _calibration(info: WeightsInfo) -> str:
    if not info.tells_expressions:
        return ""
    found = info.calibration
    if found is None:
        return "The probabilities are not calibrated beyond what its training targets do."
    text = f"The probabilities are calibrated: softmax of the logits over a temperature of {found.temperature:.4g}"
    if found.class_biases:
        biases = zip(info.classes, found.class_biases, strict=True)
        text += ", plus " + ", ".join(f"{bias:+.3g} for {name}" for name, bias in biases)
    parts = [f"{text}.{_fitted_to(found.figures)}", _before_and_after(found.figures), _threshold(found)]
    return "\n\n".join(part for part in parts if part)


def _fitted_to(figures: Mapping[str, Any]) -> str:
    if not {"data", "split", "rule", "n", "date"} <= figures.keys():
        return ""
    where = "{data} {split} {rule}, {n:,} images, {date}".format_map(figures)
    return f" Fitted to {where}; each figure below is of images that the parameters behind it were not fitted to."


def _before_and_after(figures: Mapping[str, Any]) -> str:
    before, after = figures.get("before", {}), figures.get("after", {})
    rows = [
        (_title(key), _value(key, before.get(key, "")), _value(key, after[key]), _interval(after, key))
        for key in after
        if not key.endswith("ci95")
    ]
    return _table(("probabilities", "before", "calibrated", "95 % interval"), rows)


def _threshold(calibration: Calibration) -> str:
    """From which confidence on faces reach the wanted accuracy."""
    if calibration.min_confidence is None:
        return ""
    target, judged = calibration.figures.get("target_accuracy"), calibration.figures.get("at_min_confidence", {})
    wanted = _percent(target) if isinstance(target, (int, float)) else "the wanted accuracy"
    text = f"Faces of a confidence of {_percent(calibration.min_confidence)} and more are to reach {wanted}"
    told = [f"{key} {_value(key, judged[key])} ({_interval(judged, key)})" for key in ("accuracy", "coverage")
            if judged.get(key) is not None]  # fmt: skip
    return f"{text}; on images that the threshold was not chosen by: {', '.join(told)}." if told else f"{text}."


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as dotted keys and texts; empty ones are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None and value not in ("", []):
            yield f"{prefix}{key}", _value(key, value)


def _value(key: str, value: Any) -> str:
    """Short text of a value: shares in per cent, other numbers to four digits."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(key, one) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(name, one)}" for name, one in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if key in _SHARES:
        return _percent(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _title(key: str) -> str:
    return _TITLES.get(key, key.replace("_", " "))


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _interval(entry: Mapping[str, Any], key: str) -> str:
    """The 95 % interval that an entry has of one of its shares."""
    ends = entry.get(f"{key}_ci95")
    return _percents(*ends) if key in _SHARES and ends else ""


def _percents(low: float, high: float) -> str:
    return f"{100 * low:.2f}–{100 * high:.2f} %"


def _table(header: Row, rows: Sequence[Row]) -> str:
    """A Markdown table; nothing without rows."""
    if not rows:
        return ""
    cells = [[" ".join(text.split()).replace("|", "\\|") for text in row] for row in (header, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


if __name__ == "__main__":
    with replacing(Path(sys.argv[1])) as page:
        page.write_text(packaged_cards(), encoding="utf-8")
