"""OUTPUT/report.html: one file that shows a whole run, with nothing loaded from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import torch

from gwsss_fast.data.class_names import VOC_CLASSES
from gwsss_fast.data.dataset import DataSet
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.errors import GwsssError
from gwsss_fast.files import write_text
from gwsss_fast.report import attention, cases, curves, gallery, scores
from gwsss_fast.report.images import ImageBudget
from gwsss_fast.report.run_folder import Missing, RunFolder
from gwsss_fast.report.segmenter import predictor

Result = TypeVar("Result")
Loader = Callable[[Path], torch.nn.Module]
log = logging.getLogger(__name__)

# What a broken or foreign run folder can raise while one section is read; the section is left out with the reason.
SECTION_ERRORS = (GwsssError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Section:
    """One part of the page: either `content` for its template block or a `note` that says why there is none."""

    key: str
    title: str
    content: dict[str, Any] | None
    note: str = ""


def build_report(
    run_dir: str | Path,
    *,
    data: DataSet | None = None,
    load_classifier: Loader | None = None,
    load_segmenter: Loader | None = None,
) -> Path:
    """Write OUTPUT/report.html from what the run left in its folder `run_dir`, and give its path.

    A part whose files are missing or unreadable is left out with a short note. `data` is the run's data set; without
    it the one named in its configuration is opened. The two loaders turn a checkpoint into its model: the classifier
    for the co-attention panel, the segmentation network for predictions of images that have none stored. Without a
    loader those parts are left out too.

    Raises GwsssError when `run_dir` is no folder or the report cannot be written.
    """
    run = RunFolder(Path(run_dir), data)
    if not run.path.is_dir():
        raise GwsssError(f"{run.path} is not a folder; give the folder of a run")
    budget = ImageBudget()
    sections = [_section(key, title, part) for key, title, part in _parts(run, budget, load_classifier, load_segmenter)]
    page = template("report.html").render(
        name=run.path.resolve().name,
        headline=_readable(lambda: headline(run)) or [],
        facts=_readable(lambda: facts(run)) or [],
        legend=_readable(lambda: legend(run)) or [],
        paper=_readable(lambda: tuple(run.classes) == VOC_CLASSES) or False,
        sections={section.key: section for section in sections},
        dropped=budget.dropped,
    )
    path = run.path / "report.html"
    write_text(path, page)
    return path


def headline(run: RunFolder) -> list[dict[str, Any]]:
    """The numbers at the top: name, value (as in metrics.json), unit and a remark."""
    wanted = [
        ("initial maps", ("cam", "initial", "miou"), "mIoU"),
        ("graph maps", ("cam", "graph", "miou"), "mIoU"),
        ("ensembled maps", ("cam", "ensemble", "miou"), "mIoU"),
        ("pseudo labels", ("pseudo", "miou"), "mIoU"),
        ("pseudo labels", ("pseudo", "coverage"), "of the pixels labelled"),
        ("segmentation on val", ("segmentation", "miou"), "mIoU"),
    ]
    found = [{"name": name, "value": run.metric(*keys), "unit": unit} for name, keys, unit in wanted]
    return [item for item in found if isinstance(item["value"], (int, float))]


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """What the run was, in a line: data set, backbone, steps, seed, device."""
    wanted = [
        ("data", run.option("data", "root")),
        ("backbone", run.option("model", "backbone")),
        ("group size", run.option("classifier", "group_size")),
        ("seed", run.option("seed")),
        ("device", run.metric("environment", "device") or run.option("device")),
        ("time", _readable(lambda: curves.duration(sum(curves.stage_seconds(run).values())))),
    ]
    return [(name, str(value)) for name, value in wanted if value is not None]


def _readable(read: Callable[[], Result]) -> Result | None:
    """What `read` gives, or None when the run lacks it or it is damaged; its section has the reason."""
    try:
        return read()
    except SECTION_ERRORS:
        return None


def _parts(
    run: RunFolder, budget: ImageBudget, load_classifier: Loader | None, load_segmenter: Loader | None
) -> list[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """Sections in the order in which they may use the budget for pictures; the template has its own order."""

    def groups() -> dict[str, Any]:
        return gallery.group_gallery(run, budget, predictor(run, load_segmenter))

    def panels() -> dict[str, Any]:
        return attention.attention_panels(run, budget, _classifier(run, load_classifier))

    return [
        ("configuration", "Configuration and environment", lambda: configuration(run)),
        ("classifier", "Training the classifier", lambda: curves.training_curves(run, "classifier")),
        ("segmenter", "Training the segmentation network", lambda: curves.training_curves(run, "segmenter")),
        ("sweep", "Class activation maps: threshold sweep", lambda: curves.threshold_sweep(run)),
        ("groups", "Sampled groups", groups),
        ("attention", "Co-attention", panels),
        ("classes", "Segmentation of each class", lambda: scores.class_table(run)),
        ("confusion", "Confusion of classes", lambda: scores.confusion_table(run)),
        ("map_cases", "Maps: best and worst images", lambda: cases.map_cases(run, budget)),
        ("segmentation_cases", "Segmentation: best and worst images", lambda: cases.segmentation_cases(run, budget)),
        ("times", "Time of each stage", lambda: curves.stage_times(run)),
    ]


def configuration(run: RunFolder) -> dict[str, Any]:
    """The stored YAML, and tables of the environment and of what the weights were initialised from."""
    tables = {}
    for title, key in (("Environment", "environment"), ("Weights initialised from", "initialised_from")):
        table = run.metric(key)
        if isinstance(table, dict) and table:
            tables[title] = _flat(table)
    try:
        text = run.config_text
    except Missing:
        if not tables:
            raise
        text = ""
    return {"yaml": text, "tables": tables}


def _flat(table: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _section(key: str, title: str, part: Callable[[], dict[str, Any]]) -> Section:
    try:
        return Section(key, title, part())
    except Missing as missing:
        return Section(key, title, None, str(missing))
    except SECTION_ERRORS as error:
        log.warning("report: %s left out: %s", title, error)
        return Section(key, title, None, str(error) if isinstance(error, GwsssError) else f"damaged files ({error!r})")


def _classifier(run: RunFolder, load: Loader | None) -> torch.nn.Module:
    checkpoint = run.path / "classifier" / "last.pt"
    if not checkpoint.is_file():
        raise Missing("the classifier was not stored (classifier/last.pt)")
    if load is None:
        raise Missing("the classifier was not loaded for this report")
    return load(checkpoint)


def legend(run: RunFolder) -> list[tuple[str, str]]:
    """Class names with their colours in label pictures."""
    names = ("background", *run.classes)
    colours = voc_palette()[: len(names)]
    return [(name, f"#{red:02x}{green:02x}{blue:02x}") for name, (red, green, blue) in zip(names, colours, strict=True)]


def template(name: str) -> jinja2.Template:
    """A page's template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
