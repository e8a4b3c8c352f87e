"""The page in a real browser: it has its plots, complains of nothing, asks for nothing, and fits into its window."""

import pytest

from pxp_fast import report
from pxp_fast.results import ClassRecord
from report.browser import BINARY, Browser
from report.examples import heat_maps, results, slimmed

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium is installed (apt-get install chromium)")
WINDOWS = (1400, 400)
# Of every plot that is drawn: its width, the width that it has to itself, and how many shapes it draws.
PLOTS = """[...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 0).map(s => [
    s.getBoundingClientRect().width, s.closest("figure").clientWidth, s.querySelectorAll("path, use").length])"""
# What sticks out of the window, unless it is in a box that scrolls.
OUTSIDE = """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest(".scroll, .curve, svg")).map(e => e.tagName + " " + e.className)"""
SMALLEST_LETTERS = """Math.min(...[...document.querySelectorAll(".wide text, .narrow text")]
    .filter(t => t.getBoundingClientRect().width > 0).map(t => t.getBoundingClientRect()).map(
    b => Math.min(b.width, b.height)))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two runs on one page: one as it comes, and one with everything that could stick out."""
    long = tuple(
        ClassRecord(label=i, name=f"a class with a long name {i}", before=5, after=i % 6, total=10) for i in range(30)
    )
    first = slimmed()
    second = slimmed(
        classes=long,
        layers=tuple(first.layers[1].model_copy(update={"name": f"stages.{i}.blocks.{i}.mlp.fc1"}) for i in range(60)),
        command="pxp-fast run timm:a_network --data " + "/a/folder" * 30,
        notes=("A note with " + "long" * 60 + " words.",),
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.save(report.render([(found, heat_maps(found, 64)) for found in (first, second)]), path)
    return path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WINDOWS)
def test_the_page_fits_and_draws_without_a_complaint(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    assert browser.complaints() == []
    assert browser.requested() == [page.resolve().as_uri()]
    assert browser.find("innerWidth") == width
    assert browser.find("document.documentElement.scrollWidth") <= width
    assert browser.find(OUTSIDE) == []
    plots = browser.find(PLOTS)
    assert len(plots) == 2 * 5  # costs, classes, curve, layers, explanations
    assert all(shapes > 10 for _, _, shapes in plots)
    scrolling = [drawn > room + 1 for drawn, room, _ in plots]
    assert sum(scrolling) == (0 if width == 1400 else 2)  # the layers, on a narrow window
    assert browser.find("[...document.images].every(i => i.naturalWidth > 0)")
    colour = browser.find("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(19, 22, 25)" if dark else "rgb(252, 252, 250)")


@pytest.mark.parametrize("width", WINDOWS)
def test_letters_in_plots_can_be_read(browser, page, width):
    browser.open(page, width)
    assert browser.find(SMALLEST_LETTERS) >= 4  # the thinner side of the smallest word's box, in pixels


def test_the_browser_notices_what_is_wrong(browser, tmp_path):
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<script>1</script><img src='missing.png'><div style='width: 2000px'>wide</div>"
    )
    browser.open(wrong, 400)
    assert len(browser.complaints()) == 2
    assert browser.find("document.documentElement.scrollWidth") > 400


def test_a_page_of_an_older_run_is_drawn_too(browser, tmp_path):
    found = results()
    report.save(report.render([(found, heat_maps(found))]), tmp_path / "report.html")
    browser.open(tmp_path / "report.html", 400)
    assert browser.complaints() == []
    assert len(browser.find(PLOTS)) == 3
