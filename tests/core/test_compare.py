import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from rnnlm_core.compare import COLOURS, PICTURE, TABLE, Row, compare, plot_perplexity
from rnnlm_core.config import CELLS, OWN_CELLS
from rnnlm_core.outcomes import Epoch, Evaluated, Trained
from rnnlm_core.store import Handle, Store


def trained(cell: str, losses: list[tuple[float, float | None]], best_epoch: int) -> Trained:
    history = tuple(
        Epoch(i, len(losses), train, valid, 0.1, 1.0, 1000.0, 2.0) for i, (train, valid) in enumerate(losses, 1)
    )
    return Trained(cell, Handle("model", "0" * 64), best_epoch, 42, "cpu", 1234.5, history)


def evaluated(loss: float, split: str = "test") -> Evaluated:
    return Evaluated(split, loss, math.exp(loss), loss / math.log(2), 0.0, 100, "none")


RNN = trained("rnn", [(3.0, 3.1), (2.0, 2.9), (1.0, 3.0)], best_epoch=2)
GRU = trained("gru", [(3.0, 3.0), (2.5, 2.5)], best_epoch=2)


def colour_is_in(picture: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.01).any())


def test_a_row_holds_the_figures_of_the_kept_epoch(store: Store) -> None:
    (row,) = compare([RNN], [evaluated(2.7)], store).rows
    assert row == Row(
        cell="rnn",
        train_perplexity=math.exp(2.0),
        valid_perplexity=math.exp(2.9),
        test_perplexity=math.exp(2.7),
        bits_per_char=2.7 / math.log(2),
        tokens_per_second=1234.5,
        parameters=42,
        epochs=3,
        best_epoch=2,
    )


def test_the_rows_keep_the_order_of_the_cells(store: Store) -> None:
    compared = compare([GRU, RNN], [evaluated(2.0), evaluated(1.0)], store)
    assert [row.cell for row in compared.rows] == ["gru", "rnn"]
    assert [row.test_perplexity for row in compared.rows] == [math.exp(2.0), math.exp(1.0)]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_another_split_is_no_test_figure(split: str, store: Store) -> None:
    (row,) = compare([RNN], [evaluated(2.7, split)], store).rows
    assert row.test_perplexity is None
    assert row.bits_per_char == 2.7 / math.log(2)


def test_the_best_cell_is_chosen_on_validation_not_on_test_or_training(store: Store) -> None:
    assert RNN.best.train_loss < GRU.best.train_loss
    assert compare([RNN, GRU], [evaluated(1.0), evaluated(2.0)], store).best_cell == "gru"
    assert compare([GRU, RNN], [evaluated(2.0), evaluated(1.0)], store).best_cell == "gru"


def test_without_validation_the_best_cell_is_chosen_on_training(store: Store) -> None:
    one, other = trained("lstm", [(3.0, None), (2.0, None)], 2), trained("gru", [(2.5, None), (2.1, None)], 2)
    assert compare([other, one], [evaluated(1.0), evaluated(2.0)], store).best_cell == "lstm"


def test_a_figure_that_is_no_number_is_never_the_best(store: Store) -> None:
    nan = replace(RNN, history=(replace(RNN.history[0], valid_loss=math.nan),), best_epoch=1)
    for order in ([nan, GRU], [GRU, nan]):
        assert compare(order, [evaluated(1.0), evaluated(2.0)], store).best_cell == "gru"


def test_each_cell_needs_its_evaluation(store: Store) -> None:
    with pytest.raises(ValueError, match="shorter than argument 1"):
        compare([RNN, GRU], [evaluated(1.0)], store)


def test_the_artifact_holds_the_table_and_a_picture(store: Store) -> None:
    compared = compare([RNN, GRU], [evaluated(2.7), evaluated(2.4, "valid")], store)
    folder = store.open(compared.handle)
    table = json.loads((folder / TABLE).read_text())
    assert [Row(**row) for row in table] == list(compared.rows)
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_equal_results_give_one_artifact(store: Store) -> None:
    results = [evaluated(2.7), evaluated(2.4)]
    first = compare([RNN, GRU], results, store)
    assert compare([RNN, GRU], results, store).handle == first.handle
    assert compare([RNN, GRU], results[::-1], store).handle != first.handle


def test_an_infinite_perplexity_stays_infinite_and_is_null_in_json(store: Store) -> None:
    far = replace(RNN, history=(replace(RNN.history[0], train_loss=800.0, valid_loss=900.0),), best_epoch=1)
    compared = compare([far, GRU], [replace(evaluated(2.0), perplexity=math.inf), evaluated(2.0)], store)
    row, _ = compared.rows
    assert (row.train_perplexity, row.valid_perplexity, row.test_perplexity) == (math.inf,) * 3
    assert compared.best_cell == "gru"
    table = json.loads((store.open(compared.handle) / TABLE).read_text())
    perplexities = ("train_perplexity", "valid_perplexity", "test_perplexity")
    assert table[0] == {**asdict(row), **dict.fromkeys(perplexities)}


@pytest.mark.parametrize("num_epochs", [1, 3, 40])
@pytest.mark.parametrize("held_out", [True, False])
def test_the_picture_shows_a_curve_in_the_colour_of_each_cell(num_epochs: int, held_out: bool, tmp_path: Path) -> None:
    curves = [
        trained(cell, [(3 - 0.05 * i + k, 3.2 + k if held_out else None) for i in range(num_epochs)], 1)
        for k, cell in enumerate(("rnn", "lstm"))
    ]
    plot_perplexity(curves, tmp_path / "one.png")
    picture = matplotlib.image.imread(tmp_path / "one.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] > 500
    assert {cell: colour_is_in(picture, COLOURS[cell]) for cell in CELLS} == {"rnn": True, "gru": False, "lstm": True}


@pytest.mark.parametrize("beside", [[], ["gru"]])
@pytest.mark.parametrize("held_out", [True, False])
def test_ngrams_are_a_level_in_the_picture(beside: list[str], held_out: bool, tmp_path: Path) -> None:
    curves = [trained(cell, [(5.0, 6.0), (4.0, 5.0), (3.0, 4.0)], 1) for cell in beside]
    plot_perplexity([trained("ngram", [(3.5, 4.5 if held_out else None)], 1), *curves], tmp_path / "level.png")
    picture = matplotlib.image.imread(tmp_path / "level.png")
    assert colour_is_in(picture, COLOURS["ngram"])
    assert colour_is_in(picture, COLOURS["gru"]) is bool(beside)


def test_a_curve_that_went_to_infinity_can_be_drawn(tmp_path: Path) -> None:
    far = replace(RNN, history=(replace(RNN.history[0], train_loss=800.0, valid_loss=900.0), *RNN.history[1:]))
    plot_perplexity([far, GRU], tmp_path / "far.png")
    assert colour_is_in(matplotlib.image.imread(tmp_path / "far.png"), COLOURS["rnn"])


def test_every_cell_has_a_colour_of_its_own() -> None:
    assert set(COLOURS) == set(OWN_CELLS)
    assert len(set(COLOURS.values())) == len(OWN_CELLS)
