"""The page read back: its numbers, and that it needs nothing but itself."""

import re
from html.parser import HTMLParser

import pytest

from pxp_fast import report
from pxp_fast.errors import PxpError
from pxp_fast.evaluate import Curve
from pxp_fast.records import Hits, SlimmedRecord, Spread
from pxp_fast.report import smaller, words
from pxp_fast.results import ClassRecord
from report.examples import curve, heat_maps, results, slimmed


class Reader(HTMLParser):
    """All elements, and the text of every table row and element with an id or class."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.in_cell = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text.append(data)
        if self.in_cell:
            self.rows[-1][-1] = (self.rows[-1][-1] + data).strip()

    def find(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\u202f", " "))


@pytest.fixture(scope="module")
def page():
    found = results()
    return report.render([(found, heat_maps(found))])


@pytest.fixture(scope="module")
def reader(page):
    return Reader(page)


def test_it_refers_to_nothing_outside_itself(page, reader):
    assert not reader.find("script") and not reader.find("link") and not reader.find("iframe")
    sources = [attributes["src"] for attributes in reader.find("img")]
    assert len(sources) == 3
    assert all(source.startswith("data:image/") for source in sources)
    links = [v for _, a in reader.elements for k, v in a.items() if k in ("href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", page)


def test_it_says_the_numbers(reader):
    text = plain(" ".join(reader.text))
    assert "30 % of filters and heads removed, accuracy 90 % → 81 %" in text
    assert "12 of 40 filters and heads were set to zero, least relevant first" in text
    assert "measured on 30 images and accuracy on 300 others" in text
    # 0.9 - 0.1 r stays above 0.855 up to r = 0.45; for slopes 1 and 2 up to 0 (0.85 at 5 %) and 0.
    assert "Up to 45 % can go" in text and "in random order 0 % (median of 2)" in text
    assert "95 % interval 76.2 % to 85 %" in text  # Wilson's, of 243 in 300
    assert "Something to know." in text
    assert "e/cat/broken.jpg" in text and "the file is empty" in text
    assert "pxp-fast run a:b --data 'my images'" in text
    assert "ab" * 32 in text


def test_the_tables_hold_every_rate_layer_and_changed_class(reader):
    rows = [[plain(cell) for cell in row] for row in reader.rows]
    assert ["10 %", "89 %", "10 %", "70 % to 80 %"] in rows
    assert sum(len(row) == 4 and row[3].count(" to ") == 1 for row in rows) == 20
    assert ["first", "filters", "0", "10", ""] in rows
    assert ["second", "heads", "12", "30", ""] in rows
    classes = [row for row in rows if len(row) == 7]
    assert classes[1:] == [
        ["cat", "100", "90", "70", "90 %", "70 %", "−20"],
        ["dog", "100", "90", "90", "90 %", "90 %", "0"],
        ["<script>alert(1)</script>", "100", "90", "93", "90 %", "93 %", "+3"],
    ]
    assert {"style": "width:40.0%"} in reader.find("i")


def test_pictures_and_figures_have_words_for_those_who_cannot_see_them(reader):
    assert all(attributes.get("alt") for attributes in reader.find("img"))
    labels = [a["aria-label"] for a in reader.find("div") if a.get("role") == "img"]
    assert len(labels) == 3
    assert "Of 3 classes 1 lose accuracy, 1 gain, 1 stay as they are." in labels[0]
    assert "least relevant first: 90 % at 0 %" in plain(labels[1])
    assert "from 0 % (first) to 40 % (second)" in plain(labels[2])
    assert len(reader.find("svg")) == 5  # two of them once more, for narrow windows


def test_names_cannot_become_markup(page):
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_figures_wear_the_pages_colours(page):
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert all("var(--accent)" in figure for figure in figures)
    assert not re.search(r"#0a0b0", page)


def test_a_smaller_network_is_described():
    found = slimmed()
    reader = Reader(report.render([(found, heat_maps(found))]))
    text, rows = plain(" ".join(reader.text)), [[plain(cell) for cell in row] for row in reader.rows]
    assert "12 of 40 filters and heads were removed" in text
    assert "9 units were cut out of the network; 3 stay as zeros" in text
    assert "differ from the masked network's by 2.5 · 10⁻⁷ of the largest" in text
    exact = found.slimmed.model_copy(update={"difference": 0.0})
    assert "On 8 images the logits are exactly the masked network's." in smaller.slimmed(exact)
    assert ["Parameters", "1,500,000", "900,000", "60 %"] in rows
    assert ["FLOPs per image", "3.40 G", "2.00 G", "58.8 %"] in rows
    assert ["Size on disk", "6.00 MB", "3.60 MB", "60 %"] in rows
    assert ["Time, 32 images", "12.0 ms11.8 to 12.5 ms", "7.50 ms9.00 to 12.1 ms", "62.5 %"] in rows
    # 1.7 times fewer operations; 1.6 is within 15 % of it.
    assert "With 32 images at a time the network is 1.60 times as fast" in text
    assert "about what its FLOPs promise (1.70 times)" in text
    assert "With 1 image at a time the network is not measurably faster here, though its FLOPs promise 1.70" in text
    assert "went from 6.00 ms to 5.00 ms, 1.20 times as fast; the others, 40 % of the time before, from 4.00 ms" in text
    assert text.count("went from") == 1
    assert "On cpu, 2 threads, float32" in text
    assert "33 are right before and wrong after, 6 the other way round: accuracy changes by −9 percentage" in text
    assert "McNemar's exact test, p < 0.001" in text
    assert ["second", "heads", "12", "9", "3", "30", ""] in rows
    assert [
        "Overlapof the tenth of the pixels that speak most for the class; 0.1 by chance",
        "0.600",
        "0.540 to 0.660",
    ] in rows


@pytest.mark.parametrize(
    ("ratio", "promised", "verdict"),
    [
        (0.8, 1.5, "is slower here, though its FLOPs promise 1.50 times: 0.80 times as fast"),
        (1.0, 1.0, "is not measurably faster here: 1.00 times as fast"),
        (1.2, 2.0, "less than its FLOPs promise (2.00 times)"),
        (1.9, 2.0, "about what its FLOPs promise (2.00 times)"),
        (3.0, 2.0, "more than its FLOPs promise (2.00 times)"),
    ],
)
def test_the_speed_is_told_beside_what_work_promises(ratio, promised, verdict):
    found = slimmed().costs.latency[0]
    spread = Spread(median=ratio, low=ratio - 0.01, high=ratio + 0.01)
    assert verdict in smaller.speed(found.model_copy(update={"speed_up": spread}), promised)


def test_a_network_that_could_not_be_slimmed_says_why():
    found = results(slimmed=SlimmedRecord(problem="its code insists.", zeros=12, masked=Hits(correct=243, total=300)))
    text = plain(" ".join(Reader(report.render([(found, heat_maps(found))])).text))
    assert "could not be made smaller, so everything here is of the masked one. its code insists." in text
    assert "were set to zero" in text


def test_many_classes_are_drawn_without_their_names():
    many = tuple(ClassRecord(label=i, name=f"class {i}", before=5, after=5 - i % 3, total=10) for i in range(200))
    found = results(classes=many)
    page = report.render([(found, heat_maps(found))])
    assert "200 classes, the largest loss first" in page


def test_several_runs_share_a_page_without_sharing_ids():
    first, second = slimmed(), results(curves=(curve("least", None, 0.5),), skipped=(), heatmaps=())
    page = report.render([(first, heat_maps(first)), (second, heat_maps(second))])
    reader = Reader(page)
    assert [(row[0], row[5]) for row in reader.rows[1:3]] == [("a:b", "58.8\u202f%"), ("a:b", "")]
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {link for _, a in reader.elements for k, v in a.items() if k in ("href", "xlink:href") for link in [v[1:]]}
    used |= set(re.findall(r"url\(#(\w+)\)", page))
    assert used <= set(ids)


def test_a_network_that_is_never_right_keeps_nothing_worth_a_rate():
    nothing = tuple(0.0 for _ in results().curves[0].rates)
    curves = []
    for found in results().curves:
        made = Curve(found.rates, nothing, found.removed, found.order)
        curves.append(found.model_copy(update={"accuracies": nothing, "a_pr": made.a_pr, "top_pr": made.top_pr}))
    text = words.summary(results(before=Hits(correct=0, total=300), curves=tuple(curves)))
    assert "can go" not in text
    assert "The accuracy of the unpruned network is 0, so there is none to keep." in text


def test_it_is_the_same_each_time(page):
    found = results()
    assert report.render([(found, heat_maps(found))]) == page


def test_a_run_without_curves_units_or_pictures_has_a_page_too():
    bare = results(curves=(), layers=(), heatmaps=(), classes=(), skipped=(), notes=(), units=0, removed=0)
    assert "accuracy" in report.render([(bare, heat_maps(bare))])


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(PxpError, match=rf"the report needs {missing}; install with: pip install 'pxp_fast\[report\]'"):
        report.render([])
