"""The pages that are made of the code say what the code says."""

import re
from pathlib import Path
from statistics import median

import pytest

from handbook import architecture, configuration
from handbook.marks import DOCS, END, START, filled
from rnnlm_core.config import RunConfig, flatten
from rnnlm_core.errors import DataError
from rnnlm_core.presets import PRESETS


def test_the_configuration_page_is_what_the_types_say() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert page == filled(page, configuration.configuration()), "run `make docs`"


def test_every_key_and_every_preset_is_on_it() -> None:
    made = configuration.configuration()
    assert re.findall(r"^\| `([^`]+)` \| ", made, re.MULTILINE) == list(flatten(RunConfig()))
    assert re.findall(r"^### (.+)$", made, re.MULTILINE) == list(PRESETS)
    assert "| `train.learning_rate` | `0.003` | number, > 0, ≤ 1,000,000 |" in made
    assert "| `model.implementation` | `concise` | `concise`, `scratch` |" in made


def test_each_module_of_the_core_has_one_subject_and_each_subject_only_what_is_there() -> None:
    named = " ".join(architecture.SUBJECTS.values()).split()
    there = {module.removeprefix("rnnlm_core.") for module in architecture.modules() if "rnnlm_core." in module}
    assert len(named) == len(set(named))
    assert set(named) - there == set()


def test_the_architecture_page_has_a_row_for_nearly_every_module() -> None:
    """Nearly: the page is written when the handbook is, not at every change of the code."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    there = {str(path.relative_to(architecture.ROOT)) for path in architecture.modules().values()}
    told = set(re.findall(r"^\| \[\w+\]\(\.\./([\w/.]+)\)", page, re.MULTILINE))
    assert len(there & told) > 0.9 * len(there)
    assert not [row for row in page.splitlines() if row.startswith("| [") and "|  |" in row], "a module without words"


def test_its_figures_are_near_todays() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for height in architecture.HEIGHTS:
        (told,) = re.findall(rf"^\| `{height}`: \d+ files \| (\d+) \| (\d+) \|", page, re.MULTILINE)
        paths = [path for path in architecture.modules().values() if path.is_relative_to(architecture.ROOT / height)]
        for figure, lines in zip(told, architecture.lengths(paths), strict=True):
            assert int(figure) == pytest.approx(median(lines), rel=0.3)


def test_the_lengths_are_those_of_files_and_functions(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text("def f():\n    def g():\n        pass\n    return g\n\n\nclass A:\n    async def h(self): ...\n")
    assert architecture.lengths([file]) == ([8], [4, 2, 1])


def test_the_picture_shows_every_module_and_is_the_same_each_time(tmp_path: Path) -> None:
    first, again = tmp_path / "architecture.svg", tmp_path / "again" / "architecture.svg"
    again.parent.mkdir()
    architecture.draw(first)
    architecture.draw(again)
    assert first.read_bytes() == again.read_bytes()
    text = first.read_text(encoding="utf-8")
    assert [name for module in architecture.modules() if (name := module.rpartition(".")[2]) not in text] == []


def test_the_layers_are_those_of_the_contract() -> None:
    order = {"flows": 0, "tasks": 1}
    upwards = [
        pair
        for pair in architecture.imports()
        if order.get(pair[0].split(".")[0], 2) > order.get(pair[1].split(".")[0], 2)
    ]
    assert upwards == []


def test_a_page_without_marks_is_refused() -> None:
    assert filled(f"a\n{START}\nold\n{END}\nb", "new") == f"a\n{START}\n\nnew\n\n{END}\nb"
    with pytest.raises(DataError, match="no place for what is made of the code"):
        filled("a page", "new")
