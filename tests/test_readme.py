"""The Python examples of the README and of pages run, and their tables are those of the code."""

import re
from pathlib import Path

import pyarrow.parquet
import pytest
from made_predictions import CLASSES
from PIL import Image

from nkf.output import CSV_COLUMNS, write_parquet
from nkf.protocols import PROTOCOLS

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/prediction.md", "docs/explanation.md")
EXAMPLES = [
    pytest.param(example, id=f"{page}-{number}")
    for page in PAGES
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_python_example(example, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(example, "example", "exec"), {})
    assert capsys.readouterr().out


def test_the_columns_of_the_prediction_page_are_those_of_the_tables(tmp_path):
    table = (ROOT / "docs" / "prediction.md").read_text().partition("| column | type | CSV |")[2].partition("\n- ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:] if line.startswith("|")]
    types = {"string": "string", "int32": "int32", "float": "float"}
    documented = {}
    for names, kind, *_ in rows:
        listed = kind.removeprefix("list of ")
        named = re.findall(r"`(\w+)`", names) or list(CLASSES)
        documented |= dict.fromkeys(named, types[listed] if kind == listed else f"list<element: {types[listed]}>")
    write_parquet([], tmp_path / "a.parquet", CLASSES)
    schema = pyarrow.parquet.read_schema(tmp_path / "a.parquet")
    assert documented == {name: str(schema.field(name).type) for name in schema.names}
    in_csv = [name for names, _, csv, _ in rows if csv for name in re.findall(r"`(\w+)`", names)]
    assert tuple(in_csv) == CSV_COLUMNS


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
