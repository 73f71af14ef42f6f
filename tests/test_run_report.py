"""The report of a run: what it says is what the run's own files say, and nothing in it comes from elsewhere."""

import html
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml

from nkf.config import load_config, save_config, validated
from nkf.errors import NkfError
from nkf.models import save_model
from nkf.recipes.expression import ExpressionRecipe
from nkf.report_html import Markup, bar, element, markup, table
from nkf.report_run import Panel, draw_curves, draw_reliability, moving_mean
from nkf.run_mistakes import Judged, mistakes
from nkf.run_report import read_log, write_run_report

LANDMARKS = {"name": "points", "task": "landmarks", "data": ["faces"], "epochs": 4.0, "learning_rate": 0.002}


class Tags(HTMLParser):
    """Checks that tags close in order, and notes attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def loss(step: int, **more: Any) -> dict[str, Any]:
    return {"time": 1e9 + 10 * step, "step": step, "loss": 2 / step, "learning_rate": 0.001, **more}


LOG = lines(
    loss(20),
    loss(40, skipped=2),
    {"time": 1e9 + 450, "step": 50, "epoch": 1.0, "score": -0.07, "error": 0.07, "loose_error": 0.09},
    loss(60, skipped=1),
    {"time": 1e9 + 950, "step": 100, "epoch": 2.0, "score": -0.05, "error": 0.05, "loose_error": 0.08},
)


@pytest.fixture
def made_run(tmp_path: Path) -> Any:
    """Return a function that writes a run folder of a configuration and a log, without a network."""

    def make(log: str | None = LOG, **changes: Any) -> Path:
        run = tmp_path / "runs" / "points"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(LANDMARKS | changes))
        if log is not None:
            (run / "log.jsonl").write_text(log)
        return run

    return make


@pytest.fixture(scope="module")
def trained(mini_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as the trainer leaves it, of a network that has learnt nothing: optimisers take long to import."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    network = {"backbone": "tiny", "keypoint_channels": 16}
    config = {"name": "tiny", "task": "expression", "data": [str(mini_pack)], "network": network, "crop_size": 32}
    recipe = ExpressionRecipe(validated(config | {"epochs": 2, "batch_size": 8}, "test"), torch.device("cpu"))
    torch.manual_seed(0)
    model = recipe.create().eval()
    best = {"time": 1e9 + 100, "step": 8, "epoch": 2.0, **recipe.validate(model)}
    (run / "best").mkdir(parents=True)
    info = recipe.info(model).model_copy(update={"metrics": {"validation_in_training": best}})
    save_model(model, run / "best" / "model.safetensors", info)
    save_config(recipe.config, run / "config.yaml")
    (run / "log.jsonl").write_text(lines(loss(4), best))
    return run


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes time and is not looked at, all but the titles."""
    monkeypatch.setattr(
        "nkf.run_report.draw_curves", lambda panels, *_: "".join(f"<i>{one.title}</i>" for one in panels)
    )
    monkeypatch.setattr("nkf.run_mistakes.draw_reliability", lambda *_: "<svg></svg>")


def report(run: Path, tmp_path: Path, **options: Any) -> str:
    file = tmp_path / "out" / "report.html"
    write_run_report(run, file, device="cpu", **options)
    assert [one.name for one in file.parent.iterdir()] == ["report.html"]
    text = file.read_text(encoding="utf-8")
    Tags(text)
    return text


@pytest.fixture(scope="module")
def text(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its report."""
    return report(trained, tmp_path_factory.mktemp("report"), worst=3)


def test_report_tells_what_the_trainer_measured_and_shows_the_worst_mistakes(trained: Path, text: str) -> None:
    best = json.loads((trained / "best" / "model.json").read_text())["metrics"]["validation_in_training"]
    assert f"<strong>{best['accuracy']:.2%}</strong>" in text
    assert "16 images of mini: the images that chose the checkpoint" in text
    wrong = 16 - round(16 * best["accuracy"])
    assert f"The {min(3, wrong)} of {wrong} wrong answers" in text
    assert text.count('src="data:image/jpeg;base64,') == min(3, wrong)
    assert "pictures of people from mini, under its terms. Do not publish it.</strong> none" in text
    assert re.search(r"label: (happiness|sadness) \(\d", text)
    assert "\N{NO-BREAK SPACE}8, neutral\N{NO-BREAK SPACE}2" in text  # votes
    assert "step 8, epoch 2 of 2</td>" in text
    for title in ("Curves", "By class", "Most confused", "Reliability", "Worst mistakes", "Configuration"):
        assert f"<h2>{title}</h2>" in text


def test_report_needs_nothing_beside_itself(text: str) -> None:
    sources = [value for name, value in Tags(text).attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(str(value).startswith(("data:image/jpeg;base64,", "#")) for value in sources)
    assert re.sub(r'xmlns(:xlink)?="[^"]+"', "", text).count("http") == 0
    assert "<script" not in text
    assert "@import" not in text


@pytest.mark.usefixtures("no_plots")
def test_report_without_pictures_names_the_images(trained: Path, tmp_path: Path) -> None:
    text = report(trained, tmp_path, worst=2, pictures=False)
    assert "data:image" not in text
    assert "pictures of people" not in text
    assert len(set(re.findall(r"face\d\d\.png", text))) == 2


@pytest.mark.usefixtures("no_plots")
def test_pack_may_be_elsewhere(trained: Path, mini_pack: Path, tmp_path: Path) -> None:
    run = tmp_path / "moved"
    run.mkdir()
    (run / "log.jsonl").write_text((trained / "log.jsonl").read_text())
    (run / "best").symlink_to(trained / "best")
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    of_other_version = {"data": ["gone"], "soft_labels": "gone", "older": 1}
    (run / "config.yaml").write_text(yaml.safe_dump(settings | of_other_version))
    text = report(run, tmp_path)
    assert "The network was not judged: gone: no pack" in text
    assert "<h1>Run tiny (moved)</h1>" in text
    assert "16 images of mini" in report(run, tmp_path, data=mini_pack, worst=0)


@pytest.mark.usefixtures("no_plots")
def test_weights_that_were_never_validated_are_told_as_such(trained: Path, tmp_path: Path) -> None:
    """A run that was stopped between its first lines and its first validation has ``last`` alone."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((trained / "config.yaml").read_text())
    (run / "log.jsonl").write_text(lines(loss(20)))
    assert "was not judged: the run has kept no network yet" in report(run, tmp_path)
    (run / "last").symlink_to(trained / "best")
    text = report(run, tmp_path, worst=0)
    assert "16 images of mini: the images that will choose the checkpoint; none has been validated yet" in text


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"choose": "last"}, "no image chose its checkpoint; 'nkf evaluate' measures it"),
        ({"choose": "last", "fold": 1, "folds": 4}, None),
    ],
)
def test_reported_split_stays_untouched(
    trained: Path, tmp_path: Path, changes: dict[str, Any], reason: str | None
) -> None:
    settings = load_config(trained / "config.yaml").model_dump(mode="json")
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text((trained / "log.jsonl").read_text())
    (run / "best").symlink_to(trained / "best")
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"protocol": changes}))
    text = html.unescape(report(run, tmp_path, worst=0))
    assert (reason in text) if reason else ("8 images of mini: fold 1 of 4, which was left out" in text)


@pytest.mark.usefixtures("no_plots")
def test_unfinished_landmark_run_has_curves_alone(made_run: Any, tmp_path: Path) -> None:
    text = report(made_run(), tmp_path)
    assert "step 100, epoch 2 of 4: not finished, 50% of about 200 steps" in text
    assert "step 100, epoch 2.0: error 5.00%, loose error 8.00%" in text
    assert "3 steps, whose loss or gradient was no finite number" in text
    assert "0.1 at step 20, 0.03333 at 60" in text
    for panel in ("Training loss", "Learning rate", "Landmark error"):
        assert f"<i>{panel}</i>" in text
    assert "Mistakes" not in text


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("log", "told"),
    [
        (lines(loss(20)), "step 20 so far, of 4.0 epochs"),
        (lines(loss(20), {"time": 1e9 + 300, "step": 24, "epoch": 2.0}), "step 24, epoch 2.0, the last: nothing"),
        (LOG + '{"time": 1.0, "ste', "not finished, 50%"),  # just being written
        (LOG + lines({"time": 1e9 + 9e5, "step": 200, "epoch": 4.0, "score": -1}), "without 1 break;"),
        (LOG + lines({"time": 1e9 + 2000, "step": 200, "epoch": 4.0, "score": -1}), "step 200, epoch 4 of 4</td>"),
    ],
)
def test_log_is_read_as_far_as_it_goes(made_run: Any, tmp_path: Path, log: str, told: str) -> None:
    assert told in report(made_run(log), tmp_path)


def test_breaks_are_no_training_time(made_run: Any) -> None:
    log = read_log(made_run(lines(loss(20), loss(40), loss(60), {**loss(80), "time": 1e9 + 90_000})))
    assert log.seconds == (400, 1)
    assert log.best is None


@pytest.mark.usefixtures("no_plots")
def test_settings_that_differ_from_the_defaults_stand_out(made_run: Any, tmp_path: Path) -> None:
    more = {"ema_decay": 0.995, "older": [1, 2], "augment": {"flip": 0.25, "blur": 0.0}}
    protocol = {"name": "rafdb", "choose": "carved", "seed": 3}
    changed, same = report(made_run(**more, protocol=protocol), tmp_path).split("<details>")
    row = '<tr><th>{}</th><td class="changed">{}</td><td>{}</td>'
    assert row.format("learning_rate", "0.002", "0.001") + "<td>peak, reached after warm-up</td>" in changed
    assert row.format("augment.flip", "0.25", "0.5") in changed
    assert row.format("older", "1, 2", "") + "<td>this nkf does not know it</td>" in changed
    assert row.format("protocol.name", "rafdb", "own") in changed
    assert row.format("protocol.seed", "3", "0") in changed
    for name in ("ema_decay", "augment.blur", "protocol.choose"):
        assert f"<th>{name}</th>" in same


@pytest.mark.usefixtures("no_plots")
def test_text_is_escaped(made_run: Any, tmp_path: Path) -> None:
    text = report(made_run(data=["<script>alert(1)</script>&"], older='"><b>'), tmp_path)
    assert "<script" not in text
    assert "<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in text


@pytest.mark.usefixtures("no_plots")
def test_mistakes_are_one_line_and_write_nothing(made_run: Any, tmp_path: Path) -> None:
    good, out = made_run(), tmp_path / "report.html"
    bare, silent, empty, broken, odd = (tmp_path / name for name in ("bare", "silent", "empty", "broken", "odd"))
    endless, deep = tmp_path / "endless", tmp_path / "deep"
    logs = ((silent, None), (empty, ""), (broken, '{"step": 1}\n[]\n{"step": 2}\n'), (odd, LOG))
    more = ((endless, '{"step": Infinity}\n{"step": 2}\n'), (deep, "[" * 100_000 + '\n{"step": 2}\n'))
    for folder, log in (*logs, *more):
        folder.mkdir()
        (folder / "config.yaml").write_text("name: a\n" if folder != odd else "- a\n")
        if log is not None:
            (folder / "log.jsonl").write_text(log)
    cases: Sequence[tuple[Path, dict[str, Any], str]] = [
        (bare, {}, "bare: no run folder (config.yaml is missing), expected one that 'nkf train' made"),
        (silent, {}, "silent: the run has logged nothing yet; go on with 'nkf train'"),
        (empty, {}, "empty: the run has logged nothing yet; go on with 'nkf train'"),
        (broken, {}, "log.jsonl: damaged in line 2, expected one JSON object with a step"),
        (endless, {}, "log.jsonl: damaged in line 1, expected one JSON object with a step"),
        (deep, {}, "log.jsonl: damaged in line 1, expected one JSON object with a step"),
        (odd, {}, "config.yaml: no configuration, expected keys and values"),
        (good, {"worst": -1}, "worst -1: expected a number of mistakes, 0 or more"),
        (good, {"data": tmp_path}, "no pack (manifest.json is unreadable)"),
    ]
    for run, options, message in cases:
        with pytest.raises(NkfError, match=re.escape(message)):
            write_run_report(run, out, device="cpu", **options)
    with pytest.raises(NkfError, match="cannot be written"):
        write_run_report(good, good / "config.yaml" / "report.html")
    assert not out.exists()


def judged(labels: Sequence[int], probabilities: Sequence[Sequence[float]]) -> Judged:
    count = len(labels)
    return Judged(
        what="all",
        dataset="made",
        licence="",
        classes=("a", "b", "c"),
        names=np.array([f"n{number}" for number in range(count)]),
        labels=np.array(labels),
        probabilities=np.array(probabilities, np.float32),
        votes=np.zeros((count, 10), np.uint8),
        crops=np.zeros((count, 8, 8, 3), np.uint8),
        rows=np.arange(count),
    )


@pytest.mark.usefixtures("no_plots")
def test_confusion_recall_and_pairs_by_hand() -> None:
    """a is right twice and b once; an a is taken for b once, a b for a; nothing is labelled c."""
    rows = [[0.9, 0.1, 0], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.4, 0.6, 0], [0.95, 0.05, 0]]
    text = "".join(mistakes(judged([0, 0, 0, 1, 1], rows), worst=5, pictures=False))
    plain = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    cells = [re.findall(r">([^<>]*)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", plain)]
    assert ["a", "2", "1", "", "3", "66.7%", "20.8 – 93.9%"] in [[*row[:6], row[-1]] for row in cells]
    assert ["c", "", "", "", "0", "", "", ""] in cells
    assert ["b → a", "1", "50.0%", "95.0%"] in cells
    assert ["a → b", "1", "33.3%", "70.0%"] in cells
    assert [row[0] for row in cells[-2:]] == ["n4", "n2"]  # the surest mistake first
    assert "Accuracy <strong>60.00%</strong> [23.07%, 88.24%], mean of the classes&#x27; recalls 58.33%" in plain
    table_of_figures = dict(row for row in cells if len(row) == 2)
    assert table_of_figures["mean confidence"] == "79.00%"
    assert table_of_figures["accuracy"] == "60.00%"
    assert table_of_figures["negative log-likelihood"] == f"{-np.log([0.9, 0.8, 0.2, 0.6, 0.05]).mean():.4f}"


@pytest.mark.usefixtures("no_plots")
def test_network_without_mistakes() -> None:
    text = "".join(mistakes(judged([0, 1], [[0.9, 0.1, 0], [0.2, 0.8, 0]]), worst=5, pictures=True))
    assert "No image is taken for another class." in text
    assert "0 wrong answers, none is shown." in text


def test_plots_are_svg_with_text_and_the_same_each_time() -> None:
    panels = [Panel("panel", {"one": ([0, 1, 2], [1, 2, 0]), "two": ([0, 1], [3, 4])})]
    text = draw_curves(panels, "epoch", best=1)
    assert text == draw_curves(panels, "epoch", best=1)
    root = ElementTree.fromstring(text)
    written = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"panel", "epoch", "one", "two"} <= set(written)
    assert "metadata" not in text
    ElementTree.fromstring(draw_reliability(np.array([0.5, 0.9, 0.9]), np.array([True, True, False])))


def test_moving_mean() -> None:
    np.testing.assert_allclose(moving_mean([1.0, 2.0, 6.0, 0.0], 2), [1.5, 4.0, 3.0])


def test_pieces_of_a_page() -> None:
    assert markup("a<b") == "a&lt;b"
    assert markup(Markup("<b>")) == "<b>"
    assert element("p", "a&", Markup("<i>"), kind="x") == '<p class="x">a&amp;<i></p>'
    expected = '<table><tbody><tr><th>a</th><td class="number">1</td><td>raw</td></tr></tbody></table>'
    assert table((), [("a", 1, Markup("<td>raw</td>"))], numbers=(1,)) == expected
    assert 'width="25.0"' in bar(0.25, 0.2, 0.3)
