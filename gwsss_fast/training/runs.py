"""A run's folder: its files, its metrics, and its data set."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from rich.console import Console

from gwsss_fast import distributed, files
from gwsss_fast.config import Config, DataConfig, to_yaml, write_config
from gwsss_fast.data.dataset import DataSet, Record, Split, open_dataset
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.checkpoint_folder import earlier_checkpoints
from gwsss_fast.training.checkpoints import is_whole
from gwsss_fast.training.logs import say

STAGES = ("classifier", "cam", "pseudo", "segmenter", "evaluate", "report")
TRAININGS = ("classifier", "segmenter")
_MERGED = ("seconds", "interrupted", "initialised_from")  # the other entries of metrics.json are replaced as a whole


@dataclass
class Run:
    """One run: where it lies, how it is configured, what it is trained on. checkpoint: a classifier from elsewhere."""

    folder: Path
    config: Config
    data: DataSet
    device: torch.device
    console: Console = field(default_factory=lambda: Console(stderr=True, quiet=not distributed.is_main()))
    checkpoint: Path | None = None

    @property
    def classifier_checkpoint(self) -> Path:
        """classifier/last.pt, or the checkpoint from elsewhere."""
        return self.checkpoint or self.folder / "classifier" / "last.pt"

    @property
    def segmenter_checkpoint(self) -> Path:
        """segmenter/last.pt."""
        return self.folder / "segmenter" / "last.pt"

    @property
    def map_progress(self) -> Path:
        """cams/progress.npz: how far this process has come in stage cam; only there while it is unfinished."""
        number = f"-{distributed.rank()}" if distributed.rank() else ""
        return self.folder / "cams" / f"progress{number}.npz"

    def map_progress_files(self) -> list[Path]:
        """The progress of all processes, that of process 0 first."""
        return sorted((self.folder / "cams").glob("progress*.npz"), key=lambda path: (len(path.name), path.name))

    def map_file(self, record: Record) -> Path:
        """cams/ID.npy."""
        return self.folder / "cams" / f"{record.id}.npy"

    def pseudo_file(self, record: Record) -> Path:
        """pseudo/ID.png."""
        return self.folder / "pseudo" / f"{record.id}.png"

    def prediction_file(self, record: Record) -> Path:
        """predictions/ID.png."""
        return self.folder / "predictions" / f"{record.id}.png"

    @cached_property
    def map_split(self) -> Split:
        """All images that get maps and pseudo labels: the training images, and those that score the maps."""
        records = {record.id: record for record in self.data.training.records}
        for record in self.data.scoring.records if self.data.scoring else ():
            records.setdefault(record.id, record)
        return Split("maps", self.data.classes, tuple(records.values()))

    @property
    def scored_validation(self) -> Split | None:
        """The validation images that have masks; None when none has."""
        split = self.data.validation
        known = [number for number, record in enumerate(split.records) if record.mask] if split is not None else []
        return split.subset(known) if split is not None and known else None

    def metrics(self) -> dict[str, Any]:
        """metrics.json, {} before it exists. Raises GwsssError when it is damaged."""
        path = self.folder / "metrics.json"
        if not path.is_file():
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GwsssError(f"{path} is damaged: {error}; remove it to score again") from error
        return value if isinstance(value, dict) else {}

    def add_metrics(self, **values: Any) -> None:
        """Merge `values` into metrics.json, in process 0."""

        def merge() -> None:
            metrics = self.metrics()
            for name, value in values.items():
                metrics[name] = {**metrics.get(name, {}), **value} if name in _MERGED else value
            self._write_metrics(metrics)

        distributed.on_main(merge)

    def _write_metrics(self, metrics: dict[str, Any]) -> None:
        seconds = metrics.get("seconds", {})
        metrics = {**metrics, "seconds": {name: seconds[name] for name in STAGES if name in seconds}}
        metrics = {name: value for name, value in metrics.items() if value not in ({}, [])}
        files.write_json(self.folder / "metrics.json", metrics)

    def begin(self, stage: str, resume: bool) -> None:
        """`_begin` in process 0."""
        distributed.on_main(lambda: self._begin(stage, resume))

    def _begin(self, stage: str, resume: bool) -> None:
        """Note that `stage` starts, with all it needs at hand, and write the configuration that it runs with.

        Until it ends it is not complete, and what later stages have made belongs to what it replaces. Without `resume`
        its own former output is outdated too, until `discard` or its end.
        """
        metrics = self.metrics()
        first = STAGES.index(stage) + (1 if resume else 0)
        begun = [name for name in STAGES[first:] if self.begun(name)]
        outdated = [name for name in STAGES if name in begun or name in metrics.get("outdated", [])]
        seconds = {name: value for name, value in metrics.get("seconds", {}).items() if name != stage}
        if outdated != metrics.get("outdated", []) or seconds != metrics.get("seconds", {}):
            self._write_metrics({**metrics, "outdated": outdated, "seconds": seconds})
        write_config(self.config, self.folder / "config.yaml")

    def discard(self, stage: str) -> None:
        """Remove what `stage` has made before, so that nothing of it can be taken for what it is about to make."""
        distributed.on_main(lambda: self._discard(stage))

    def _discard(self, stage: str) -> None:
        for path in [*self.expected_files(stage), *self._other_files(stage)]:
            path.unlink(missing_ok=True)
        outdated = self.metrics().get("outdated", [])
        if stage in outdated:
            self.add_metrics(outdated=[name for name in outdated if name != stage])

    def _other_files(self, stage: str) -> list[Path]:
        """What `stage` may leave besides."""
        if stage == "cam":
            return self.map_progress_files()
        if stage in TRAININGS:
            folder = self.folder / stage
            others = [folder / "best.pt", folder / "weights.safetensors", *folder.glob("*.damaged")]
            return [*earlier_checkpoints(folder / "last.pt"), *others]
        return []

    def begun(self, stage: str) -> bool:
        """Whether `stage` has left anything."""
        return stage in self.metrics().get("seconds", {}) or any(path.is_file() for path in self.expected_files(stage))

    def outdated(self, stage: str) -> bool:
        """Whether the output of `stage` was made from what has been replaced since."""
        return stage in self.metrics().get("outdated", [])

    def complete(self, stage: str) -> bool:
        """Whether `stage` ended well and all its files are still there."""
        return distributed.on_main(lambda: self._complete(stage))

    def _complete(self, stage: str) -> bool:
        if self.outdated(stage) or stage not in self.metrics().get("seconds", {}):
            return False
        expected = self.expected_files(stage)
        # A training whose last checkpoint is damaged goes on from the one before.
        return not missing_files(expected) and (stage not in TRAININGS or all(map(is_whole, expected)))

    def expected_files(self, stage: str) -> list[Path]:
        """The files that the complete `stage` leaves."""
        if stage == "classifier":
            return [self.classifier_checkpoint]
        if stage == "cam":
            return [self.map_file(record) for record in self.map_split.records]
        if stage == "pseudo":
            return [self.pseudo_file(record) for record in self.map_split.records]
        if stage == "segmenter":
            return [self.segmenter_checkpoint]
        if stage == "evaluate":
            return [self.prediction_file(record) for record in (self.data.validation or Split("", (), ())).records]
        return [self.folder / "report.html"]

    def note(self, text: str) -> None:
        """One line to the person at the terminal."""
        say(self.console, text)


def checkpoint_record(run: Run, initialised_from: dict[str, str]) -> dict[str, Any]:
    """What every checkpoint says of itself: configuration (YAML text), class names, origin of the weights, machine."""
    return {
        "config": to_yaml(run.config),
        "classes": list(run.data.classes),
        "environment": environment(run.device),
        "initialised_from": initialised_from,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and machine, as recorded in metrics.json."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("gwsss-fast")
    except PackageNotFoundError:
        own = "not installed"
    facts = {
        "gwsss_fast": own,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which no checkpoint may hold
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "processes": distributed.size(),
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def open_data(config: DataConfig) -> DataSet:
    """The configured data set, with the limits of trial runs. Raises GwsssError for whatever is wrong with it."""
    data = open_dataset(
        config.root,
        layout=config.layout,
        classes_file=config.classes_file,
        train_list=config.train_list,
        train_aug_list=config.train_aug_list,
        val_list=config.val_list,
        labels=config.labels,
        saliency=config.saliency,
        seed=config.seed,
    )
    splits = dict(data.splits)
    if config.train_limit is not None and not splits.keys().isdisjoint(("train", "train_aug")):
        name = "train_aug" if "train_aug" in splits else "train"
        splits[name] = _spread(splits[name], config.train_limit)
        if name != "train" and "train" in splits:
            chosen = {record.id for record in splits[name].records}
            known = [i for i, record in enumerate(splits["train"].records) if record.id in chosen]
            splits["train"] = splits["train"].subset(known) if known else _spread(splits["train"], config.train_limit)
    if config.val_limit is not None and "val" in splits:
        splits["val"] = _spread(splits["val"], config.val_limit)
    return DataSet(data.root, data.layout, data.classes, splits)


def _spread(split: Split, limit: int) -> Split:
    """`limit` records at even distances."""
    if limit >= len(split):
        return split
    return split.subset(np.linspace(0, len(split) - 1, limit).round().astype(int).tolist())


def missing_files(paths: Sequence[Path]) -> list[Path]:
    """Those of `paths` that do not exist."""
    return [path for path in paths if not path.is_file()]
