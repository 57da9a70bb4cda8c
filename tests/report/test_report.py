"""The page as a whole: well formed, self-contained, complete for a complete run and patient with an incomplete one."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_run import CLASSES, METRICS, FakeClassifier, FakeSegmenter, write_data, write_run

from gwsss_fast.errors import GwsssError
from gwsss_fast.report import build_report, images, plots

SECTIONS = (
    "configuration",
    "classifier",
    "sweep",
    "groups",
    "attention",
    "map_cases",
    "segmenter",
    "classes",
    "confusion",
    "segmentation_cases",
    "times",
)
NOTHING = "\u2013"  # shown where there is no number
VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADING = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "formaction"}


class Page(HTMLParser):
    """Checks that elements close in order; collects what the tests ask for, section by section."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.section = ""
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.values: dict[str, list[tuple[float, str]]] = {}
        self.notes: dict[str, str] = {}
        self.text: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.tags: dict[str, list[str]] = {}
        self._value: str | None = None
        self._note = False
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = found["id"] or ""
        self.ids += [found["id"] or ""] if "id" in found else []
        self.loads += [value or "" for key, value in attrs if key in LOADING]
        self.tags.setdefault(self.section, []).append(tag)
        if tag == "data":
            self._value = found["value"]
        self._note = tag == "p" and found.get("class") == "note" and "noscript" not in self.open
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th") and "tr" in self.open:
            self.rows[self.section][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> does not close what is open"
        self._note = False
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.text[self.section] = self.text.get(self.section, "") + data
        if self._value is not None:
            self.values.setdefault(self.section, []).append((float(self._value), data.strip()))
            self._value = None
        if self._note:
            self.notes[self.section] = data.strip()
        if "td" in self.open or "th" in self.open:
            self.rows[self.section][-1][-1] += data.strip()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    write_data(root)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "a run & <more>", data)


def report(folder: Path) -> str:
    path = build_report(folder, load_classifier=lambda path: FakeClassifier(), load_segmenter=lambda p: FakeSegmenter())
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(finished: Path) -> str:
    return report(finished)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_every_section_is_there_without_a_note(page: Page) -> None:
    assert page.notes == {}
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    for name in SECTIONS:
        assert {"svg", "img", "table"} & set(page.tags[name]), f"{name} shows nothing"


def test_element_names_are_unique_and_links_lead_somewhere(text: str, page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    inside = {load[1:] for load in page.loads if load.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert inside <= set(page.ids)


def test_nothing_is_loaded_from_elsewhere(text: str, page: Page) -> None:
    assert {load.partition(":")[0] for load in page.loads if not load.startswith("#")} == {"data"}
    assert "://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_numbers_are_those_of_the_metrics(page: Page) -> None:
    cam, pseudo, segmentation = METRICS["cam"], METRICS["pseudo"], METRICS["segmentation"]
    shown = page.values[""]
    assert [value for value, _ in shown] == [
        cam["initial"]["miou"],
        cam["graph"]["miou"],
        cam["ensemble"]["miou"],
        pseudo["miou"],
        pseudo["coverage"],
        segmentation["miou"],
    ]
    assert [written for _, written in shown] == ["41.2", "44.6", "46.9", "51.0", "93.5", "58.3"]
    assert [value for value, _ in page.values["classes"]] == [88.12, 55.55, 31.38, 58.349]
    assert [row[:2] for row in page.rows["classes"][1:]] == [
        ["background", "88.1%"],
        ["disc", "55.5%"],
        ["square <&>", "31.4%"],
        ["bar $x$", NOTHING],
        ["mean", "58.3%"],
    ]
    assert [row[0] for row in page.rows["sweep"][1:]] == [
        "initial",
        "graph",
        "ensemble",
        "ensemble on val, true tags",
        "ensemble on val, predicted tags",
    ]
    swept = [value for value, _ in page.values["sweep"]]
    assert swept == [41.234, 0.03, 44.567, 0.03, 46.891, 0.03, 43.5, 0.02, 42.25, 0.01]
    assert "5 min 20 s" in page.text["times"]


def test_the_confusion_matrix_is_counted_from_the_predictions(page: Page, finished: Path, data: Path) -> None:
    counts = np.zeros((4, 4), dtype=np.int64)
    for name in (data / "ImageSets/Segmentation/val.txt").read_text().split():
        truth = np.asarray(Image.open(data / "SegmentationClass" / f"{name}.png"))
        predicted = np.asarray(Image.open(finished / "predictions" / f"{name}.png"))
        for true in range(4):
            for taken in range(4):
                counts[true, taken] += int(((truth == true) & (predicted == taken)).sum())
    header, *rows = page.rows["confusion"]
    assert header[1:] == ["background", *CLASSES] == [row[0] for row in rows]
    for row, count in zip(rows, counts, strict=True):
        assert [float(cell or 0) for cell in row[1:]] == pytest.approx(100 * count / count.sum(), abs=0.51)


def test_names_from_outside_are_escaped(text: str, page: Page) -> None:
    assert "a run & <more>" in page.text[""]
    assert "<more>" not in text
    assert "random <weights>" in page.text["configuration"]
    assert "<weights>" not in text


def test_the_same_run_gives_the_same_file(finished: Path, text: str) -> None:
    assert report(finished) == text


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty plots: drawing takes longest, and what is left out does not depend on it."""
    monkeypatch.setattr(plots, "_svg", lambda draw, size, salt: "<svg></svg>")


REMOVALS = {
    "config.yaml": {"configuration": False, "groups": True, "attention": True, "confusion": True},
    "metrics.json": {"sweep": True, "classes": True, "times": True, "map_cases": True, "groups": False},
    "logs": {"classifier": True, "segmenter": True, "sweep": False},
    "cams": {"map_cases": True, "groups": False, "segmentation_cases": False},
    "pseudo": {"groups": False},
    "predictions": {"confusion": True, "segmentation_cases": True, "groups": False},
    "classifier": {"attention": True, "groups": False},
    "segmenter": {"groups": False},
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("removed", REMOVALS)
def test_a_missing_part_is_left_out_with_a_note(finished: Path, tmp_path: Path, removed: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(report(folder))
    for section, missing in REMOVALS[removed].items():
        assert (section in page.notes) == missing, (section, page.notes)
    assert all(note.startswith("Not shown: ") for section, note in page.notes.items() if section)


@pytest.mark.usefixtures("undrawn")
def test_pictures_that_were_not_stored_are_named(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "pseudo")
    shutil.rmtree(folder / "segmenter")
    assert "Not stored: pseudo label, prediction." in Page(report(folder)).text["groups"]


@pytest.mark.usefixtures("undrawn")
def test_data_without_masks(finished: Path, data: Path, tmp_path: Path) -> None:
    bare = tmp_path / "set"
    shutil.copytree(data, bare)
    labels = {}
    for mask in (bare / "SegmentationClass").iterdir():
        present = np.isin(np.arange(1, 4), np.asarray(Image.open(mask)))
        labels[mask.stem] = present.astype(np.uint8)
        mask.unlink()
    np.save(bare / "cls_labels.npy", np.array(labels, dtype=object), allow_pickle=True)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    config = (folder / "config.yaml").read_text().replace(str(data), str(bare))
    (folder / "config.yaml").write_text(config)
    page = Page(report(folder))
    assert set(page.notes) == {"map_cases", "confusion", "segmentation_cases"}
    assert "Not stored: ground truth." in page.text["groups"]


def test_an_empty_folder(tmp_path: Path) -> None:
    page = Page(build_report(tmp_path).read_text(encoding="utf-8"))
    assert set(page.notes) == {"", *SECTIONS}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("file", "content", "section"),
    [
        ("metrics.json", b"{", "sweep"),
        ("metrics.json", b"[1, 2]", "sweep"),
        ("metrics.json", b'{"seconds": {"cam": "long"}}', "times"),
        ("metrics.json", b'{"cam": {"initial": {"curve": [1, 2]}}}', "sweep"),
        ("config.yaml", b"a: [", "groups"),
        ("config.yaml", b"\xff\xfe", "configuration"),
        ("logs/classifier.csv", b"step,loss\n", "classifier"),
        ("logs/classifier.csv", b"step,loss\n1,high\n", "classifier"),
        ("cams/2030_000003.npy", b"not an array", "map_cases"),
        ("predictions/2030_000010.png", b"not a picture", "confusion"),
    ],
)
def test_a_damaged_file_costs_its_section_only(
    finished: Path, tmp_path: Path, file: str, content: bytes, section: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / file).write_bytes(content)
    page = Page(report(folder))
    assert section in page.notes
    assert len(page.notes) < len(SECTIONS)


def test_a_class_that_was_never_seen(finished: Path, tmp_path: Path) -> None:
    """Scores that could not be computed are null in the metrics."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["segmentation"]["miou"] = None
    metrics["cam"]["graph"] = {"miou": None, "best_threshold": None, "curve": [None, None]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = Page(report(folder))
    assert page.notes == {}
    assert page.rows["sweep"][2] == ["graph", NOTHING, NOTHING]


@pytest.mark.usefixtures("undrawn")
def test_the_pictures_are_bounded(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.setattr(images.ImageBudget.__init__, "__defaults__", (20_000, 0, 0))
    written = report(folder)
    assert sum(map(len, re.findall(r"data:image/[^\"]+", written))) <= 20_000
    page = Page(written)
    assert "pictures were left out" in page.text[""]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(GwsssError, match=r"nowhere is not a folder"):
        build_report(tmp_path / "nowhere")
