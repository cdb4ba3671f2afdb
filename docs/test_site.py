"""The built site in a browser: pages fit phones, can be read in light and dark, and raise no error.

They load nothing from elsewhere, their headings go down one level at a time, and images have texts.
"""

from pathlib import Path

import pytest

from tests.e2e.browser import FAINT, Browser, find_chromium

SITE = Path(__file__).parent / "_build" / "html"
CHROMIUM = find_chromium()
DESK, PHONE = 1280, 390
UNREAD = """
[...[...document.images].filter(i => !i.alt.trim()).map(i => 'no text for ' + i.src),
 ...[...document.querySelectorAll('main :is(h1, h2, h3, h4, h5)')]
    .filter((h, i, all) => h.tagName[1] > (i ? +all[i - 1].tagName[1] + 1 : 1))
    .map(h => 'a level is left out above ' + h.innerText)]
"""
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
            for width, dark in ((DESK, False), (DESK, True), (PHONE, False)):
                faults += [f"{page.relative_to(SITE)}, {width} px, dark {dark}: {fault}"
                           for fault in _faults(browser, page, width, dark)]  # fmt: skip
    finally:
        browser.close()
    assert faults == []


def _faults(browser, page, width, dark=False):
    browser.open(page.as_uri(), width, dark=dark)
    wide = browser.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        yield f"{wide} px wide"
    yield from browser.evaluate(MOVED if width == PHONE else FAINT)
    if width == DESK:
        yield from browser.evaluate(UNREAD)
    for event in browser.happened("Network.requestWillBeSent"):
        url = event["request"]["url"]
        if not url.startswith(("file:", "data:", "blob:")):
            yield f"loads {url}"
    for event in browser.happened("Runtime.exceptionThrown"):
        yield f"raises {event['exceptionDetails']['text']}"
