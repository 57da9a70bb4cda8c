"""`python -m gwsss_fast.localize --run DIR`: boxes from class activation maps, and the scores of localisation."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from gwsss_fast import cli, distributed, files
from gwsss_fast.config import Config, DataConfig, absolute_paths, read_config
from gwsss_fast.data.boxes import clipped, read_box_file, read_class_file, true_boxes
from gwsss_fast.data.dataset import DataSet, Record, Split
from gwsss_fast.data.images import read_size
from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.localization import MapOptions, localization_maps, predicted_classes
from gwsss_fast.models.group_classifier import GroupClassifier
from gwsss_fast.ops import backend as use_backend
from gwsss_fast.report.localization import Target, TargetScores, score_targets, write_results
from gwsss_fast.training.build import load_classifier
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.logs import Reporter
from gwsss_fast.training.loop import deferred_interrupt
from gwsss_fast.training.precision import check_precision, choose_device, set_threads
from gwsss_fast.training.runs import environment, missing_files, open_data

SETTINGS, CLASSES = "localize.json", "classes.json"


@dataclass(frozen=True)
class Arguments:
    """Localise the objects of a split with a trained group classifier: boxes, overlays and scores."""

    data: DataConfig = field(default_factory=DataConfig)
    run: str | None = None
    """Folder of the run whose classifier makes the maps."""
    checkpoint: str | None = None
    """That classifier's checkpoint, instead of a run's folder."""
    classifier: str | None = None
    """Stand-alone classifier, a run's folder or a checkpoint (train it with --steps 0): its predicted class finds the
    partners of a test image. None: the group classifier's own readout before the first message."""
    predictions: str | None = None
    """Instead of --classifier: CSV file of `id,class`, the predicted classes of any other network."""
    boxes: str | None = None
    """Box file, CSV of `id,x0,y0,x1,y1[,class]`. None: the data set's own boxes, else those of its masks."""
    split: Literal["val", "train", "train_aug"] = "val"
    """The images that are localised."""
    readout: Literal["ensemble", "graph", "initial"] = "ensemble"
    """The maps that boxes are made of."""
    scales: tuple[float, ...] = (1.0,)
    """Scales whose maps are summed."""
    flip: bool = True
    """Sum with the maps of the mirrored image."""
    rounds: int = 1
    """Average over so many groups an image."""
    tau: float | None = None
    """Map threshold of the boxes, 0 to 1. None: the best one for Top-1 Loc on these very images."""
    overlays: int = 24
    """Images whose maps and boxes are drawn, spread over the split."""
    output: str | None = None
    """Folder that the results go to; None = RUN/localization."""
    resume: bool = False
    """Go on in a folder that holds results: maps that are there are not made again."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the networks."""
    threads: int = 0
    """CPU threads; 0 = all cores."""


@dataclass(frozen=True)
class Classifier:
    """A trained classifier, its configuration and the file it comes from."""

    model: GroupClassifier
    config: Config
    path: Path

    def options(self, arguments: Arguments) -> MapOptions:
        """How it looks at images: as in its training, where the command says nothing else."""
        own = self.config.classifier
        return MapOptions(
            size=own.size,
            scales=arguments.scales,
            flip=arguments.flip,
            rounds=arguments.rounds,
            group_size=own.group_size,
            groups=self.config.cam.groups,
            sampling=own.sampling,
            seed=self.config.seed,
            readout=arguments.readout,
            precision=arguments.precision,
            workers=arguments.data.workers,
        )


@dataclass(frozen=True)
class Job:
    """Everything a localisation needs, checked.

    classifier: the stand-alone one, or None. predicted: the class of each image where a file gives them.
    """

    arguments: Arguments
    output: Path
    data: DataSet
    split: Split
    targets: tuple[Target, ...]
    group: Classifier
    classifier: Classifier | None
    predicted: list[int] | None
    device: torch.device

    def map_files(self, record: Record, predicted: int) -> dict[int, Path]:
        """maps/ID_CLASS.png for each class that an image's map is wanted of."""
        classes = sorted({*record.labels, predicted})
        return {label: self.output / "maps" / f"{record.id}_{label}.png" for label in classes}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    return cli.run(lambda: distributed.on_main(lambda: _command(given)))


def _command(arguments: Sequence[str]) -> None:
    job = open_job(read_arguments(arguments))
    with use_backend(job.group.config.backend):
        metrics = localize(job)
    Console().print(summary(metrics))
    print(f"boxes, overlays and metrics.json: {job.output}")


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line over the data section of the run. Raises GwsssError for options without sense."""
    data = DataConfig()
    if not {"-h", "--help"} & set(arguments):
        data = _source(cli.peek(arguments, "--run"), cli.peek(arguments, "--checkpoint"))[0].data
    default = Arguments(data=data)
    options = cli.parse(Arguments, default, arguments, "gwsss-fast localize", Arguments.__doc__ or "")
    if not options.scales or min(options.scales) <= 0 or options.rounds < 1 or options.overlays < 0:
        raise GwsssError("--scales must be above 0, --rounds at least 1 and --overlays at least 0")
    if options.classifier is not None and options.predictions is not None:
        raise GwsssError("--classifier and --predictions both say which classes are predicted; give one")
    if options.tau is not None and not 0 <= options.tau < 1:
        raise GwsssError(f"--tau {options.tau} must be at least 0 and below 1")
    if options.output is None and options.run is None:
        raise GwsssError("gwsss-fast localize --checkpoint needs --output DIR, a new folder for what it makes")
    return replace(options, data=absolute_paths(Config(data=options.data)).data)


def _source(run: str | None, checkpoint: str | None) -> tuple[Config, Path]:
    """Configuration and checkpoint of a classifier, by a run's folder or by its file."""
    if checkpoint is not None:
        path = Path(checkpoint)
        return absolute_paths(read_config(str(load_checkpoint(path).get("config", "")), checkpoint)), path
    if run is None:
        raise GwsssError(
            "gwsss-fast localize needs --run DIR or --checkpoint FILE, a classifier to make maps with; "
            "`gwsss-fast train --stage classifier --output DIR` trains one"
        )
    return cli.stored_config(Path(run)), Path(run) / "classifier" / "last.pt"


def open_job(arguments: Arguments) -> Job:
    """Open data, boxes and classifiers. Writes nothing; raises GwsssError for whatever cannot be used."""
    output = Path(arguments.output or f"{arguments.run}/localization")
    if not arguments.resume:
        cli.refuse_existing(output)
    set_threads(arguments.threads)
    device = choose_device(arguments.device)
    check_precision(arguments.precision, device)
    data = open_data(arguments.data)
    group = _load(*_source(arguments.run, arguments.checkpoint), data, device)
    alone = None
    if arguments.classifier is not None:
        name = arguments.classifier
        found = _source(name, None) if Path(name).is_dir() else _source(None, name)
        alone = _load(*found, data, device)
    split = data.splits.get(arguments.split)
    if split is None:
        raise GwsssError(f"{data.root} has no split {arguments.split}; it has {', '.join(data.splits)}")
    targets = find_targets(data, split, arguments.boxes)
    chosen = replace(split, records=tuple(target.record for target in targets))
    given = None if arguments.predictions is None else read_class_file(arguments.predictions, data, chosen.records)
    return Job(arguments, output, data, chosen, targets, group, alone, given, device)


def _load(config: Config, checkpoint: Path, data: DataSet, device: torch.device) -> Classifier:
    model, _ = load_classifier(config, checkpoint, data.classes)
    return Classifier(model.to(device), config, checkpoint)


def find_targets(data: DataSet, split: Split, boxes: str | None) -> tuple[Target, ...]:
    """The labelled images of `split` that have true boxes, with these; says how many are left out.

    Raises GwsssError when none has.
    """
    listed = None if boxes is None else read_box_file(boxes, data, split.records)
    targets = []
    for record in split.records:
        if record.labels and (listed is None or record.id in listed):
            found = true_boxes(record, len(data.classes), listed[record.id] if listed is not None else None)
            if found:
                with record.located():
                    size = read_size(record.image)
                    within = {label: clipped(rows, size, record.image) for label, rows in found.items()}
                targets.append(Target(record, size, within))
    if not targets:
        raise GwsssError(
            f"no image of split {split.name} has both labels and true boxes; give a box file with --boxes, or masks"
        )
    if len(targets) < len(split):
        some = f"{len(targets)} of the {len(split)} images of split {split.name}"
        print(f"{some} have labels and boxes; only they count", file=sys.stderr)
    return tuple(targets)


def localize(job: Job) -> dict[str, Any]:
    """Predict classes, make maps, score and write; returns what stands in metrics.json."""
    start = time.perf_counter()
    check_settings(job)
    predicted = predict_classes(job)
    make_maps(job, predicted)
    maps = [job.map_files(record, label) for record, label in zip(job.split.records, predicted, strict=True)]
    with Reporter("boxes", sum(len(target.boxes) for target in job.targets)) as bar:
        scores = score_targets(
            job.targets,
            predicted,
            maps,
            job.arguments.tau,
            lambda count: bar.advance(by=count),
            torch.get_num_threads(),
        )
    write_results(job.output, job.data.classes, scores, maps, job.arguments.overlays)
    metrics = {
        **metrics_of(scores, job),
        "seconds": round(time.perf_counter() - start, 2),
        "environment": environment(job.device),
    }
    files.write_json(job.output / "metrics.json", metrics)
    return metrics


def check_settings(job: Job) -> None:
    """Note what the maps depend on. Raises GwsssError when those in the folder were made with something else."""
    path = job.output / SETTINGS
    settings = {
        "maps": {**asdict(job.group.options(job.arguments)), "workers": None},
        "classifier": _digest(job.group.path),
        "partners": job.predicted or ("own" if job.classifier is None else _digest(job.classifier.path)),
        "images": [[record.id, *record.labels] for record in job.split.records],
    }
    settings["images"] = hashlib.sha256(json.dumps(settings["images"]).encode()).hexdigest()
    settings = json.loads(json.dumps(settings))  # as it comes back from the file
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise GwsssError(f"{path} is damaged: {error}; name another --output") from error
        changed = next((name for name, value in settings.items() if stored.get(name) != value), None)
        if changed is not None:
            raise GwsssError(f"{path.parent} holds maps made with another setting of {changed}; name another --output")
    files.write_json(path, settings)


def predict_classes(job: Job) -> list[int]:
    """The predicted class of each image, kept in classes.json."""
    path, names = job.output / CLASSES, job.data.classes
    if job.predicted is not None:
        return job.predicted
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return [names.index(stored[record.id]) for record in job.split.records]
        except (ValueError, KeyError, TypeError):
            pass  # made again
    source = job.classifier or job.group
    predicted: list[int] = []
    with Reporter("classes", len(job.split)) as bar:
        for labels in predicted_classes(source.model, job.split, source.options(job.arguments), job.device):
            predicted += labels
            bar.advance(by=len(labels))
    rows = zip(job.split.records, predicted, strict=True)
    files.write_json(path, {record.id: names[label] for record, label in rows})
    return predicted


def make_maps(job: Job, predicted: Sequence[int]) -> None:
    """Write the maps that are not there yet. Ctrl-C takes effect after the forward pass at hand."""
    rows = zip(job.split.records, predicted, strict=True)
    wanted = {record.id: job.map_files(record, label) for record, label in rows}
    done = {name for name, paths in wanted.items() if not missing_files(list(paths.values()))}
    found = localization_maps(
        job.group.model, job.split, predicted, job.group.options(job.arguments), job.device, skip=done
    )
    with deferred_interrupt() as stopped, Reporter("maps", len(wanted), len(done)) as bar:
        for record, maps in found:
            for label, levels in maps.items():
                with files.atomic_path(wanted[record.id][label]) as temporary:
                    Image.fromarray(levels).save(temporary, format="PNG")
            bar.advance()
            if stopped.is_set():
                raise KeyboardInterrupt


def metrics_of(scores: TargetScores, job: Job) -> dict[str, Any]:
    """The scores in percent, and what they are scores of."""
    where = f"given with --tau ({job.arguments.tau})"
    return {
        "split": job.split.name,
        "images": len(scores.targets),
        "objects": len(scores.class_right),
        "top1_classification": scores.top1.top1_classification,
        "top1_localization": scores.top1.top1_localization,
        "gt_known_localization": scores.top1.gt_known_localization,
        "tau": round(scores.top1.tau, 4),
        "tau_chosen_on": f"these images of {job.split.name}" if job.arguments.tau is None else where,
        "max_box_acc": {"score": float(scores.max_box_acc), "tau": round(scores.max_box_acc.tau, 4)},
        "max_box_acc_v2": {
            "score": float(scores.max_box_acc_v2),
            "best": {str(iou): value for iou, value in scores.max_box_acc_v2.best.items()},
            "taus": {str(iou): round(tau, 4) for iou, tau in scores.max_box_acc_v2.taus.items()},
        },
        "readout": job.arguments.readout,
        "classifier": str(job.group.path),
        "partners_by": partners_by(job),
    }


def partners_by(job: Job) -> str:
    """Where the predicted classes come from."""
    if job.arguments.predictions is not None:
        return job.arguments.predictions
    return str(job.classifier.path) if job.classifier else "the classifier's own intermediate readout"


def summary(metrics: dict[str, Any]) -> Table:
    """The scores as a table."""
    images = f"{metrics['images']} images of {metrics['split']}"
    if metrics["objects"] != metrics["images"]:
        images += f", {metrics['objects']} pairs of image and class"
    table = Table("localisation", "%", "", title=images)
    tau = f"tau {metrics['tau']:.3f}, {metrics['tau_chosen_on']}"
    table.add_row("Top-1 Cls", f"{metrics['top1_classification']:.2f}", "")
    table.add_row("Top-1 Loc", f"{metrics['top1_localization']:.2f}", tau)
    table.add_row("GT-known Loc", f"{metrics['gt_known_localization']:.2f}", "at the same tau")
    first, second = metrics["max_box_acc"], metrics["max_box_acc_v2"]
    table.add_row("MaxBoxAcc", f"{first['score']:.2f}", f"tau {first['tau']:.3f}")
    best = ", ".join(f"{value:.1f} at IoU {iou}" for iou, value in second["best"].items())
    table.add_row("MaxBoxAccV2", f"{second['score']:.2f}", best)
    return table


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
