"""The report: one file, well formed, with nothing from elsewhere, every name escaped, and the comparison of runs."""

import math
import re
from html.parser import HTMLParser

import pytest

from dvt_fast.errors import InputError
from dvt_fast.evaluation.charts import Bar, bars, short, ticks
from dvt_fast.evaluation.compare import apart, best, compare
from dvt_fast.evaluation.html import Html, tag
from dvt_fast.evaluation.outcome import Outcome, Score
from dvt_fast.evaluation.report import write_report
from dvt_fast.evaluation.report_run import MAX_PICTURE
from dvt_fast.evaluation.store import Store
from dvt_fast.evaluation.variants import parse_variant
from street_samples import DATA, VIT, an_outcome

VOID = {"meta", "img", "br"}
SVG_ENDED = {"line", "rect", "path"}  # they close themselves


class Page(HTMLParser):
    """What is in a page; fails where elements are not closed in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.seen, self.links, self.ids, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.seen.append((name, dict(attributes)))
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "action", "data")]
        self.ids += [value for key, value in attributes if key == "id"]
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        assert name in SVG_ENDED
        self.seen.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for found, attributes in self.seen if found == name]


def fill(out, task="segment", name="street", values=(("raw", 0.4), ("coordinates", 0.1), ("<b>x</b>=direct", 0.5)),
         problems=(), half=0.01, settings=None):  # fmt: skip
    store = Store(out, task, name, data=DATA, vit=VIT, vit_key="v", settings=settings or {"iterations": 5})
    store.document["problems"] = list(problems)
    for text, value in values:
        store.add(parse_variant(text), an_outcome(value, half), 2.0)
    return store


def test_the_page_is_whole_and_alone(tmp_path):
    fill(tmp_path, problems=["<i>a.png</i>: no label"])
    fill(tmp_path, "mic", "other")
    path = write_report(tmp_path)
    text = path.read_text()
    page = Page(text)
    assert text.startswith("<!doctype html>") and page.all("html")[0]["lang"] == "en"
    assert "<script" not in text and "http" not in " ".join(page.links) and "@import" not in text
    assert "url(" not in text
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.all("title") and all(image["alt"] for image in page.all("img")) and len(page.all("img")) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_names_are_escaped_and_shown(tmp_path):
    fill(tmp_path, problems=["<i>a.png</i>: no label"])
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert not page.all("i") and "<b>x" not in text
    shown = " ".join(page.text)
    assert "<b>x</b>" in shown and "sky & <i>" in shown and "<i>a.png</i>: no label" in shown
    assert "ground <b>" in shown


def test_values_intervals_and_facts_are_there(tmp_path):
    fill(tmp_path)
    shown = " ".join(Page(write_report(tmp_path).read_text()).text)
    for part in ("0.400", "[0.390, 0.410]", "4 training images, 3 test images, 3 classes", "vit_x", "iterations",
                 "processor", "block 5 of 0 to 5", "more is better", "2.0"):  # fmt: skip
        assert part in shown, part


@pytest.mark.parametrize(
    "values, half, marked",
    [
        ((("raw", 0.4), ("direct", 0.5)), 0.01, "0.500"),
        ((("raw", 0.4), ("direct", 0.41)), 0.01, None),  # the intervals touch
        ((("raw", 0.4), ("direct", 0.5)), None, None),  # there are none
        ((("raw", 0.4), ("coordinates", 0.5)), 0.01, None),  # the control
    ],
)
def test_best_is_marked_only_where_intervals_allow(tmp_path, values, half, marked):
    fill(tmp_path, values=values, half=half)
    text = write_report(tmp_path).read_text()
    assert re.findall(r"<strong>(.*?)</strong>", text) == ([marked] if marked else [])


def test_best_knows_which_way_is_better():
    def scores(*values, higher):
        return [{"value": v, "low": v - 0.1, "high": v + 0.1, "higher": higher} for v in values]

    kinds = [{"kind": "raw"}, {"kind": "direct"}, {"kind": "average"}]
    assert best(scores(1, 2, 3, higher=True), kinds) == 2
    assert best(scores(1, 2, 3, higher=False), kinds) == 0
    assert best(scores(1, 2, 3, higher=None), kinds) is None
    assert best([None, *scores(1, 2, higher=True)], kinds) == 2
    assert best(scores(1, higher=True), kinds[:1]) is None


def test_comparison_has_differences_with_intervals_and_says_what_is_not_the_same(tmp_path):
    here = fill(tmp_path / "a", values=(("raw", 0.5), ("direct", 0.6), ("average", 0.5)))
    there = fill(
        tmp_path / "b", values=(("raw", 0.4), ("direct,passes=1", 0.61)), half=0.02, settings={"iterations": 6}
    )
    raw, direct = compare(here.document, there.document)
    assert (raw.variant, raw.score, raw.verdict) == ("raw", "mIoU", "better")
    spread = math.hypot(0.01, 0.02)
    assert [raw.value, raw.low, raw.high] == pytest.approx([0.1, 0.1 - spread, 0.1 + spread])
    assert direct.verdict == "" and direct.low < 0 < direct.high
    assert apart(here.document, there.document) == [
        "settings: iterations 6, now 5",
        "variant direct is made in another way",
        "variant average is here alone",
    ]
    page = Page(write_report(tmp_path / "a", [tmp_path / "b"]).read_text())
    shown = " ".join(page.text)
    assert "+0.100" in shown and "iterations 6, now 5" in shown and "variant direct is made in another way" in shown
    fill(tmp_path / "c", "knn")
    assert "Not in c." in " ".join(Page(write_report(tmp_path / "a", [tmp_path / "c"]).read_text()).text)
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "a", [tmp_path / "absent"])


def test_less_is_better_turns_the_verdict(tmp_path):
    documents = []
    for value in (1.0, 2.0):
        store = Store(tmp_path / str(value), "depth", "x", data=DATA, vit=VIT, vit_key="v", settings={})
        store.add(parse_variant("raw"), Outcome({"RMSE": Score(value, value - 0.1, value + 0.1, higher=False)}), 1)
        documents.append(store.document)
    assert [d.verdict for d in compare(*documents)] == ["better"]
    assert [d.verdict for d in compare(*reversed(documents))] == ["worse"]


def test_what_cannot_be_read_or_is_missing_is_told(tmp_path):
    store = fill(tmp_path)
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / store.rows[0]["pictures"][0]).unlink()
    (tmp_path / store.rows[1]["pictures"][0]).write_bytes(bytes(MAX_PICTURE + 1))
    shown = " ".join(Page(write_report(tmp_path).read_text()).text)
    assert "cut.json: not readable as JSON" in shown
    assert "examples.webp: missing" in shown and "examples.webp: too large for the page" in shown


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no results of dvt-fast eval in it"):
        write_report(tmp_path)
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        write_report(tmp_path)


def test_bars_reach_as_far_as_their_values():
    svg = bars("mIoU", [Bar("raw", 0.5, 0.4, 0.6, "base"), Bar("<x>", 0.25), Bar("none", None), Bar("minus", -0.25)])
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="12"', svg)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2) and widths[1] == pytest.approx(widths[2], abs=0.2)
    assert len(re.findall('class="whisker"', svg)) == 1
    assert "&lt;x&gt; 0.250" in svg and "raw 0.500 (0.400 to 0.600)" in svg and "<x>" not in svg
    Page(svg)
    Page(bars("all alike", [Bar("raw", 0.0)]))


@pytest.mark.parametrize("low, high", [(0, 1), (0, 0.037), (-3, 5), (0, 1234), (-2e-5, 0)])
def test_ticks_are_few_round_and_hold_zero(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 7 and 0 in found
    assert found[0] <= low and found[-1] >= high - (found[1] - found[0])


def test_numbers_in_few_signs():
    assert [short(v) for v in (0, 0.5, -0.12345, 12.345, 1234.5, 2e7, 1e-5)] == [
        "0", "0.500", "-0.123", "12.3", "1,234", "2.00e+07", "1.00e-05"]  # fmt: skip


def test_only_html_goes_in_unescaped():
    assert tag("p", "<b>", Html("<i>x</i>"), None, 3, class_='"') == '<p class="&quot;">&lt;b&gt;<i>x</i>3</p>'
    assert tag("img", alt="<", hidden=True, title=None) == '<img alt="&lt;" hidden>'
