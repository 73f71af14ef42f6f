"""Model cards: every number is the sidecar's, every text is there, and the page in docs is the one that they make."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nkf.cards import TEXTS, model_card, packaged_cards
from nkf.errors import NkfError
from nkf.metrics import wilson_interval
from nkf.weights import EXPRESSION_KINDS, Calibration, WeightsInfo, find_weights, packaged_models

ROOT = Path(__file__).parents[1]
SECTIONS = re.findall(r"^## (.+)$", (TEXTS / "any.md").read_text(), re.MULTILINE)
FIGURES = {
    "n": 40, "accuracy": 0.75, "accuracy_ci95": [0.6, 0.86], "mean_class_accuracy": 0.625, "accuracy_leakfree": 0.7,
    "n_leakfree": 30, "landmarks": "fan", "date": "2026-11-21", "machine": "a processor",
    "recall_by_class": {"anger": 0.8, "contempt": 0.45, "fear": None},
    "confusion": [[8, 2, 0], [10, 9, 1], [0, 0, 0]],
}  # fmt: skip


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


@pytest.fixture
def card_of(tmp_path: Path) -> Any:
    """Return a function that makes the card of a network that is not packaged."""

    def make(kind: str = "nkf", **fields: Any) -> str:
        (tmp_path / "mobile.safetensors").write_bytes(b"")
        given = {"architecture": {"backbone": "tiny"}, "input_size": 64, "mean": (0, 0, 0), "std": (1, 1, 1)}
        classes = ("anger", "contempt", "fear") if kind == "nkf" else ()
        given |= {"name": "mobile", "kind": kind, "classes": classes, "parameters": 1234567, "nkf_version": "0.1.0"}
        WeightsInfo.model_validate(given | fields).write(tmp_path / "mobile.json")
        return model_card(str(tmp_path / "mobile.safetensors"))

    return make


def test_page_in_docs_is_what_the_sidecars_and_texts_make() -> None:
    """After a change: python -m nkf.cards docs/model_card.md."""
    assert (ROOT / "docs" / "model_card.md").read_text(encoding="utf-8") == packaged_cards()


@pytest.mark.parametrize("name", packaged_models())
def test_card_of_a_packaged_network_is_complete(name: str) -> None:
    card, (_, info) = model_card(name), find_weights(name)
    assert card.startswith(f"# Model card: `{name}`\n")
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == SECTIONS
    assert re.findall(r"\{\w*\}|\n\n\n", card) == []
    assert f"{info.parameters:,}" in card
    assert all(digest in card for digest in info.sha256.values())
    assert all(entry["licence"].rstrip(".") in card for entry in info.training["data"])
    for entry in info.metrics.values():
        if "accuracy" in entry:
            assert f"| accuracy | {100 * entry['accuracy']:.2f} % |" in card
    assert "Article 5(1)(f)" in card
    assert "Article 50(3)" in card
    assert "Annex III" in card
    assert card.count("This is not legal advice") + card.count("This is not\nlegal advice") == 2
    assert ("**An expression is not an emotion.**" in card) == (info.kind == "nkf")


@pytest.mark.parametrize("name", packaged_models())
def test_card_of_a_packaged_network_says_whom_it_was_measured_on(name: str) -> None:
    assert "Nobody has said so" not in section(model_card(name), "Whom it was measured on")
    assert "research weights" in section(model_card(name), "What it was made from")


def test_page_tells_once_what_is_the_same_for_all() -> None:
    page = packaged_cards()
    assert page.count("Article 5(1)(f)") == 1
    assert page.count("An expression is not an emotion") == 1
    assert [page.count(f"### `{name}`") for name in packaged_models()] == [len(SECTIONS) - 1] * len(packaged_models())


def test_figures_are_those_of_the_sidecar(card_of: Any) -> None:
    training = {"step": 9, "epoch": 1.5, "score": 0.5, "cross_entropy": 0.51234567}
    text = section(card_of(metrics={"validation_in_training": training, "made valid majority": FIGURES}), SECTIONS[2])
    table = rows(text)
    assert "What chose the checkpoint, in training (epoch 1.5):" in text
    assert ["cross entropy", "0.5123", "", ""] in table
    assert "made valid majority, landmarks of fan, 2026-11-21, a processor:" in text
    assert ["accuracy", "75.00 %", "60.00–86.00 %", "40"] in table
    assert ["accuracy without copies of training images", "70.00 %", "", "30"] in table
    low, high = wilson_interval(9, 20)
    assert ["contempt", "45.00 %", f"{100 * low:.2f}–{100 * high:.2f} %", "20"] in table
    assert ["fear", "", "", "0"] in table
    assert not any("score" in row[0] for row in table)


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({}, "nothing is known about how good it is"),
        ({"made": {"accuracy": 0.5}}, "How good it is for each class, its sidecar does not tell"),
        ({"made": {"recall_by_class": {"anger": 0.5}}}, "| anger | 50.00 % |  |  |"),
    ],
)
def test_what_is_not_known_is_said(card_of: Any, metrics: dict[str, Any], told: str) -> None:
    assert told in section(card_of(metrics=metrics), "How good it is")
    assert "not calibrated beyond" in card_of(metrics=metrics)


def test_calibration_is_told_with_its_figures(card_of: Any) -> None:
    figures = {
        "data": "made", "split": "valid", "rule": "majority", "n": 3191, "date": "2026-11-21", "target_accuracy": 0.95,
        "before": {"ece": 0.05, "nll": 0.4}, "after": {"ece": 0.0125, "ece_ci95": [0.004, 0.02], "nll": 0.375},
        "at_min_confidence": {
            "accuracy": 0.9512, "accuracy_ci95": [0.94, 0.96], "coverage": 0.8, "coverage_ci95": [0.7, 0.9],
        },
    }  # fmt: skip
    calibration = Calibration(temperature=1.25, class_biases=(0.1, 0, -0.2), min_confidence=0.625, figures=figures)
    text = section(card_of(calibration=calibration), "How good it is")
    assert "temperature of 1.25, plus +0.1 for anger, +0 for contempt, -0.2 for fear." in text
    assert "Fitted to made valid majority, 3,191 images, 2026-11-21" in text
    assert ["expected calibration error", "5.00 %", "1.25 %", "0.40–2.00 %"] in rows(text)
    assert ["negative log-likelihood", "0.4", "0.375", ""] in rows(text)
    assert "confidence of 62.50 % and more are to reach 95.00 %" in text
    assert "accuracy 95.12 % (94.00–96.00 %), coverage 80.00 % (70.00–90.00 %)." in text
    bare = section(card_of(calibration=Calibration(temperature=2.0)), "How good it is")
    assert "temperature of 2.\n" in bare + "\n"


def test_starting_weights_bring_their_data_and_terms(card_of: Any) -> None:
    first = {"name": "first", "data": [{"source": "b.zip", "licence": "CC BY"}], "pretrained": "espdl_mbf", "seed": 3}
    own = {"source": "a.zip", "licence": "mine.", "images": 4000, "leaks_dropped": 7}
    second = {"name": "second", "data": [own], "epochs": 2.5, "start_backbone": first}
    text = section(card_of(training={"data": [own], "start": second}), "What it was made from")
    assert "- **a.zip** (4,000 images; leaks_dropped 7): mine.\n" in text
    assert "- **b.zip**: CC BY. Through the starting weights `first`." in text
    assert text.index("- `second` (epochs 2.5)") < text.index("- `first` (seed 3)") < text.index("- `espdl_mbf`")
    assert "`espdl_mbf`, a face-identity network: MIT (Espressif)." in text


def test_a_landmark_trunk_and_a_teacher_bring_their_data_and_terms(card_of: Any) -> None:
    start = {"name": "before", "data": [{"source": "c.zip", "licence": "CC0"}]}
    trunk = {"name": "trunk", "kind": "landmark_trunk", "data": [{"source": "b.zip", "licence": "CC BY"}]}
    teacher = {"name": "big", "kind": "eac", "data": [{"source": "a.zip", "licence": "mine"}], "start": start}
    given = {"data": [{"source": "a.zip", "licence": "mine"}], "start_landmark_trunk": trunk, "teacher": teacher}
    text = section(card_of(training=given), "What it was made from")
    assert "- **a.zip**: mine.\n" in text
    assert "- **b.zip**: CC BY. Through the landmark trunk `trunk`.\n" in text
    assert "- **c.zip**: CC0. Through the teacher `big`.\n" in text
    assert [row for row in rows(text) if "`" in row[-1]] == [["landmark trunk", "`trunk`"], ["teacher", "`big`"]]


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({}, "Starting weights: none, it was trained from random numbers."),
        ({"start_landmark_trunk": {"name": "x"}}, "trained from random numbers but for its landmark trunk."),
        ({"start": {"name": "x"}}, "- nothing before that: random numbers"),
        ({"pretrained": {"file": "foamliu_mobilefacenet/weights.safetensors", "sha256": "0"}}, "Apache-2.0"),
        ({"pretrained": {"file": "new/weights.safetensors"}}, "on what terms, its sidecar does not tell"),
        ({"data": [{"source": "a"}]}, "its terms are not told"),
        ({"unlabelled": [{"source": "u", "images": 12, "models": ["a", "b"]}]}, "| unlabelled | source u, images 12"),
        ({"protocol": {"name": "own", "train": ["train"], "fold": 2, "folds": 5}}, "fold 2 of 5 left out"),
    ],
)  # fmt: skip
def test_origin_is_told_as_far_as_the_sidecar_knows_it(card_of: Any, training: dict[str, Any], told: str) -> None:
    assert told in section(card_of(training=training), "What it was made from")


@pytest.mark.parametrize("kind", ["nkf", "poster", "eac", "fan", "detector", "backbone", "landmark_trunk"])
def test_network_of_ones_own_gets_the_general_texts(card_of: Any, kind: str) -> None:
    """It has a packaged network's name, not its origin."""
    card = card_of(kind)
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == SECTIONS
    assert "Nobody has said so" in card
    assert not re.search(r"FERPlus|FER-2013|FairFace|So and Han", card)
    assert ("calibrated" in card) == (kind in EXPRESSION_KINDS)


def test_cells_hold_no_table_of_their_own(card_of: Any) -> None:
    assert "| targets | a\\|b c |" in card_of(training={"targets": "a|b\nc"})


def test_unknown_network_is_one_line() -> None:
    with pytest.raises(NkfError, match=r"model 'none': neither a packaged model \("):
        model_card("none")


def test_page_is_written_without_what_training_needs(tmp_path: Path) -> None:
    program = (
        "import runpy, sys; sys.argv = ['cards', 'page.md']; runpy.run_module('nkf.cards', run_name='__main__'); "
        "print({'torch', 'matplotlib', 'pyarrow', 'onnxruntime'} & sys.modules.keys())"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == packaged_cards()
