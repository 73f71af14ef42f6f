"""The Python examples of the README and of the datasets page run, and their tables are those of the code."""

import re
from pathlib import Path

import pytest
from PIL import Image

from nkf.protocols import PROTOCOLS

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_python_example(example, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_examples_of_the_datasets_page(mini_pack, fake_package, portrait_path, tmp_path, capsys):
    names = {}
    for example in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "datasets.md").read_text(), re.DOTALL):
        exec(compile(example, "datasets.md", "exec"), names)
    assert names["describe"](mini_pack) == "32 images, 1, (48, 48, 3), None"
    with Image.open(portrait_path) as portrait:
        for number in range(5):
            (tmp_path / "pictures" / "happy").mkdir(parents=True, exist_ok=True)
            portrait.resize((500 + number, 512)).save(tmp_path / "pictures" / "happy" / f"{number}.jpg")
    names["import_own"](tmp_path / "pictures", tmp_path / "own")
    assert capsys.readouterr().out.splitlines() == ["{'train': 4, 'valid': 1}", "0"]


def test_every_protocol_is_documented():
    page = (ROOT / "docs" / "datasets.md").read_text().partition("## Protocols")[2]
    for name, protocol in PROTOCOLS.items():
        (row,) = re.findall(rf"^\| `{name}`.*$", page, re.MULTILINE)
        numbers = [f"{number:,}" for allowed in protocol.expected.values() for number in allowed]
        assert [number for number in numbers if number not in row] == []
        assert (protocol.sampling in row, str(len(protocol.classes)) in row) == (True, True)
