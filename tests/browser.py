"""A real browser for the tests, Debian's Chromium driven by Playwright's Python package, and a page opened in it."""

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

import sparse_circuits as sc
from sparse_circuits.tasks.sampling import SplitSizes
from sparse_circuits.viewer.data import view_model
from sparse_circuits.viewer.page import front_end, styles, write_page
from sparse_circuits.viewer.widget import ADAPTER

FOLDER = "circuits/single_double_quote"
SIZES = SplitSizes(fit=8, select=24, test=24, hard=8)
"""A task that is drawn at once; the page shows a few pairs anyway."""


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


def exported(found, what):
    """Return what the page writes when asked for a file."""
    found.page.locator("summary", has_text="Export").click()
    with found.page.expect_download() as download:
        found.page.get_by_role("button", name=what, exact=True).click()
    found.page.keyboard.press("Escape")
    return Path(download.value.path()).read_bytes()


def wait_until(page, expression: str) -> None:
    """Ask the page until it says yes; a page that forbids `eval` can't be asked to wait by itself."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"still not so after 30 seconds: {expression}")


def front_end_parts(page, *names):
    """Bring functions and classes of the front end, which a page keeps to itself, to `window.parts`."""
    page.evaluate(
        """async (code) => {
        window.parts = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
        }""",
        f"{front_end()}\nexport {{ {', '.join(names)} }};",
    )


def widget_cells(page, view, *, n=1, is_shadow=False):
    """Draw a notebook's widget in cells of a page: one model, as `window.model`, and what ends each cell, in `ends`."""
    page.evaluate(
        """async ([code, style, view, n, isShadow]) => {
        const { default: widget } = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
        const traits = { views: [view], notes: null, height: 480 }, heard = new Set();
        window.model = {
          get: (name) => traits[name],
          set(name, value) { traits[name] = value; [...heard].forEach((listener) => listener()); },
          save_changes() {},
          on: (event, listener) => heard.add(listener),
          off: (event, listener) => heard.delete(listener),
        };
        window.ends = Array.from({ length: n }, () => {
          const host = document.body.appendChild(document.createElement("div"));
          const el = isShadow ? host.attachShadow({ mode: "open" }) : host;
          el.append(Object.assign(document.createElement("style"), { textContent: style }));
          return widget.render({ model: window.model, el });
        });
        }""",
        [front_end() + ADAPTER, styles(), view, n, is_shadow],
    )
    page.locator("[data-ready]").nth(n - 1).wait_for()


@pytest.fixture(scope="module")
def browser():
    """Chromium, started once a file."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def circuit():
    """The example's circuit."""
    return sc.Circuit.load(sc.example(FOLDER))


@pytest.fixture(scope="module")
def view(circuit):
    """Its view-model, with a few pairs."""
    task = sc.task("single_double_quote", circuit.model.tokenizer, seed=0, sizes=SIZES)
    own = dataclasses.replace(circuit, task=circuit.task | {"hash": task.hash})
    return json.loads(json.dumps(view_model(own, folder=sc.example(FOLDER), task=task, n_pair=4)))


@pytest.fixture(scope="module")
def url(view, tmp_path_factory):
    """The address of its page."""
    return write_page(view, tmp_path_factory.mktemp("page") / "page.html").as_uri()


@pytest.fixture
def opened(browser, url):
    """The page, open; afterwards nothing may have gone wrong, or outwards."""
    found = Opened(browser, url)
    yield found
    assert found.errors == []
    assert [request for request in found.requests if not request.startswith(("file:", "data:", "blob:"))] == []
    found.context.close()
