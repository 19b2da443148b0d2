"""The harness of the benchmarks: turns, statistics, the physical model, the page. No figure of a machine is judged."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bound import forward_flops, percent_of_bound, training_flops
from benchmarks.cases import CASES
from benchmarks.measure import ROOT, Block, Command, Pool, Series, Stats, Worker, take_turns
from benchmarks.peers import VERSIONS, folder
from benchmarks.render import END, PAGE, START, TITLES, render
from benchmarks.rows import Figure, Row, speed_ratio
from rnnlm_core.errors import DataError, ResourceError

NOISE = {
    "cell": "gru",
    "vocabulary": 9,
    "hidden": 8,
    "batch_size": 2,
    "num_steps": 4,
    "updates": 2,
    "device": "cpu",
    "num_cores": 1,
}


class Recorder:
    """A side that says its turn, and takes as many seconds as it is told."""

    def __init__(self, name: str, turns: list[str], seconds: list[float]) -> None:
        self.name, self.turns, self.seconds = name, turns, iter(seconds)

    def block(self) -> Block:
        self.turns.append(self.name)
        return Block(next(self.seconds), 0.5, 2.0)


def test_sides_take_turns_and_the_warm_up_is_thrown_away() -> None:
    turns: list[str] = []
    sides = {"a": Recorder("a", turns, [100, 4, 2, 6]), "b": Recorder("b", turns, [100, 8, 16, 12])}
    series = take_turns(sides, rounds=3)
    assert turns == ["a", "b"] * 4
    assert [block.wall for block in series["a"].blocks] == [4, 2, 6]
    assert series["a"].wall == Stats(median=2.0, p25=1.5, least=1.0, count=3)
    assert series["a"].cpu.median == 0.25
    assert speed_ratio(series["a"], series["b"]) == 3.0


def test_statistics_of_one_and_of_an_even_number() -> None:
    assert Stats.of([7.0]) == Stats(7.0, 7.0, 7.0, 1)
    assert Stats.of([4.0, 1.0, 3.0, 2.0]) == Stats(median=2.5, p25=1.75, least=1.0, count=4)


def test_a_rate_shows_the_better_quartile() -> None:
    series = Series(tuple(Block(wall, wall, 100.0) for wall in (1.0, 2.0, 4.0)))
    figure = Figure.of(series, "tokens/s")
    assert (figure.median, figure.best, figure.count) == (50, 100, 3)
    assert figure.p25 > figure.median
    assert Figure.of(series, "ms", 50).median == 1000


@pytest.mark.parametrize(
    ("cell", "forward", "training"), [("rnn", 0.145, 0.44), ("gru", 0.408, 1.22), ("lstm", 0.539, 1.62)]
)
def test_operations_of_the_book_s_cells(cell: str, forward: float, training: float) -> None:
    assert forward_flops(cell, 256, 28) / 1e6 == pytest.approx(forward, abs=0.001)
    assert training_flops(cell, 256, 28) / 1e6 == pytest.approx(training, abs=0.006)


def test_operations_of_wide_and_deep_models() -> None:
    assert forward_flops("lstm", 256, 4580) / 1e6 == pytest.approx(2.87, abs=0.005)
    assert training_flops("lstm", 256, 4580) / 1e6 == pytest.approx(8.61, abs=0.005)
    # A one-hot product costs forward and for its weights' gradient, and has no gradient of its own input.
    assert forward_flops("lstm", 256, 4580, one_hot_product=True) / 1e6 == pytest.approx(12.2, abs=0.06)
    assert training_flops("lstm", 256, 4580, one_hot_product=True) / 1e6 == pytest.approx(27.4, abs=0.06)
    assert forward_flops("lstm", 200, 10_000, layers=2, embedding=200) / 1e6 == pytest.approx(5.28, abs=0.005)
    assert training_flops("lstm", 1500, 33_278, layers=2, embedding=1500) / 1e6 == pytest.approx(516, abs=1)


def test_percent_of_bound() -> None:
    # 1.62 million operations at 125 GFLOP/s are 13 microseconds: 77,000 tokens a second.
    assert percent_of_bound(1.62e6, 125e9, 2 * 12.96e-6) == pytest.approx(50)


def test_a_process_is_one_side_after_the_other() -> None:
    with Pool() as pool:
        first = pool.compare({"ours": Worker("ours.training", NOISE)}, rounds=2)["ours"]
        other = Worker("ours.training", {**NOISE, "cell": "lstm"})
        floor = Worker("sgemm.rate", {"device": "cpu", "size": 16, "products": 2})
        second = pool.compare({"ours": other, "floor": floor}, rounds=1)
        assert len(pool.every) == 2
    assert [block.units for block in first.blocks] == [16.0, 16.0]
    assert all(block.wall > 0 and block.cpu > 0 for block in first.blocks)
    assert second["floor"].facts["flops_per_second"] > 0
    assert all(process.child.poll() == 0 for process in pool.every)


def test_a_side_that_fails_tells_why_and_leaves_no_process() -> None:
    with Pool() as pool, pytest.raises(RuntimeError, match="unexpected keyword argument 'nonsense'"):
        pool.compare({"ours": Worker("sgemm.rate", {"nonsense": 1})}, rounds=1)
    assert [process.child.poll() for process in pool.every] == [1]


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(ResourceError, match=r"a measured command failed.*no such thing"):
        Command((sys.executable, "-c", "raise SystemExit('no such thing')"), {}).block()


RESULTS = {
    "machine": {
        "processor": "Some CPU",
        "cores": 2,
        "device": "cpu",
        "system": "Linux x86_64",
        "threads": 2,
        "date": "2026-01-02",
        "versions": {"python": "3.11", "mlflow": None},
    },
    "quick": False,
    "cases": {"memory": {"seconds": 3.4, "load_before": 0.1, "load_after": 1.0}},
}
ROW = Row("memory", "corpus", "MB", Figure.single(110.0), "short", Figure(100, 99, 98, 1.5, 3), 1.1, 1.15, at_most=True)


def page_of(*rows: Row) -> str:
    results = {**RESULTS, "rows": json.loads(json.dumps([row.as_json() for row in rows]))}
    return render(results, f"before\n{START}\nold figures\n{END}\nafter")


def test_the_page_keeps_what_is_written_by_hand() -> None:
    page = page_of(ROW)
    assert page.startswith(f"before\n{START}\n")
    assert page.endswith(f"{END}\nafter")
    assert "old figures" not in page
    assert "2026-01-02 · Some CPU, 2 cores" in page
    assert "mlflow" not in page
    assert "load 0.1 before and 1.0 after" in page
    assert render({**RESULTS, "rows": [ROW.as_json()]}, page) == page


def test_the_page_tells_which_targets_are_met() -> None:
    line = "| corpus | MB | 110 | short | 100 (99, 98) | – / 1.5 | **1.10** | ≤ 1.15 | yes | – |"
    assert line in page_of(ROW)
    assert "| **1.10** | ≤ 1.05 | no | – |" in page_of(replace(ROW, target=1.05))
    assert "| **1.10** | ≥ 1.05 | yes | 42 |" in page_of(replace(ROW, target=1.05, at_most=False, bound=42.4))
    assert "| **1.10** | – | – | – |" in page_of(replace(ROW, target=None))
    assert "| – | ≥ 3 | no | – |" in page_of(replace(ROW, ratio=None, target=3.0, at_most=False))  # never got there


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(DataError, match="the page has no place for the tables"):
        render({**RESULTS, "rows": []}, "nothing here")


def test_the_page_of_the_project_has_its_place_and_every_case_a_title() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.index(START) < page.index(END)
    assert set(TITLES) == set(CASES)


def command(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    done = command("stepp")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown case: stepp: did you mean step?")
    done = command("render", str(tmp_path / "nothing.json"))
    assert done.returncode == 3
    assert done.stderr.startswith("error: cannot read the figures or the page: ")
    done = command("kernels", "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: only a GPU runs kernels: cpu: give --device cuda or cuda:N\n"


def test_a_missing_package_of_the_book_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNLM_PEERS", str(tmp_path))
    with pytest.raises(ResourceError, match=r"the book's package d2l 0\.17\.6 is not here: .*: run `make bench`"):
        folder("0.17.6")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_every_case_at_a_tiny_size(case: str, tmp_path: Path, mirror: Path) -> None:
    try:
        for version in VERSIONS:
            folder(version)
    except ResourceError as error:
        pytest.skip(str(error))
    figures = tmp_path / "figures.json"
    done = command(case, "--quick", "--json", str(figures), RNNLM_MIRROR=str(mirror))
    assert done.returncode == 0, done.stderr
    results = json.loads(figures.read_text())
    assert results["rows"]
    assert {row["case"] for row in results["rows"]} == {case}
    assert all(row["ours"]["median"] > 0 for row in results["rows"] if row["name"] != "per stage")
    assert TITLES[case] in done.stdout
