"""The built site in a browser: pages fit phones, load nothing from elsewhere, raise no error."""

from pathlib import Path

import pytest

from tests.e2e.browser import Browser, find_chromium

SITE = Path(__file__).parent / "_build" / "html"
CHROMIUM = find_chromium()
DESK, PHONE = 1280, 390
MOVED = """
[...document.querySelectorAll('.pst-scrollable-table-container')]
  .filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => 'a table is wider than the window: ' + e.innerText.slice(0, 60))
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
@pytest.mark.skipif(not SITE.exists(), reason="the site is not built: make site")
def test_pages_fit_their_window_and_load_nothing_from_elsewhere(tmp_path):
    pages = [page for page in SITE.rglob("*.html") if "_static" not in page.parts]
    assert len(pages) > 30
    browser = Browser(CHROMIUM, tmp_path)
    faults = []
    try:
        for page in pages:
            for width in (DESK, PHONE):
                faults += [f"{page.relative_to(SITE)}, {width} px: {fault}"
                           for fault in _faults(browser, page, width)]  # fmt: skip
    finally:
        browser.close()
    assert faults == []


def _faults(browser, page, width):
    browser.open(page.as_uri(), width)
    wide = browser.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        yield f"{wide} px wide"
    if width == PHONE:
        yield from browser.evaluate(MOVED)
    for event in browser.happened("Network.requestWillBeSent"):
        url = event["request"]["url"]
        if not url.startswith(("file:", "data:", "blob:")):
            yield f"loads {url}"
    for event in browser.happened("Runtime.exceptionThrown"):
        yield f"raises {event['exceptionDetails']['text']}"
