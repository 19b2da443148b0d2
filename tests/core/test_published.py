"""Every published figure names one training that can be run."""

from typing import Any

import pytest

from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.config import KNOWN_CELLS, check, flatten
from rnnlm_core.presets import PRESETS, run_config
from rnnlm_core.published import SECTIONS, Published, Section

ROWS = [row for section in SECTIONS for row in section.rows]
COLUMNS = {name for section in SECTIONS for _, name in section.figures}
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.preset}-{row.system}")
every_section = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)


def trained(row: Published) -> dict[str, Any]:
    """Return every key that a row's training has."""
    return flatten(run_config(row.preset, cells=[row.cell], changes=row.changes))


@every_row
def test_a_row_s_preset_cell_and_changes_are_a_valid_config(row: Published) -> None:
    assert row.preset in PRESETS
    assert row.cell in KNOWN_CELLS
    config = run_config(row.preset, cells=[row.cell], changes=row.changes)
    check(config)
    assert config.corpus.name in CATALOGUE


@every_row
def test_a_row_changes_what_its_preset_has_not_yet(row: Published) -> None:
    preset = flatten(PRESETS[row.preset]())
    for key, value in row.changes.items():
        assert preset[key] != value, key
        assert trained(row)[key] == value, key


@every_row
def test_a_row_s_changes_can_be_typed(row: Published) -> None:
    typed = {key: str(value) for key, value in row.changes.items()}
    assert run_config(row.preset, cells=[row.cell], changes=typed) == run_config(
        row.preset, cells=[row.cell], changes=row.changes
    )


def test_no_two_rows_are_the_same_training() -> None:
    trainings = [(row.preset, tuple(sorted((key, str(value)) for key, value in trained(row).items()))) for row in ROWS]
    assert len(set(trainings)) == len(trainings) == len(ROWS)


@every_section
def test_a_section_says_what_it_shows(section: Section) -> None:
    assert section.title
    assert section.text
    assert section.rows
    heads = [head for head, _ in section.figures]
    assert len(set(heads)) == len(heads) > 0


@every_section
def test_a_figure_is_one_that_the_rows_are_measured_on(section: Section) -> None:
    for row in section.rows:
        config = run_config(row.preset, cells=[row.cell], changes=row.changes)
        for _, name in section.figures:
            split = name.partition("_")[0]
            if split in ("train", "valid", "test"):
                assert config.corpus.has_split(split), name
            if name.endswith(("bits_per_char", "oov_rate")) or name.startswith("test_"):
                assert config.evaluate.split == split, name


def test_cells_of_a_table_hold_no_bar() -> None:
    """It would end the cell in Markdown."""
    texts = [text for row in ROWS for text in (row.system, row.theirs)]
    texts += [head for section in SECTIONS for head, _ in section.figures]
    assert [text for text in texts if "|" in text or "\n" in text or not text] == []
