"""The paper's tables as rows of presets, its numbers, and our scores beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from gwsss_fast.config import Config, differences, get_field
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation.aggregate import Aggregate, aggregate, direction

FULL = "full"
Changes = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Measure:
    """A column of a table: where its number stands in what `stage` leaves, for the maps of a readout {readout}."""

    title: str
    stage: str
    file: str = "metrics.json"
    keys: tuple[str, ...] = ()
    needs: str = ""


MEASURES = {
    "maps": Measure("maps", "cam", keys=("cam", "{readout}", "miou")),
    "maps-resnet38": Measure("maps, ResNet-38", "cam", keys=("cam", "{readout}", "miou")),
    "val": Measure("val", "evaluate", keys=("segmentation", "miou")),
    "test": Measure(
        "test",
        "",
        needs="the score of PASCAL VOC's server; `evaluate --run DIR --voc-results NEW` writes what it takes",
    ),
    "cls": Measure("Top-1 Cls", "localize", "localization/metrics.json", ("top1_classification",)),
    "loc": Measure("Top-1 Loc", "localize", "localization/metrics.json", ("top1_localization",)),
}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    paper: measure -> its number, None where the paper gives none. shares: the row whose classifier and maps it reads in
    another way. published: fields of the configuration where the data is not the embedded set. layout: of the data set
    without which the row means nothing.
    """

    name: str
    label: str
    preset: str
    paper: Mapping[str, float | None]
    shares: str | None = None
    published: Changes = ()
    layout: str | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper; effects are differences to the row `base`."""

    number: int
    title: str
    rows: tuple[Row, ...]
    base: str = FULL


_RESNET101: Changes = (("segmenter.body", "resnet101"),)
_NEEDS = {"voc": "PASCAL VOC 2012: --data VOCdevkit", "coco": "COCO 2014: --data coco2014"}


def _row(name: str, label: str, val: float, shares: str | None = None) -> Row:
    """A row of Table IV: its network is ResNet-101, and it says nothing of the maps."""
    return Row(name, label, f"ablation/{name}", {"maps": None, "val": val}, shares, _RESNET101)


def _maps_row(name: str, label: str, vgg16: float, resnet38: float, val: float) -> Row:
    paper = {"maps": vgg16, "maps-resnet38": resnet38, "val": val}
    return Row(name, label, f"ablation/{name}", paper, None, _RESNET101)


TABLES = {
    1: Table(
        1,
        "PASCAL VOC 2012",
        (
            Row("vgg16", "ours, VGG16", "ablation/full", {"val": 63.7, "test": 64.1}, FULL, (), "voc"),
            Row(FULL, "ours, ResNet-101", "ablation/full", {"val": 68.7, "test": 69.0}, None, _RESNET101),
        ),
    ),
    2: Table(2, "COCO", (Row("coco", "ours, VGG16", "ablation/full", {"val": 28.7}, layout="coco"),), "coco"),
    3: Table(
        3,
        "CUB-200-2011",
        (
            Row(
                "no-group",
                "CAM (the same classifier on single images)",
                "ablation/no-group",
                {"cls": 69.95, "loc": 37.05},
            ),
            Row(FULL, "ours", "ablation/full", {"cls": 76.44, "loc": 60.18}),
        ),
    ),
    4: Table(
        4,
        "diagnostic experiments",
        (
            _row(FULL, "full model: T = 3, K = 4, 0.8, 0.7", 68.7),
            _row("k-2", "K = 2", 66.1),
            _row("k-3", "K = 3", 68.6),
            _row("k-5", "K = 5", 68.3),
            _row("k-6", "K = 6", 68.1),
            _row("t-2", "T = 2", 68.3),
            _row("t-4", "T = 4", 68.5),
            _row("t-5", "T = 5", 68.5),
            _row("dropout-0.8-0.9", "dropout 0.8, 0.9", 68.5),
            _row("dropout-0.8-0.5", "dropout 0.8, 0.5", 68.2),
            _row("dropout-0.6-0.7", "dropout 0.6, 0.7", 67.3),
            _row("dropout-0.4-0.7", "dropout 0.4, 0.7", 64.1),
            _row("no-dropout", "without dropout", 68.2),
            _row("no-intermediate", "without intermediate supervision", 68.4),
            _row("no-edge", "without edge-aware supervision", 68.2),
            _row("intermediate-only", "intermediate output only", 64.6, FULL),
            _row("graph-only", "graph output only", 68.3, FULL),
            _row("random", "random sampling", 67.1),
            _row("one-common", "one-common sampling", 68.3),
        ),
    ),
    5: Table(
        5,
        "maps and segmentation",
        (
            _maps_row("no-group", "without group-wise learning", 56.3, 58.7, 64.5),
            _maps_row("no-dropout", "without graph dropout", 61.9, 64.9, 68.2),
            _maps_row(FULL, "full model", 62.9, 65.7, 68.7),
        ),
    ),
}


@dataclass(frozen=True)
class Line:
    """One number of the paper beside ours. reason: why there is none of ours, or not of every seed.

    effect: our difference to the table's base, over the seeds that both have; wanted: the paper's; verdict: direction.
    """

    row: Row
    measure: str
    paper: float | None
    seeds: tuple[int, ...] = ()
    ours: Aggregate | None = None
    effect: Aggregate | None = None
    wanted: float | None = None
    verdict: str = ""
    reason: str = ""


def choose_rows(table: Table, names: Sequence[str]) -> tuple[Row, ...]:
    """The rows named, all without names, in the table's order. Raises GwsssError for a name that is none."""
    known = [row.name for row in table.rows]
    for name in names:
        if name not in known:
            raise GwsssError(f"table {table.number} has no row {name!r}; it has {', '.join(known)}")
    return tuple(row for row in table.rows if not names or row.name in names)


def lacking(row: Row, measure: str, layout: str, resnet38: str | None, maps_only: bool) -> str:
    """Why the number is not worked out here; empty where it is."""
    if row.layout not in (None, layout):
        return f"needs {_NEEDS[str(row.layout)]}"
    if MEASURES[measure].needs:
        return f"needs {MEASURES[measure].needs}"
    if measure == "maps-resnet38" and (layout == "embedded" or resnet38 is None):
        return "needs real images (--data DIR) and pretrained ResNet-38 weights: --resnet38-weights FILE"
    if maps_only and MEASURES[measure].stage == "evaluate":
        return "left out by --maps-only"
    return ""


def configure(base: Config, row: Config, quick: Config) -> Config:
    """`base` with what a row's preset changes on the preset it extends; of a tuple, only the numbers that differ."""
    for key, (old, new) in differences(quick, row).items():
        own = get_field(base, key)
        if isinstance(new, tuple) and isinstance(own, tuple) and len(new) == len(old) == len(own):
            new = tuple(b if b != a else c for a, b, c in zip(old, new, own, strict=True))
        base = with_field(base, key, new)
    return base


def with_field(config: Any, key: str, value: Any) -> Any:
    """`config` with the field of a dotted key replaced."""
    name, _, rest = key.partition(".")
    if not is_dataclass(config) or name not in {field.name for field in fields(config)}:
        raise GwsssError(f"the configuration has no field {key}")
    return replace(config, **{name: with_field(getattr(config, name), rest, value) if rest else value})  # type: ignore[type-var]


def read_score(folder: Path, measure: str, readout: str) -> float | None:
    """The number that a run has left, None where it has not come so far."""
    path = folder / MEASURES[measure].file
    if not path.is_file():
        return None
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        stage = MEASURES[measure].stage
        if stage != "localize" and (stage not in value.get("seconds", {}) or stage in value.get("outdated", [])):
            return None
        for key in MEASURES[measure].keys:
            value = value[key.format(readout=readout)]
        return float(value["score"] if isinstance(value, dict) else value)
    except (OSError, ValueError, TypeError) as error:
        raise GwsssError(f"{path} is damaged: {error}") from error
    except KeyError:
        return None


def compare(
    table: Table,
    scores: Mapping[tuple[str, str], Mapping[int, float]],
    reasons: Mapping[tuple[str, str], str],
    rows: Sequence[Row],
) -> list[Line]:
    """The lines of `rows` from scores by (row, measure) and seed; reasons for what has none, or not all."""
    lines = []
    base = next(row for row in table.rows if row.name == table.base)
    for row in rows:
        for measure, paper in row.paper.items():
            found = scores.get((row.name, measure), {})
            line = Line(row, measure, paper, reason=reasons.get((row.name, measure), ""))
            if found:
                line = replace(line, seeds=tuple(sorted(found)), ours=aggregate([found[x] for x in sorted(found)]))
            # Where the paper has no score of the maps, their effect is held against that on the segmentation.
            shown = measure if paper is not None else "val"
            own, full = row.paper.get(shown), base.paper.get(shown)
            if row.name != table.base and own is not None and full is not None:
                line = replace(line, wanted=round(own - full, 2))
                other = scores.get((base.name, measure), {})
                pairs = [found[seed] - other[seed] for seed in sorted(found) if seed in other]
                if pairs:
                    line = replace(line, effect=aggregate(pairs), verdict=direction(pairs, own - full))
            lines.append(line)
    return lines
