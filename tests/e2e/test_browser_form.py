"""A real browser on the form in which Prefect asks for a deployment's parameters."""

import shutil
from collections.abc import Iterator

import pytest
from stack import Stack, stack

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make browser` does it")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not here: apt-get install chromium"),
]

from browsing import PATIENCE, chromium  # noqa: E402 - it imports Playwright
from playwright.sync_api import Locator, Page, expect  # noqa: E402


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything up, as `rnnlm up` leaves it."""
    with stack(tmp_path_factory.mktemp("up")) as one:
        one.start()
        yield one


@pytest.fixture
def form(up: Stack) -> Iterator[Page]:
    """The form of a run of `watch-corpus`, with the keys of the config unfolded."""
    (deployment,) = up.ask("deployments", deployments={"name": {"any_": ["watch-corpus"]}})
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        page.set_default_timeout(PATIENCE * 1000)
        expect.set_options(timeout=PATIENCE * 1000)
        page.goto(f"http://127.0.0.1:{up.prefect_port}/deployments/deployment/{deployment['id']}/run")
        page.get_by_text("Changes", exact=True).click()
        yield page


def field(page: Page, name: str) -> Locator:
    """Return what the form shows of a parameter."""
    label = page.locator(".schema-form-property__label").get_by_text(f"{name} (Optional)", exact=True)
    return page.locator(".schema-form-property").filter(has=label).last


def test_the_form_has_types_descriptions_and_defaults_and_refuses_what_does_not_fit(up: Stack, form: Page) -> None:
    expect(field(form, "preset")).to_contain_text("the complete config to start from")
    expect(field(form, "preset")).to_contain_text("quickstart")
    expect(field(form, "tolerance").locator("input")).to_have_value("0.02")
    epochs = field(form, "train.epochs")
    expect(epochs.locator("input[type=number]")).to_be_visible()
    expect(field(form, "train.clip_norm")).to_contain_text("Largest global gradient norm; 0 = no clipping.")
    epochs.locator("input").fill("0")
    form.get_by_role("button", name="Submit").click()
    refusal = "Validation failed for field \"changes['train.epochs']\". Failure reason: 0 is less than the minimum of 1"
    expect(form.get_by_text(refusal).first).to_be_visible()
    epochs.locator("input").fill("3")
    epochs.locator("input").press("Tab")
    with form.expect_response("**/create_flow_run", timeout=PATIENCE * 1000) as answer:
        form.get_by_role("button", name="Submit").click()
    assert answer.value.status == 201, answer.value.text()
    (made,) = up.wait_for(lambda: [run for run in up.runs("watch-corpus") if not run["auto_scheduled"]], PATIENCE)
    assert made["parameters"]["changes"] == {"train.epochs": 3}
