"""The Python examples of the README and of the datasets page run, and their tables are those of the code."""

import re
from pathlib import Path

import pytest

from nkf.protocols import PROTOCOLS

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_python_example(example, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_pack_example(mini_pack):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "datasets.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(example, "datasets.md", "exec"), names)
    assert names["describe"](mini_pack) == "32 images, 1, (48, 48, 3), None"


def test_every_protocol_is_documented():
    page = (ROOT / "docs" / "datasets.md").read_text().partition("## Protocols")[2]
    for name, protocol in PROTOCOLS.items():
        (row,) = re.findall(rf"^\| `{name}`.*$", page, re.MULTILINE)
        numbers = [f"{number:,}" for allowed in protocol.expected.values() for number in allowed]
        assert [number for number in numbers if number not in row] == []
        assert (protocol.sampling in row, str(len(protocol.classes)) in row) == (True, True)
