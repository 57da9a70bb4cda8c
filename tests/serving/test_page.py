"""The page in a real browser: a click, a drop, keys, and what is seen."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.serving.clients import segment
from tests.serving.devtools import Tab, chromium, find_chromium, wait

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed")

Served = tuple[subprocess.Popen[str], int]
DONE = "!document.querySelector('{0} .result').hidden && !document.querySelector('{0}').hasAttribute('aria-busy')"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("chromium")) as tab:
        tab.call("Emulation.setDeviceMetricsOverride", width=1100, height=800, deviceScaleFactor=1, mobile=False)
        yield tab


@pytest.fixture
def page(tab: Tab, served: Served) -> Iterator[Tab]:
    """The page, freshly loaded; afterwards it has complained of nothing and asked nobody else for anything."""
    tab.events.clear()
    own = f"http://127.0.0.1:{served[1]}/"
    tab.open(own)
    yield tab
    tab.evaluate("0")
    errors = [e for e in tab.events if e.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not [e for e in errors if "400" not in str(e) and "415" not in str(e)], errors
    asked = [e["params"]["request"]["url"] for e in tab.events if e.get("method") == "Network.requestWillBeSent"]
    assert all(url.startswith((own, "blob:" + own, "data:")) for url in asked), asked


@pytest.fixture
def photos(finished: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    """Larger copies, so that there is something to see; one with a name that must not become a part of the page."""
    paths = []
    for number, path in enumerate(sorted((finished[0] / "JPEGImages").iterdir())[:3]):
        with Image.open(path) as image:
            paths.append(tmp_path / ("photo <img src=x>.png" if number == 2 else f"photo {number}.png"))
            image.resize((240, 180)).save(paths[-1])
    return paths


def choose(page: Tab, section: str, *files: Path) -> None:
    """Click on the field, and answer the browser's dialogue."""
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.click(f"{section} .drop")
    asked = page.event("Page.fileChooserOpened")
    assert asked["mode"] == ("selectSingle" if section == "#single" else "selectMultiple")
    page.call("DOM.setFileInputFiles", files=[str(file) for file in files], backendNodeId=asked["backendNodeId"])


def pixels(path: Path, page: Tab, selector: str) -> np.ndarray:
    """What the screen shows of an element."""
    page.screenshot(path)
    box = page.evaluate(
        f"(() => {{ const r = document.querySelector('{selector}').getBoundingClientRect();"
        "return [r.x + scrollX, r.y + scrollY, r.right + scrollX, r.bottom + scrollY] })()"
    )
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").crop(tuple(map(round, box)))).astype(int)


def test_a_click_an_image_a_mask(page: Tab, served: Served, photos: list[Path], tmp_path: Path) -> None:
    choose(page, "#single", photos[0])
    wait(lambda: page.evaluate(DONE.format("#single")))
    answer = segment(served[1], photos[0].read_bytes()).json
    rows = page.evaluate("[...document.querySelectorAll('#single tbody tr')].map(row => row.cells[0].textContent)")
    assert rows == [item["class"] for item in answer["objects"]] or rows == ["No class was found."]
    assert "photo 0.png" in page.evaluate("document.querySelector('#single .status').textContent")
    shown = pixels(tmp_path / "shown.png", page, "#single .view")
    page.evaluate("document.querySelector('#single input[type=range]').focus()")
    page.press("Home", 36)
    assert page.evaluate("document.querySelector('#single output').textContent") == "0 %"
    plain = pixels(tmp_path / "plain.png", page, "#single .view")
    page.press("End", 35)
    covered = pixels(tmp_path / "covered.png", page, "#single .view")
    with Image.open(photos[0]) as image:
        original = np.asarray(image.resize(plain.shape[1::-1])).astype(int)
    assert np.abs(plain - original).mean() < 6
    assert answer["objects"]
    moved = (np.abs(covered - plain).max(2) > 24).mean()
    assert moved == pytest.approx(sum(item["share"] for item in answer["objects"]), abs=0.08)
    assert np.abs(shown - (0.6 * covered + 0.4 * plain)).mean() < 2


def test_the_mask_is_downloaded(page: Tab, served: Served, photos: list[Path], tmp_path: Path) -> None:
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    page.drop("#single .drop", photos[1])
    wait(lambda: page.evaluate(DONE.format("#single")))
    page.click("#single .button")
    file = tmp_path / "downloads" / "photo 1_mask.png"
    wait(file.is_file)
    with Image.open(file) as mask:
        assert (mask.mode, mask.size) == ("P", (240, 180))


def test_a_group_by_class(page: Tab, photos: list[Path], tmp_path: Path) -> None:
    choose(page, "#group", *photos)
    wait(lambda: page.evaluate(DONE.format("#group")))
    strips = page.evaluate(
        "[...document.querySelectorAll('.strip')].map("
        "strip => [...strip.querySelectorAll('figcaption')].map(caption => caption.textContent))"
    )
    assert strips
    assert all(captions[1:] == ["initial", "graph", "ensemble"] for captions in strips)
    assert {captions[0] for captions in strips} == {path.name for path in photos}
    widths = "[...document.querySelectorAll('.strip img')].map(map => map.naturalWidth)"
    wait(lambda: set(page.evaluate(widths)) == {240})  # they may still be decoded


def test_problems_are_told(page: Tab, photos: list[Path], tmp_path: Path) -> None:
    words = tmp_path / "words.jpg"
    words.write_text("no image")
    status = "document.querySelector('{} .status.bad')?.textContent"
    page.drop("#single .drop", words)
    assert "not a JPEG" in wait(lambda: page.evaluate(status.format("#single")))
    page.drop("#single .drop", *photos)
    wait(lambda: page.evaluate(status.format("#single")) == "Choose one image.")
    page.drop("#group .drop", photos[0])
    assert wait(lambda: page.evaluate(status.format("#group"))) == "Choose 2 to 8 images."


def test_the_keyboard_reaches_everything(page: Tab, photos: list[Path]) -> None:
    page.drop("#single .drop", photos[0])
    wait(lambda: page.evaluate(DONE.format("#single")))
    page.evaluate("document.querySelector('summary').focus()")
    reached = []
    for _ in range(4):
        page.press("Tab", 9)
        reached.append(page.evaluate("document.activeElement.type || document.activeElement.className"))
    assert reached == ["file", "range", "button", "file"]
