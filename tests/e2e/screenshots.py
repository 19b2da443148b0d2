"""Make the pictures of the README from the last run: `python tests/e2e/screenshots.py [FOLDER]` (`make screenshots`).

The run is the newest in the home (`RNNLM_HOME`, or the project folder) that has three finished cells.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import browsing
from homes import COMMAND
from playwright.sync_api import Browser, Page
from servers import mlflow_server

from tasks import tracked_runs, workspace
from tasks.tracking_database import client, experiment_id

LARGEST = 300_000


def main(folder: Path) -> None:
    """Write `quickstart.png`, `mlflow-runs.png`, `mlflow-compare.png`, `report.png` and `prompt-page.png`."""
    workspace.prepare_environment()
    home, found = workspace.home(), newest_cells()
    folder.mkdir(parents=True, exist_ok=True)
    comparison(found["gru"], folder / "quickstart.png")
    with browsing.chromium() as browser:
        with mlflow_server(f"sqlite:///{home / 'mlflow.db'}") as server:
            mlflow_pictures(browser, server, found, folder)
        report_picture(browser, home, folder)
        with browsing.prompt_page(home, COMMAND, {**os.environ, "RNNLM_HOME": str(home)}) as address:
            prompt_picture(browser, address, list(found), folder)


def newest_cells() -> dict[str, str]:
    """Return the runs of the cells of the newest run that has all three."""
    runs = tracked_runs.tracked_cells(last=50)
    for one in runs:
        parent = one.tags.get("mlflow.parentRunId")
        family = {run.tags["rnnlm.cell"]: run.run_id for run in runs if run.tags.get("mlflow.parentRunId") == parent}
        if len(family) == 3:
            return family
    raise SystemExit("error: no run of three cells: make one with `rnnlm run`")


def comparison(cell: str, path: Path) -> None:
    """The curves that the run itself has drawn: its picture in MLflow, as it is."""
    parent = client().get_run(cell).data.tags["mlflow.parentRunId"]
    with TemporaryDirectory() as fetched:
        path.write_bytes(Path(client().download_artifacts(parent, "perplexity.png", fetched)).read_bytes())
    print(f"{path}: {path.stat().st_size:,} bytes")


def mlflow_pictures(browser: Browser, server: str, cells: dict[str, str], folder: Path) -> None:
    """The list of runs sorted by perplexity, and the curves of three cells."""
    with browsing.opened(browser) as watched:
        page = watched.page
        browsing.open_runs(page, server, experiment_id())
        browsing.sort_runs(page, "perplexity")
        save(page, folder / "mlflow-runs.png")
        browsing.compare_runs(page, list(cells.values()))
        browsing.show_curves(page, browsing.COMPARED)
        save(page, folder / "mlflow-compare.png")


def report_picture(browser: Browser, home: Path, folder: Path) -> None:
    """The newest report, from its head to the samples."""
    with browsing.opened(browser, offline=True, viewport={"width": 1040, "height": 1240}) as watched:
        watched.page.goto(browsing.newest_report(home).as_uri())
        save(watched.page, folder / "report.png")


def prompt_picture(browser: Browser, address: str, cells: list[str], folder: Path) -> None:
    """Three continuations of one prompt."""
    with browsing.opened(browser, viewport={"width": 1200, "height": 820}) as watched:
        browsing.write(watched.page, address, cells, "The value of ", 0.5, 200)
        watched.page.mouse.move(0, 0)
        save(watched.page, folder / "prompt-page.png")


def save(page: Page, path: Path) -> None:
    """Take the picture of what a window shows, once its fonts and curves are there."""
    page.wait_for_timeout(1500)  # curves move into place
    page.screenshot(path=path, animations="disabled")
    print(f"{path}: {path.stat().st_size:,} bytes")
    if path.stat().st_size > LARGEST:
        raise SystemExit(f"error: {path} is larger than {LARGEST:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
