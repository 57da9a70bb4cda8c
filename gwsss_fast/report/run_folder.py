"""What a finished (or half-finished) run left in its folder, read piece by piece; a missing piece is `Missing`."""

from __future__ import annotations

import csv
import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gwsss_fast.data.dataset import DataSet, Record, Split, open_dataset
from gwsss_fast.data.images import read_mask
from gwsss_fast.data.map_files import read_map_file
from gwsss_fast.errors import GwsssError

Log = dict[str, np.ndarray]


class Missing(GwsssError):
    """A part of the run that the report would show is not there; the message is the note shown instead."""


@dataclass(frozen=True)
class Maps:
    """The class activation maps of one image: `keys` (n,) foreground classes; each map array (n, H, W) in [0, 1]."""

    keys: np.ndarray
    readouts: dict[str, np.ndarray]  # those present among initial, graph, ensemble

    def of_class(self, readout: str, label: int) -> np.ndarray | None:
        """The (H, W) map of foreground class `label`, or None when the image has no such map."""
        found = np.flatnonzero(self.keys == label)
        return None if readout not in self.readouts or not len(found) else self.readouts[readout][found[0]]


@dataclass
class RunFolder:
    """Lazy access to OUTPUT/*. Each property raises Missing when its file is not there, GwsssError when unreadable."""

    path: Path
    opened: DataSet | None = None  # the run's data set, where the caller has it open

    @cached_property
    def config_text(self) -> str:
        """OUTPUT/config.yaml as it stands."""
        return _text(self.path / "config.yaml", "the run's configuration was not stored")

    @cached_property
    def config(self) -> dict[str, Any]:
        """OUTPUT/config.yaml, parsed."""
        try:
            value = yaml.safe_load(self.config_text)
        except yaml.YAMLError as error:
            raise GwsssError(f"{self.path / 'config.yaml'} is not valid YAML: {error}") from error
        return value if isinstance(value, dict) else {}

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """OUTPUT/metrics.json, parsed."""
        file = self.path / "metrics.json"
        try:
            value = json.loads(_text(file, "no scores were stored (metrics.json)"))
        except json.JSONDecodeError as error:
            raise GwsssError(f"{file} is not valid JSON: {error}") from error
        return value if isinstance(value, dict) else {}

    def metric(self, *keys: str) -> Any:
        """`metrics[k0][k1]...`, or None when any of it is missing."""
        try:
            value: Any = self.metrics
        except Missing:
            return None
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def option(self, *keys: str, default: Any = None) -> Any:
        """A field of the stored configuration, `default` when it is missing."""
        try:
            value: Any = self.config
        except Missing:
            return default
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    def log(self, name: str) -> Log:
        """Columns of OUTPUT/logs/NAME.csv as float arrays (n,); empty or non-numeric cells are nan."""
        file = self.path / "logs" / f"{name}.csv"
        rows = list(csv.DictReader(_text(file, f"no log of the {name} (logs/{name}.csv)").splitlines()))
        if not rows:
            raise Missing(f"the log of the {name} is empty")
        return {key: np.array([_number(row.get(key)) for row in rows]) for key in rows[0] if key}

    @cached_property
    def data_set(self) -> DataSet:
        """The data set that the run was trained on."""
        if self.opened is not None:
            return self.opened
        section = self.option("data", default={})
        accepted = inspect.signature(open_dataset).parameters
        options = {key: value for key, value in section.items() if key in accepted and value is not None}
        if "root" not in options:
            raise Missing("the stored configuration names no data set")
        return open_dataset(**options)

    @property
    def classes(self) -> tuple[str, ...]:
        """Foreground class names."""
        return self.data_set.classes

    @property
    def map_split(self) -> Split:
        """The split whose maps are looked at: the one with masks when there is one, else the training split."""
        return self.data_set.scoring or self.data_set.training

    def maps(self, record: Record) -> Maps:
        """OUTPUT/cams/ID.npy."""
        file = self.path / "cams" / f"{record.id}.npy"
        if not file.is_file():
            raise Missing(f"no maps of {record.id} (cams/{record.id}.npy)")
        stored = read_map_file(file)
        return Maps(stored.keys, stored.maps)

    def has_maps(self, record: Record) -> bool:
        """Whether maps of this image were stored."""
        return (self.path / "cams" / f"{record.id}.npy").is_file()

    def label_file(self, folder: str, record: Record) -> Path:
        """Where a label picture of this image would be: `folder` is "pseudo" or "predictions"."""
        return self.path / folder / f"{record.id}.png"

    def label(self, folder: str, record: Record) -> np.ndarray:
        """A stored label picture, (H, W) uint8: 0 background, 1.. classes, 255 ignored."""
        file = self.label_file(folder, record)
        if not file.is_file():
            raise Missing(f"no {folder}/{record.id}.png")
        return read_mask(file, len(self.classes))

    def truth(self, record: Record) -> np.ndarray:
        """The ground-truth mask, (H, W) uint8."""
        if record.mask is None:
            raise Missing(f"{record.id} has no mask")
        return read_mask(record.mask, len(self.classes))


def _text(file: Path, note: str) -> str:
    if not file.is_file():
        raise Missing(note)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GwsssError(f"cannot read {file}: {error}") from error


def _number(text: str | None) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        return float("nan")
