"""A real Chromium with the network off, and a fixture that writes a page, opens it and watches it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_samples import OpenPage
from playwright.sync_api import Browser, Page, sync_playwright

from crossvis_tl.page import write_page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


def find_chromium() -> str:
    """Chromium's path: $CHROMIUM, or what the system has. Playwright's own browsers are never downloaded."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.fail("the page's tests need Chromium: `apt-get install chromium`, or set CHROMIUM to its path")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser a module: while one is open, Playwright's event loop keeps other asyncio code from running."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[OpenPage]:
    """-> open_page(head, features, address="", **context options), a page that has drawn its first feature or the map.

    When the test ends: nothing was asked for but the file itself, and nothing was written to the console.
    """
    watched: list[tuple[Page, str, list[str], list[str]]] = []

    def open_one(head: dict[str, Any], features: list[tuple[int, Any]], address: str = "", **options: Any) -> Page:
        path = tmp_path / f"page {len(watched)}.html"
        write_page(path, head, features)
        context = browser.new_context(**{"viewport": {"width": 1500, "height": 950}, **options})
        context.set_offline(True)
        page, requests, faults = context.new_page(), [], []
        page.set_default_timeout(10_000)
        page.on("request", lambda request: requests.append(request.url.split("#")[0]))
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        watched.append((page, path.as_uri(), requests, faults))
        page.goto(path.as_uri() + address)
        page.wait_for_selector("main article, main [data-map], [data-field=nothing]")
        return page

    yield open_one
    for page, uri, requests, faults in watched:
        assert set(requests) == {uri}
        assert faults == []
        page.context.close()
