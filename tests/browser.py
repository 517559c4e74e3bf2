"""A real browser for the tests: Debian's Chromium driven by Playwright's Python package."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest


def chromium_path():
    """Return where Chromium lies; `CHROMIUM` names another place."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


@contextlib.contextmanager
def chromium(*arguments):
    """Start Chromium without graphics hardware, or skip the test and say why."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium_path()
    if path is None or not Path(path).exists():
        pytest.skip("no Chromium: install Debian's package chromium, or name one in CHROMIUM")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", *arguments])
        yield browser
        browser.close()


class Opened:
    """A page, and what went wrong or outwards while it was open."""

    def __init__(self, browser, url, *, size=(1280, 800), theme="light", hash="", script=None):
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=theme, accept_downloads=True
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.errors, self.requests = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        if script:
            self.page.add_init_script(script)
        self.page.goto(url + hash)
        self.page.wait_for_selector("[data-ready], .failure")

    def node(self, name):
        """Return the drawn node."""
        return self.page.locator(f'.node[data-name="{name}"]')
