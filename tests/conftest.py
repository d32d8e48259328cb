"""What several test files share."""

from __future__ import annotations

import os
import shutil

import pytest

CAMERA = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium with a made-up camera; where none is found, the test is skipped with the reason."""
    api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *CAMERA])
        except api.Error as error:
            pytest.skip(f"no Chromium that Playwright can start: {error.message.splitlines()[0]}")
        yield browser
        browser.close()
