"""The page of `dvt-fast look` in a browser: what it draws, what keys and pointers do, and that it asks nobody else."""

import contextlib
import io
import shutil
import threading

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("timm")
pytest.importorskip("playwright", reason="Playwright drives the browser")
from PIL import Image

import dvt_fast
from dvt_fast import visual
from dvt_fast.images import load_image
from dvt_fast.look.model import of_stage1, show
from dvt_fast.look.session import Session
from look_samples import serving

GRID = (14, 14)
WAIT = 20_000  # milliseconds, for a machine that does much else
NAMES = ["a.png", "b.png", "bad.png", "c.png"]
SHOWN = "#content:not([hidden])"


@pytest.fixture(scope="module")
def found():
    """What stage 1 found in each image that has been looked at, by name."""
    return {}


@pytest.fixture(scope="module")
def session(found, tmp_path_factory):
    """A folder of three images and one that is none."""
    folder = tmp_path_factory.mktemp("look")
    for n, name in enumerate(NAMES):
        image = Image.effect_mandelbrot((120, 90), (-2, -1.2, 1 - n / 5, 1.2), 50).convert("RGB")
        image.save(folder / name)
    (folder / "bad.png").write_text("not an image")
    vit = dvt_fast.ViT("dvt_mini")

    def make(path, progress):
        picture = load_image(path)
        found[path.name] = dvt_fast.decompose(picture, vit, "realtime", progress=progress)
        return show(picture, of_stage1(found[path.name]))

    return Session([folder / name for name in NAMES], make, lambda path, error: str(error))


@pytest.fixture(scope="module")
def url(session):
    with serving(session) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no Chromium to try the page in")
    with sync_playwright() as tool:
        running = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def pages(browser):
    """Opens pages; whatever they complain about, or ask of other servers, fails the test."""
    complaints, contexts = [], []

    def build(url, size=(1280, 800), wait=SHOWN, **options):
        contexts.append(browser.new_context(viewport={"width": size[0], "height": size[1]}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        origin = url.partition("?")[0].partition("#")[0]
        page.on("request", lambda asked: asked.url.startswith(origin) or complaints.append(asked.url))
        page.goto(url)
        page.wait_for_selector(wait)
        return page

    build.complaints = complaints
    yield build
    for context in contexts:
        context.close()
    assert complaints == []


def colors_of(page, element="#compare"):
    """The colour in the middle of each patch, as the browser has drawn it: [rows, columns, 3]."""
    image = np.asarray(Image.open(io.BytesIO(page.locator(element).screenshot())).convert("RGB")).astype(int)
    rows, columns = (((np.arange(n) + 0.25) / n * size).astype(int) for n, size in zip(GRID, image.shape))
    return image[rows[:, None], columns]


def expected_colors(d):
    """Of raw and of F."""
    constant = np.median(d.artifacts, axis=(0, 1))
    basis = visual.ColorBasis.fit(d.raw, d.semantics + constant)
    return basis.colors(d.raw).astype(int), basis.colors(d.semantics + constant).astype(int)


def assert_divided(page, d, percent):
    """Raw is left of the divider, clean is right of it."""
    seen, (raw, clean) = colors_of(page), expected_colors(d)
    edge = percent / 100 * GRID[1]
    left, right = np.arange(GRID[1]) + 1 <= edge, np.arange(GRID[1]) >= edge
    assert np.abs(seen - raw)[:, left].max(initial=0) <= 2
    assert np.abs(seen - clean)[:, right].max(initial=0) <= 2
    assert left.sum() + right.sum() >= GRID[1] - 1


def values_of(page, tile):
    return np.array(page.evaluate(f"[...document.querySelector('#{tile}').tile.values]")).reshape(GRID)


def chosen(page):
    row, column = page.inner_text("#chosen").removeprefix("Patch: row ").split(", column ")
    return int(row), int(column)


def click_patch(page, element, row, column):
    box = page.locator(element).bounding_box()
    x, y = (column + 0.5) / GRID[1] * box["width"], (row + 0.5) / GRID[0] * box["height"]
    page.mouse.click(box["x"] + x, box["y"] + y)


def test_the_slider_divides_raw_from_clean_by_keys_and_by_mouse(pages, url, found):
    page = pages(url)
    d = found["a.png"]
    assert np.abs(np.subtract(*expected_colors(d))).mean() > 5  # or nothing below could tell them apart
    assert_divided(page, d, 50)
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("End")
    assert_divided(page, d, 100)
    page.keyboard.press("Home")
    assert_divided(page, d, 0)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "3" and slider.get_attribute("aria-valuetext") == "3 % raw"
    for key, place in (("r", 100), ("c", 0), ("x", 100), ("b", 50)):
        page.keyboard.press(key)
        assert slider.input_value() == str(place)
    box = page.locator("#compare").bounding_box()
    across, middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(across, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, middle, steps=3)
    page.mouse.up()
    assert_divided(page, d, 25)
    assert slider.input_value() == "25"
    assert chosen(page) == visual.telling_patch(d.semantics)  # dragging the divider chooses nothing
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    assert abs(int(slider.input_value()) - 81) <= 1


@pytest.mark.parametrize("element", ["#compare", "#norm-raw .frame"])
def test_a_clicked_patch_has_its_similarities_in_both(pages, url, found, element):
    page = pages(url)
    d = found["a.png"]
    click_patch(page, element, 3, 9)
    assert chosen(page) == (3, 9)
    near = [visual.similarity(part, (3, 9)) for part in (d.raw, d.semantics)]
    low = min(0.99, *(np.percentile(values, 2) for values in near))
    for tile, values in zip(("similarity-raw", "similarity-clean"), near):
        np.testing.assert_allclose(values_of(page, tile), values, atol=1e-3)
        drawn = page.evaluate(
            f"[...document.querySelector('#{tile} canvas').getContext('2d').getImageData(0, 0, 14, 14).data]"
        )
        drawn = np.array(drawn).reshape(*GRID, 4)
        assert np.abs(drawn[..., :3] - visual.scale_colors(values, low, 1).astype(int)).max() <= 4
    kept = (visual.directions(d.raw) * visual.directions(d.semantics)).sum(-1)
    np.testing.assert_allclose(values_of(page, "kept"), kept, atol=1e-3)
    assert float(page.inner_text("#norm-of-raw")) == pytest.approx(np.linalg.norm(d.raw[3, 9]), rel=0.01)
    assert float(page.inner_text("#norm-of-offset")) == pytest.approx(np.linalg.norm(d.artifacts[3, 9]), rel=0.01)
    assert float(page.inner_text("#cosine-kept")) == pytest.approx(kept[3, 9], abs=2e-3)
    assert float(page.inner_text("#mean-clean")) == pytest.approx(near[1].mean(), abs=2e-3)


def test_arrows_choose_a_patch_and_the_pointer_reads_the_maps(pages, url, found):
    page = pages(url)
    row, column = chosen(page)
    for key in ("ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    assert chosen(page) == (row, column - 1)
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    assert chosen(page) == (0, column - 1)
    page.locator("#norm-raw .frame").hover(position={"x": 2, "y": 2})
    norm = np.linalg.norm(found["a.png"].raw[0, 0])
    assert float(page.inner_text("#norm-raw output")) == pytest.approx(norm, rel=0.01)
    page.get_by_label("Over the image").focus()
    page.keyboard.press("ArrowDown")  # not of the features, which are not focused
    assert chosen(page) == (0, column - 1)
    page.keyboard.press("o")
    assert page.is_checked("#over") and page.evaluate("document.querySelector('.under').checkVisibility()")
    raw = expected_colors(found["a.png"])[0]
    assert np.abs(colors_of(page) - raw)[:, :6].mean() > 10


def test_a_folder_is_gone_through_and_a_bad_image_says_so(pages, url, found):
    page = pages(url)
    current = page.locator("#list [aria-current]")
    assert page.locator("#list button").all_inner_texts() == NAMES
    assert page.is_disabled("#previous") and page.inner_text("#place") == "1 of 4"
    page.keyboard.press("n")
    page.wait_for_selector("#picture[alt='b.png']")
    assert current.inner_text() == page.inner_text("h1") == "b.png" and page.url.endswith("#2")
    assert_divided(page, found["b.png"], 50)
    page.keyboard.press("n")
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("[role=alert]").endswith("bad.png: not an image that Pillow can read")
    assert page.is_hidden("#content")
    page.click("#next")
    page.wait_for_selector(SHOWN)
    assert page.inner_text("h1") == "c.png" and page.is_disabled("#next")
    page.keyboard.press("n")  # there is none
    page.click("#list button:has-text('a.png')")
    page.wait_for_selector("#picture[alt='a.png']")
    page.reload()
    page.wait_for_selector(SHOWN)
    assert page.inner_text("#place") == "1 of 4"


def test_work_shows_its_progress(pages, tmp_path):
    go = threading.Event()

    def make(path, progress):
        progress(3, 8, "views")
        assert go.wait(30)
        raise ValueError("no more than that")

    with serving(Session([tmp_path / "x.png"], make, lambda path, error: str(error))) as url:
        page = pages(url, wait="#progress[value='3']")
        assert page.inner_text("#doing") == "3 of 8 views" and page.is_hidden("#list")
        assert page.get_by_role("progressbar").get_attribute("max") == "8"
        go.set()
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error") == "no more than that"


def test_a_server_that_has_ended_is_said(pages, url):
    page = pages(url)
    page.context.set_offline(True)
    page.keyboard.press("n")
    page.wait_for_selector("#error:not([hidden])")
    assert "still running" in page.inner_text("#error")
    assert all("ERR_INTERNET_DISCONNECTED" in line for line in pages.complaints)
    pages.complaints.clear()


def test_keys_are_shown_and_focus_can_be_seen(pages, url):
    page = pages(url)
    assert page.evaluate("document.activeElement.id") == "compare"
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("n")  # not while it is open
    page.keyboard.press("Escape")
    assert page.is_hidden("dialog") and page.inner_text("#place") == "1 of 4"
    idle = page.locator("#sliding").screenshot()
    focused = set()
    for _ in range(8):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement.id || document.activeElement.textContent, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        focused.add(name)
        if name == "slider":  # the outline is its thumb's
            assert page.locator("#sliding").screenshot() != idle
        elif page.evaluate("document.activeElement !== document.body"):
            assert outline == "auto" or outline == "solid", name
    assert {"slider", "next", "help", "a.png", "b.png"} <= focused
    page.keyboard.press("f")
    assert page.evaluate("document.activeElement.id") == "compare"
    for control in page.locator("button, input, .tile canvas, [role=application]").all():
        assert control.evaluate("e => e.ariaLabel || e.labels?.length || e.textContent.trim()")


def contrast(page, selector, background="body"):
    """Of the text of `selector`, as WCAG has it."""
    light = []
    for element, what in ((selector, "color"), (background, "backgroundColor")):
        text = page.evaluate(f"getComputedStyle(document.querySelector('{element}')).{what}")
        rgb = np.array([float(part) for part in text[4:-1].split(",")]) / 255
        linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        light.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(light) + 0.05) / (min(light) + 0.05), light[1]


def test_text_can_be_read_in_light_and_dark(pages, url):
    page = pages(url)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for selector in ("h1", "h2", ".note", "th", "td", "#error", "#place"):
            ratio, paper = contrast(page, selector)
            assert ratio >= 4.5, selector
            assert (paper > 0.9) if scheme == "light" else (paper < 0.05)


def test_nothing_is_cut_off_in_any_window(pages, url):
    page = pages(url, (320, 640))
    assert page.evaluate("scrollY") == 0
    for width, height in ((320, 640), (640, 400), (1920, 1080)):  # the second is 1280 x 800 at 200 %
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        box = page.locator("#compare").bounding_box()
        assert box["width"] >= 280 and box["height"] <= height
        page.keyboard.press("f")  # brings it into view
        for patch in ((2, 3), (5, 12)):
            click_patch(page, "#compare", *patch)
            assert chosen(page) == patch


def test_the_token_leaves_the_address_and_others_are_shut_out(pages, browser, tmp_path):
    def make(path, progress):
        raise ValueError("seen")

    with serving(Session([tmp_path / "x.png"], make, lambda path, error: str(error)), "secret") as url:
        page = pages(url, wait="#error:not([hidden])")
        assert page.inner_text("#error") == "seen" and "secret" not in page.url
        assert page.evaluate("document.cookie") == ""  # HttpOnly
        page.reload()
        page.wait_for_selector("#error:not([hidden])")
        with contextlib.closing(browser.new_context()) as stranger:
            assert stranger.request.get(url.partition("?")[0]).status == 403
