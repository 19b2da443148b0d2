"""Models of n-grams from anyone: as `test_models.py`, for tables instead of weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rnnlm_core.config import ModelConfig
from rnnlm_core.errors import IntegrityError
from rnnlm_core.evaluate import stream_loss
from rnnlm_core.levels import tokenizer
from rnnlm_core.ngram_training import fit_ngrams
from rnnlm_core.saved_model import ABOUT, WEIGHTS, load_model, save_model
from rnnlm_core.store import Store
from rnnlm_core.vocabulary import FILE as VOCABULARY_FILE
from rnnlm_core.vocabulary import Vocabulary

from .conftest import check_model_refused

VOCABULARY = Vocabulary(dict.fromkeys("abcdef", 9))
IDS = torch.randint(7, (400,), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path, store: Store) -> Path:
    """A model that is whole, as somebody hands it over: without manifest."""
    place = tmp_path / "model"
    place.mkdir()
    model, _ = fit_ngrams(len(VOCABULARY), IDS, None, ModelConfig(order=3), None, store)
    save_model(place, model, VOCABULARY, tokenizer("char"), "letters", {})
    return place


@pytest.mark.parametrize("name", [WEIGHTS, ABOUT, VOCABULARY_FILE])
def test_a_bomb_in_place_of_a_file_does_not_go_off(name: str, folder: Path, bomb: bytes, trace: Path) -> None:
    (folder / name).write_bytes(bomb)
    with pytest.raises(IntegrityError) as caught:
        load_model(folder)
    assert len(caught.value.lines) == 1
    assert not trace.exists()


def _with(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
    tensors.pop(name, None)
    save_file(tensors if tensor is None else {**tensors, name: tensor}, folder / WEIGHTS)


@pytest.mark.parametrize("name", ["1.probabilities", "2.first", "2.last", "3.shares", "3.weights"])
def test_a_table_that_is_missing_or_of_another_kind_is_refused(name: str, folder: Path) -> None:
    there = load_file(folder / WEIGHTS)[name].clone()
    for other in (None, there[:-1], there[:0], there[None], there.bfloat16(), there.to(torch.complex64)):
        _with(folder, name, other)
        check_model_refused(folder)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("1.probabilities", 0, float("nan"), "no probability"),
        ("1.probabilities", 0, 0.0, "no probability"),
        ("1.probabilities", 0, 1.5, "no probability"),
        ("2.weights", 3, float("inf"), "no probability"),
        ("3.shares", 3, -0.1, "no probability"),
        ("2.first", 0, 1, "no places"),
        ("2.first", 3, -1, "no places"),
        ("2.first", 3, 10**6, "no places"),
        ("3.first", -1, 10**6, "no places"),
        ("2.last", 0, 7, "ids that the vocabulary lacks"),
    ],
)
def test_numbers_that_lead_elsewhere_are_refused(
    name: str, place: int, value: float, message: str, folder: Path
) -> None:
    table = load_file(folder / WEIGHTS)[name].clone()
    table[place] = value
    _with(folder, name, table)
    check_model_refused(folder, message)


def test_a_table_too_many_is_refused(folder: Path) -> None:
    _with(folder, "4.last", torch.zeros(3, dtype=torch.uint8))
    check_model_refused(folder, "4.last is not asked for")


@pytest.mark.parametrize(
    "about",
    [
        {"order": 10**12, "discounts": "modified"},
        {"order": 0, "discounts": "modified"},
        {"order": 4, "discounts": "modified"},
        {"order": 2, "discounts": "modified"},
        {"order": True, "discounts": "modified"},
        {"order": "3", "discounts": "modified"},
        {"order": 3, "discounts": "other"},
        {"order": 3, "discounts": ["modified"]},
        {"order": 3},
        {"order": 3, "discounts": "modified", "hidden_size": 5},
        {"__class__": "x"},
        {},
        [],
        None,
    ],
    ids=str,
)
def test_a_description_of_other_things_is_refused(about: Any, folder: Path) -> None:
    content = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**content, "model": about}))
    check_model_refused(folder)


def test_another_vocabulary_is_refused(folder: Path) -> None:
    (folder / VOCABULARY_FILE).write_text(Vocabulary(dict.fromkeys("abcde", 9)).to_json())
    check_model_refused(folder)


def test_weights_of_a_network_are_no_table(folder: Path) -> None:
    save_file({"output.weight": torch.zeros(7, 3)}, folder / WEIGHTS)
    check_model_refused(folder)


def test_any_table_is_refused_or_gives_numbers(folder: Path) -> None:
    """Whatever is changed in the file: what loads can be asked."""
    whole = (folder / WEIGHTS).read_bytes()

    @settings(deadline=None, max_examples=150, database=None, derandomize=True)
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 5), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)
    )
    def check(patches: list[tuple[int, bytes]]) -> None:
        data = bytearray(whole)
        for place, patch in patches:
            data[place : place + len(patch)] = patch
        (folder / WEIGHTS).write_bytes(data)
        try:
            model = load_model(folder).model
        except IntegrityError as error:
            lines = error.lines
        else:
            lines = [f"{stream_loss(model, IDS)} nats"]
            model(IDS[None, :50], model.initial_state(1))
        assert len(lines) == 1

    check()
