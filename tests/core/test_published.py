"""Every published figure names one training that can be run."""

from typing import Any

import pytest
import torch

from rnnlm_core.catalogue import CATALOGUE
from rnnlm_core.config import OWN_CELLS, flatten
from rnnlm_core.config_rules import check
from rnnlm_core.model import LanguageModel, num_parameters
from rnnlm_core.presets import PRESETS, run_config
from rnnlm_core.published import SECTIONS, Published, Section

ROWS = [row for section in SECTIONS for row in section.rows]
COLUMNS = {name for section in SECTIONS for _, name in section.figures}
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.preset}-{row.system}")
every_section = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)


def trained(row: Published) -> dict[str, Any]:
    """Return every key that a row's training has."""
    return flatten(row.config)


@every_row
def test_a_row_s_preset_cell_and_changes_are_a_valid_config(row: Published) -> None:
    assert row.preset in PRESETS
    assert row.cell in OWN_CELLS
    config = row.config
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
    assert run_config(row.preset, cells=[row.cell], changes=typed) == row.config


@every_section
def test_no_two_rows_of_a_section_are_the_same(section: Section) -> None:
    rows = [(row.cell, tuple(sorted((key, str(value)) for key, value in trained(row).items()))) for row in section.rows]
    assert len(set(rows)) == len(rows)
    assert len({row.system for row in section.rows}) == len(rows)


def test_a_section_that_compares_begins_with_what_it_compares_with() -> None:
    (section,) = [section for section in SECTIONS if section.compared]
    baseline, *rows = section.rows
    assert not baseline.changes
    assert section.compared in dict(section.figures).values()
    assert all((row.preset, row.cell) == (baseline.preset, baseline.cell) and row.changes for row in rows)
    assert all("train.seed" not in row.changes for row in rows)


def test_the_reduced_budgets_are_the_same_as_well() -> None:
    sizes = []
    for row in ROWS:
        if row.system.endswith("reduced"):
            with torch.device("meta"):
                sizes.append(num_parameters(LanguageModel(row.cell, 10_000, row.config.model)))
    assert sizes == [pytest.approx(4.6532e6, rel=0.003)] * 3


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
        config = row.config
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


def test_awd_lstm_stands_beside_what_the_authors_had_before_fine_tuning() -> None:
    theirs = {row.system: row.theirs for row in ROWS if row.preset == "ptb-awd"}
    assert theirs == {"AWD-LSTM": "61.2 / 58.8", "AWD-LSTM, dynamic evaluation": "– / 51.1"}
