"""A real browser on what people look at: MLflow's comparison, the report, the page of `rnnlm serve`.

Chromium and Playwright are no part of an installation for tests: `make browser` has both.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from homes import COMMAND, PROJECT, rows, without_settings
from servers import mlflow_server

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make browser` does it")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not here: apt-get install chromium"),
]

import browsing  # noqa: E402 - it imports Playwright
from playwright.sync_api import Browser, expect  # noqa: E402

CELLS = ("rnn", "gru", "lstm")
EPOCHS = 5
DRAWN = "images => images.map(one => one.complete && one.naturalWidth > 100)"
SMALL = [
    "run", "--preset", "smoke", "--set", "model.hidden_size=16", "--set", "corpus.max_tokens=20000",
    "--set", f"train.epochs={EPOCHS}", "--set", "train.device=cpu",
]  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A home with three trained cells, and what the command said about them."""

    home: Path
    summary: dict[str, Any]
    environment: dict[str, str]

    @property
    def run_ids(self) -> dict[str, str]:
        return {cell: figures["run_id"] for cell, figures in self.summary["cells"].items()}

    def metric(self, run_id: str, name: str) -> list[float]:
        """Return the values of a metric in the order of their steps, read from SQLite."""
        query = "SELECT value FROM metrics WHERE run_uuid = ? AND key = ? ORDER BY step"
        return [value for (value,) in rows(self.home / "mlflow.db", query, run_id, name)]

    @property
    def experiment_id(self) -> str:
        ((found,),) = rows(self.home / "mlflow.db", "SELECT experiment_id FROM experiments WHERE name = 'rnnlm'")
        return str(found)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three cells, trained by the command as people run it."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **without_settings(),
        "RNNLM_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PYTHONPATH": str(PROJECT),
    }
    done = subprocess.run(
        [*COMMAND, *SMALL, "--json", str(home / "out.json")],
        env=environment, cwd=home, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((home / "out.json").read_text())
    assert f"read the report:            {summary['report']}\n" in done.stdout
    return Trained(home, summary, environment)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each has a page without a past."""
    with browsing.chromium() as started:
        yield started


@pytest.fixture(scope="module")
def mlflow(trained: Trained) -> Iterator[str]:
    """MLflow's own server over the database of the run."""
    with mlflow_server(f"sqlite:///{trained.home / 'mlflow.db'}") as address:
        yield address


def test_sorted_by_perplexity_the_list_of_runs_has_the_order_of_the_database(
    trained: Trained, browser: Browser, mlflow: str
) -> None:
    perplexity = {run_id: trained.metric(run_id, "perplexity")[-1] for run_id in trained.run_ids.values()}
    expected = sorted(perplexity, key=lambda run_id: perplexity[run_id])
    with browsing.opened(browser) as watched:
        page = watched.page
        browsing.open_runs(page, mlflow, trained.experiment_id)
        browsing.sort_runs(page, "perplexity")
        for place, run_id in enumerate(expected):
            expect(page.locator(f"[row-index='{place}'][row-id='{run_id}']").first).to_be_visible()
            shown = browsing.run_cell(page, run_id, "metrics.`perplexity`").inner_text()
            assert float(shown.rstrip("…")) == pytest.approx(perplexity[run_id], rel=1e-9)
        assert watched.complaints == []
        assert watched.hosts == {"127.0.0.1"}


def test_the_comparison_shows_the_curves_of_three_cells(trained: Trained, browser: Browser, mlflow: str) -> None:
    with browsing.opened(browser) as watched:
        page = watched.page
        browsing.open_runs(page, mlflow, trained.experiment_id)
        browsing.sort_runs(page, "perplexity")
        browsing.compare_runs(page, list(trained.run_ids.values()))
        browsing.show_curves(page, browsing.COMPARED)
        assert browsing.curves(page) == [EPOCHS] * len(CELLS)
        for run_id in trained.run_ids.values():
            values = trained.metric(run_id, browsing.COMPARED)
            shown = page.locator(f"tr[data-row-key='{run_id}'] td").all_inner_texts()
            assert [float(text.split()[0]) for text in shown[1:4]] == [values[-1], min(values), max(values)]
        assert watched.complaints == []
        assert watched.hosts == {"127.0.0.1"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_the_report_opens_from_the_disk_without_a_network(
    width: int, scheme: str, trained: Trained, browser: Browser
) -> None:
    address = Path(trained.summary["report"]).as_uri()
    with browsing.opened(
        browser, offline=True, viewport={"width": width, "height": 800}, color_scheme=scheme
    ) as watched:
        page = watched.page
        page.route(lambda url: not url.startswith(("file:", "data:")), lambda route: route.abort())
        page.goto(address)
        expect(page.locator("#outcome")).to_contain_text("15 stages done, 0 found done before")
        for cell, figures in trained.summary["cells"].items():
            row = page.locator("#comparison tbody tr").filter(has=page.get_by_role("rowheader", name=cell))
            assert f"{figures['test_perplexity']:.3f}" in row.inner_text()
        assert page.locator("#samples .sample h4").all_inner_texts() == list(CELLS)
        texts = page.locator("#samples .sample p").all_text_contents()
        assert texts == [figures["samples"][0] for figures in trained.summary["cells"].values()]
        assert page.locator("img").evaluate_all(DRAWN) == [True, True]
        page.get_by_text("The same as figures").click()
        assert page.locator("#epochs tbody tr").count() == EPOCHS
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        assert watched.complaints == []
        assert watched.hosts == set()


def test_mlflow_shows_the_report(trained: Trained, browser: Browser, mlflow: str) -> None:
    run_id = trained.summary["parent_run_id"]
    with browsing.opened(browser) as watched:
        page = watched.page
        page.goto(f"{mlflow}/#/experiments/{trained.experiment_id}/runs/{run_id}/artifacts/report.html")
        shown = page.frame_locator("iframe").locator("#outcome")
        expect(shown).to_contain_text("Best cell")
        assert page.frame_locator("iframe").locator("img").evaluate_all(DRAWN) == [True, True]
        assert watched.complaints == []
        assert watched.hosts == {"127.0.0.1"}


def test_a_prompt_is_continued_by_three_cells_on_our_page(trained: Trained, browser: Browser) -> None:
    with (
        browsing.prompt_page(trained.home, COMMAND, trained.environment) as address,
        browsing.opened(browser) as watched,
    ):
        watched.page.goto(address)
        # An empty page would ask somebody new for a text that these models can read.
        expect(watched.page.locator("#prefix")).not_to_have_value("")
        browsing.write(watched.page, address, CELLS, "The value of ", 0.5, 40)
        written = [browsing.continuation(watched.page, cell).text_content() or "" for cell in CELLS]
        assert [len(text) for text in written] == [40] * len(CELLS)
        assert len(set(written)) == len(CELLS)
        assert watched.complaints == []
        assert watched.hosts == {"127.0.0.1"}
