"""What somebody does in a browser: with MLflow's own user interface, with a report, with the page of `rnnlm serve`."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
SWITCHES = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 180.0
"""Seconds for a server to start or a page to be there, on a machine that has other things to do."""
# MLflow's page asks who is logged in; only a server with its `basic-auth` app has an answer to that.
NO_LOGIN = ("Failed to load resource: the server responded with a status of 404 (Not Found)", "users/current")
# Chromium's word for a table of MLflow's that is laid out again in the next frame.
LAID_OUT_LATER = "ResizeObserver loop completed with undelivered notifications."
COMPARED = "valid/perplexity"


@dataclass
class Watched:
    """A page, and what went wrong or out while it was looked at."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        self.page.on("request", lambda request: self.hosts.update(filter(None, [urlsplit(request.url).hostname])))

    def _hear(self, message: ConsoleMessage) -> None:
        text, address = NO_LOGIN
        known = message.text.endswith(LAID_OUT_LATER) or (
            message.text == text and message.location["url"].endswith(address)
        )
        if message.type == "error" and not known:
            self.complaints.append(f"{message.text} ({message.location['url']})")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A Chromium of this machine's, with a profile of its own that is gone afterwards."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES), headless=True)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, **options: object) -> Iterator[Watched]:
    """A page in a context of its own: no cookies, no cache, nothing that another page left."""
    context: BrowserContext = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    try:
        yield Watched(context.new_page())
    finally:
        context.close()


@contextmanager
def prompt_page(home: Path, command: Sequence[str], environment: dict[str, str]) -> Iterator[str]:
    """`rnnlm serve` on a free port; give the address that it prints, end it afterwards."""
    with subprocess.Popen(
        [*command, "serve", "--port", "0"], env=environment, cwd=home, text=True, stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            yield next(word for word in said.split() if word.startswith("http://"))
        finally:
            server.terminate()


def open_runs(page: Page, server: str, experiment_id: str) -> None:
    """Open the list of runs, as a visitor sees it first."""
    page.goto(f"{server}/#/experiments/{experiment_id}/runs")
    page.get_by_text("matching runs").wait_for()
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()  # covers a third of the page


def sort_runs(page: Page, metric: str) -> None:
    """Sort the list by a metric, the lowest first."""
    page.get_by_test_id("sort-select-dropdown").click()
    page.get_by_test_id("sort-select-asc").click()
    choice = page.get_by_test_id(f"sort-select-{metric}")
    if not choice.is_visible():  # the menu closes after the direction
        page.get_by_test_id("sort-select-dropdown").click()
    choice.click()
    expect(page.locator(f"[col-id='metrics.`{metric}`'] [data-testid='sort-header-{metric}']")).to_be_visible()


def run_cell(page: Page, run_id: str, column: str) -> Locator:
    """Return a cell of the list of runs."""
    return page.locator(f"[row-id='{run_id}'] [role='gridcell'][col-id='{column}']")


def compare_runs(page: Page, run_ids: Sequence[str]) -> None:
    """Tick runs in the list and go to their comparison."""
    for run_id in run_ids:
        page.locator(f"[row-id='{run_id}'] input[type='checkbox']").first.click()
    page.get_by_text("Compare", exact=True).first.click()
    page.get_by_text(f"Comparing {len(run_ids)} Runs from 1 Experiment").first.wait_for()


def show_curves(page: Page, metric: str) -> None:
    """From a comparison, go to the curves of a metric; its table shows only the rows that are scrolled to."""
    links = page.locator("a[title='Plot chart']")
    links.first.wait_for()
    link = links.filter(has_text=metric).last
    figures = page.locator("div:has(> div > .ReactVirtualized__Grid)").filter(has=links).last
    beside = figures.locator(".ReactVirtualized__Grid").last
    beside.scroll_into_view_if_needed()
    beside.hover()
    deadline = time.monotonic() + PATIENCE
    while not link.count():
        assert time.monotonic() < deadline, f"{metric} is not in the table of metrics"
        page.mouse.wheel(0, 200)
        page.wait_for_timeout(200)
    link.evaluate("link => link.click()")  # names and values scroll apart, so it may lie under the edge of the table
    page.locator(".scatterlayer .trace .js-line").first.wait_for(state="attached")


def curves(page: Page) -> list[int]:
    """Return how many points each different curve of a chart has; MLflow draws one twice, as it is and smoothed."""
    paths = {path.get_attribute("d") or "" for path in page.locator(".scatterlayer .trace .js-line").all()}
    return [path.count("L") + 1 for path in paths]


def write(page: Page, address: str, cells: Sequence[str], prefix: str, temperature: float, length: int) -> None:
    """On the page of `rnnlm serve`, have a prefix continued, and wait until all cells are done."""
    page.goto(address)
    for cell in cells:
        continuation(page, cell).wait_for(state="attached")
    page.locator("#prefix").fill(prefix)
    page.locator("#temperature").fill(str(temperature))
    page.locator("#length").fill(str(length))
    page.locator("#write").click()
    expect(page.locator("#status")).to_have_text("Done.")


def continuation(page: Page, cell: str) -> Locator:
    """Return where the page shows what a cell wrote."""
    return page.locator(f"article[data-model='{cell}'] .continuation")


def newest_report(home: Path) -> Path:
    """Return the report that was written last."""
    return max((home / "artifacts" / "reports").glob("*.html"), key=lambda path: path.stat().st_mtime)
