"""Environment of the test processes, and fixtures of the browser tests."""

from __future__ import annotations

import os
import shutil

import pytest

if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Before torch and Gradio are imported: one thread and a range of ports for each worker.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GRADIO_SERVER_PORT", str(7860 + 100 * int(worker.removeprefix("gw"))))

CAMERA = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long runs, which are asked for with ``-m fuzz``."""
    if "fuzz" not in config.getoption("-m"):
        left_out = [item for item in items if item.get_closest_marker("fuzz")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium with a fake camera; without Chromium the tests are skipped."""
    api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *CAMERA])
        except api.Error as error:
            pytest.skip(f"no Chromium that Playwright can start: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def app_address(tmp_path_factory):
    """The app's page with invented predictors and small models, served for all browser tests."""
    pytest.importorskip("gradio", reason="the browser test needs gradio")
    from helpers.app_pages import served

    with pytest.MonkeyPatch.context() as patch, served(tmp_path_factory.mktemp("examples"), patch) as address:
        yield address


@pytest.fixture(scope="module")
def app_context(browser):
    """A browser context for all pages of a module, which share what they have loaded."""
    from helpers.app_pages import SIZE

    context = browser.new_context(viewport=SIZE)
    yield context
    context.close()


@pytest.fixture(scope="module")
def opened_pages(app_context, app_address):
    """The page that the tests of a module take over from each other; empty while none is open."""
    return []


@pytest.fixture
def page(app_context, app_address, opened_pages):
    """The app's page as it opens; nothing may go wrong on it, and nothing but the server may be asked."""
    from helpers.app_pages import open_page, reset
    from playwright.sync_api import Error

    page = opened_pages.pop() if opened_pages else open_page(app_context, app_address)
    try:
        reset(page)
    except Error:  # the test before left it in a state that cannot be undone
        page.close()
        page = open_page(app_context, app_address)
    yield page
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith((app_address, "data:", "blob:"))] == []
    opened_pages.append(page)
