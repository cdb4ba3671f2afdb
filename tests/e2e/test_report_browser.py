"""The report as a browser shows it: whole, without a word to anyone, on a phone and on a desk.

And its curves as the script in `examples/` reads them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from cosmoflow.stages.evaluate.report.figures import drawing
from tests.cases import each
from tests.e2e.browser import FAINT, Browser, find_chromium

pytestmark = pytest.mark.e2e

PHONE, DESK = 390, 1280

# What sticks out of the window, unless it is in a region that scrolls by itself.
OUTSIDE = """
[...document.querySelectorAll('body *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll'))
  .map(e => e.tagName + ' ' + e.className)
"""
# Tables that do not fit, and have to be moved sideways.
MOVED = """
[...document.querySelectorAll('.scroll')]
  .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)
"""
IMAGES = """
[...document.images].map(i => ({
  complete: i.complete, natural: i.naturalWidth, width: i.width, height: i.height,
  shape: i.naturalWidth / i.naturalHeight, alt: i.alt, source: i.src.slice(0, 22),
  figure: i.closest('figure').id}))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("no browser: install the package `chromium`")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


on_every_screen = each("width, dark", [(PHONE, False), (DESK, False), (PHONE, True), (DESK, True)])


def show(browser, report, width, dark=False):
    browser.open(f"file://{report / 'report.html'}", width, dark=dark)


@on_every_screen
def test_every_image_is_loaded_and_nothing_else_is(browser, report, width, dark):
    show(browser, report, width, dark)
    images = browser.evaluate(IMAGES)
    assert len(images) == len(list((report / "figures").glob("*.png")))
    for image in images:
        assert image["complete"]
        assert image["natural"] > 900
        assert 250 < image["width"] <= width
        assert image["width"] / image["height"] == pytest.approx(image["shape"], rel=0.02)
        assert image["alt"]
        assert image["source"] == "data:image/png;base64,"
        # Pixels of the smallest letters, of ticks.
        paper = drawing.NARROW if image["figure"].startswith("figure-slice_") else drawing.WIDE
        assert image["width"] / (72.0 * paper.width) * (paper.size - 1.0) > 8.5
    requests = [found["request"]["url"] for found in browser.happened("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith("data:")] == [
        f"file://{report / 'report.html'}"
    ]
    assert browser.evaluate("document.scripts.length") == 0


@on_every_screen
def test_the_browser_has_nothing_to_complain_about(browser, report, width, dark):
    show(browser, report, width, dark)
    for event in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
        assert browser.happened(event) == []
    assert browser.evaluate("document.compatMode") == "CSS1Compat"


@on_every_screen
def test_nothing_sticks_out_of_the_window_and_figures_grow_at_a_click(browser, report, width, dark):
    show(browser, report, width, dark)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(OUTSIDE) == []
    assert browser.evaluate(MOVED) == []
    # A click enlarges a figure over the window.
    image = "document.querySelector('#figure-slice_momentum img')"
    before = browser.evaluate(f"{image}.width")
    browser.evaluate(f"{image}.click()")
    assert browser.evaluate(f"{image}.width") == 1024 > before
    shown = "document.elementFromPoint(40, innerHeight / 2).closest('figure').id"
    assert browser.evaluate(shown) == "figure-slice_momentum"
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    browser.evaluate("document.querySelector('#figure-slice_momentum .close').click()")
    assert browser.evaluate(f"{image}.width") == before


@on_every_screen
def test_the_verdict_is_on_the_first_screen_and_text_can_be_read(browser, report, width, dark):
    show(browser, report, width, dark)
    bottom = "document.querySelector('.tiles').getBoundingClientRect().bottom"
    assert browser.evaluate(bottom) < 800
    assert browser.evaluate(FAINT) == []
    size = (
        "Math.min(...[...document.querySelectorAll('p,td,th,li')].map("
        "e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert browser.evaluate(size) >= 11.5


@on_every_screen
def test_the_page_takes_the_colours_that_the_reader_prefers(browser, report, width, dark):
    show(browser, report, width, dark)
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(colour.removeprefix("rgb(").split(",")[0])
    assert red < 64 if dark else red > 192


def test_it_reads_the_same_without_javascript(browser, report):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        show(browser, report, PHONE)
        root = browser.send("DOM.getDocument", depth=-1)["root"]
        found = browser.send("DOM.querySelectorAll", nodeId=root["nodeId"], selector="img, table")
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert len(found["nodeIds"]) > 20


def test_the_examples_draw_figures_with_xarray_alone(chain, report, tmp_path):
    truth, prediction = chain / "fields.zarr", chain / "prediction.zarr"
    residuals = tmp_path / "residuals.png"
    named = [f"network={prediction}", f"another={prediction}"]
    for name, arguments in {
        "plot_report.py": [report / "curves.zarr", truth, prediction, "--z=20", "--out", tmp_path],
        "plot_residuals.py": [truth, *named, "--z=20", "--out", residuals],
    }.items():
        script = Path(__file__).parents[2] / "examples" / name
        subprocess.run([sys.executable, "-W", "error", script, *arguments], check=True)
        assert "cosmoflow" not in "".join(
            line for line in script.read_text().splitlines() if "import" in line
        )
    for name in ("spectra.png", "slice.png", residuals.name):
        assert (tmp_path / name).stat().st_size > 20_000
