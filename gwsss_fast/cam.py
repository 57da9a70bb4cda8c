"""`python -m gwsss_fast.cam --run DIR`: class activation maps of a trained classifier, and their scores."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from gwsss_fast import cli, distributed
from gwsss_fast.config import differences
from gwsss_fast.data.dataset import Record, Split
from gwsss_fast.data.images import read_mask, read_size
from gwsss_fast.data.map_files import enlarged_bands
from gwsss_fast.data.samplers import GroupSampler
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation.segmentation import ThresholdSweep
from gwsss_fast.files import atomic_path
from gwsss_fast.labels.interchange import READOUTS, load_maps, save_maps, save_oaa
from gwsss_fast.labels.maps import CamSet, bounded_shape, generate_maps, predict_labels
from gwsss_fast.models.group_classifier import GroupClassifier
from gwsss_fast.training.build import load_classifier
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.logs import Reporter
from gwsss_fast.training.runs import Run, missing_files
from gwsss_fast.training.signals import deferred_interrupt

RECORD_EVERY = 100  # images between two records of the progress


@dataclass(frozen=True)
class Arguments(cli.StageArguments):
    """Make class activation maps."""

    format: Literal["run", "irn", "seam", "oaa"] = "run"
    """Also write the maps as another project does, into RUN/cams-FORMAT; maps that are complete are not made again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return cli.run(lambda: _command(sys.argv[1:] if arguments is None else arguments))


def _command(arguments: Sequence[str]) -> None:
    options, run = cli.open_stage(Arguments, "cam", arguments)
    if options.format == "run" or not distributed.on_main(lambda: up_to_date(run)):
        cli.run_stage(run, "cam", make_maps)
    if options.format != "run":
        convert(run, options.format)
    cli.print_summary(run)


def up_to_date(run: Run) -> bool:
    """Whether the run's maps are those that its classifier would make with these options."""
    if run.checkpoint is not None or not run.complete("cam"):
        return False
    return not any(key.startswith("cam.") for key in differences(cli.stored_config(run.folder), run.config))


def make_maps(run: Run, resume: bool = False) -> None:
    """Write cams/ID.npy of every image and metrics["cam"].

    resume: keep the files of an interrupted run that cams/progress*.npz vouch for and make the others, with the same
    maps and scores as without the interruption, whatever the numbers of processes. After a crash up to `RECORD_EVERY`
    images a process are made again. Ctrl-C takes effect after the forward pass at hand, a second one at once.
    """
    split, scoring = run.map_split, run.data.scoring
    sweeps = Sweeps(len(run.data.classes))
    before = distributed.on_main(lambda: earlier_progress(run, sweeps)) if resume else []
    found = run_maps(run, split, frozenset(before))
    run.begin("cam", resume)
    if before:
        distributed.on_main(lambda: join_progress(run, sweeps, before))
    else:
        run.discard("cam")
    done = before if distributed.is_main() else []  # what the counts of this process stand for
    scored = {record.id for record in scoring.records} if scoring else set()
    bar = Reporter("cam", len(split), len(before), console=run.console, shared=True)
    with deferred_interrupt() as stopped, bar:
        for record, cams in found:
            save_maps(run.map_file(record), cams, high_res=run.config.cam.high_res)
            if record.id in scored:
                sweeps.update(cams, record)
            done.append(record.id)
            bar.advance()
            problem = stopped.problem()
            if problem is not None or len(done) % RECORD_EVERY == 0:
                sweeps.save(run.map_progress, done)
            if problem is not None:
                raise problem
    sweeps.add_up()
    if scoring:
        run.add_metrics(cam=sweeps.metrics())
    else:
        run.note("cam: the training images have no masks, so the maps are not scored")
    run.map_progress.unlink(missing_ok=True)


def earlier_progress(run: Run, sweeps: Sweeps) -> list[str]:
    """The images that an interrupted stage has done, whose counts `sweeps` takes over; none where files are missing."""
    done = sweeps.load(run.map_progress_files())
    made = frozenset(done)
    if missing_files([run.map_file(record) for record in run.map_split.records if record.id in made]):
        sweeps.clear()
        return []
    return done


def join_progress(run: Run, sweeps: Sweeps, done: Sequence[str]) -> None:
    """One file for the progress of all processes."""
    files = run.map_progress_files()
    if files != [run.map_progress]:
        sweeps.save(run.map_progress, done)
        for path in files:
            if path != run.map_progress:
                path.unlink()


def run_maps(run: Run, split: Split, skip: Collection[str] = ()) -> Iterator[tuple[Record, CamSet]]:
    """The maps of every image of `split` whose id is not in `skip`.

    Accumulated while training with cam.oaa, else made by the classifier. Raises GwsssError at once when the checkpoint
    does not fit.
    """
    if run.config.cam.oaa:
        return _online_maps(run, split, skip)
    model, _ = load_classifier(run.config, run.classifier_checkpoint, run.data.classes)
    return classifier_maps(run, model.to(run.device), split, skip)


def classifier_maps(
    run: Run, model: GroupClassifier, split: Split, skip: Collection[str] = ()
) -> Iterator[tuple[Record, CamSet]]:
    """The maps of every image of `split` by `model`, less those in `skip`, in groups by the sampler of the training."""
    options, training = run.config.cam, run.config.classifier
    size = min(training.group_size, len(split))
    return generate_maps(
        model,
        split,
        GroupSampler(split.labels, size, training.sampling, run.config.seed),
        size=options.size or training.size,
        scales=options.scales,
        flip=options.flip,
        rounds=options.rounds,
        groups=options.groups,
        device=run.device,
        precision=run.config.precision,
        workers=run.config.data.workers,
        skip=skip,
    )


def _online_maps(run: Run, split: Split, skip: Collection[str]) -> Iterator[tuple[Record, CamSet]]:
    stored = load_checkpoint(run.classifier_checkpoint).get("online_maps")
    if not stored:
        raise GwsssError(f"{run.classifier_checkpoint} holds no accumulated maps; train with --cam.oaa true")
    for record in distributed.share([record for record in split.records if record.id not in skip]):
        if record.id not in stored:
            raise GwsssError(f"{run.classifier_checkpoint} holds no maps of {record.id}; it was not trained on")
        width, height = read_size(record.image)
        shape = bounded_shape((height, width), len(record.labels))
        maps = torch.nn.functional.interpolate(stored[record.id].float(), shape, mode="bilinear")
        initial, graph = (maps / (maps.amax((-2, -1), keepdim=True) + 1e-5)).numpy()
        full = (height, width) if shape != (height, width) else None
        yield record, CamSet(np.array(record.labels, np.int64), initial, graph, (initial + graph) / 2, full)


class Sweeps:
    """Threshold sweeps of the three readouts, on maps of full size in the precision of the files."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.clear()

    def clear(self) -> None:
        """Forget all images."""
        self.sweeps = {name: ThresholdSweep(self.classes + 1) for name in READOUTS}

    def update(self, cams: CamSet, record: Record) -> None:
        """Add an image that has a mask."""
        assert record.mask is not None
        target = read_mask(record.mask, self.classes)
        for name, sweep in self.sweeps.items():
            update_sweep(sweep, cams, name, target)

    def save(self, path: Path, done: Sequence[str]) -> None:
        """Write the counts so far and the ids of the images that are done, atomically."""
        content: dict[str, Any] = {name: sweep.histogram for name, sweep in self.sweeps.items()}
        content["done"] = np.array(done, dtype=np.str_)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **content)

    def load(self, paths: Sequence[Path]) -> list[str]:
        """Take over the counts of the files of `save` and give their ids; a file that does not fit adds nothing, nor
        does one whose images an earlier one of `paths` holds: it was added to that and not removed yet."""
        done: list[str] = []
        for path in paths:
            try:
                with np.load(path) as stored:
                    counts = {name: stored[name] for name in self.sweeps}
                    more = stored["done"].tolist()
            except Exception:  # a broken file breaks anywhere
                continue
            fits = all(counts[name].shape == sweep.histogram.shape for name, sweep in self.sweeps.items())
            if fits and set(more).isdisjoint(done):
                for name, sweep in self.sweeps.items():
                    sweep.histogram += counts[name]
                done += more
        return done

    def add_up(self) -> None:
        """Let the counts be those of all processes."""
        for sweep in self.sweeps.values():
            distributed.add_counts(sweep.histogram)

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Per readout miou, best_threshold and curve, in percent."""
        return {name: sweep_metrics(self.sweeps[name]) for name in ("initial", "graph", "ensemble")}


def update_sweep(sweep: ThresholdSweep, cams: CamSet, readout: str, target: NDArray[np.uint8]) -> None:
    """Add the maps of an image with its mask (H, W); those of a large image are enlarged some rows at a time."""
    maps = getattr(cams, readout)
    size = maps.shape[1:] if cams.size is None else cams.size
    if target.shape != size:
        raise GwsssError(
            f"maps for {size[1]}x{size[0]} pixels do not fit a mask of {target.shape[1]}x{target.shape[0]}"
        )
    for rows, part in enlarged_bands(maps, size):
        sweep.update(part.astype(np.float16), cams.keys, target[rows])


def sweep_metrics(sweep: ThresholdSweep) -> dict[str, Any]:
    """A sweep as it stands in metrics.json."""
    result = sweep.scores()
    return {
        "miou": 100 * result.best_miou,
        "best_threshold": round(result.best_threshold, 4),
        "curve": [round(100 * float(value), 4) for value in result.curve],
    }


def score_validation_maps(run: Run) -> None:
    """metrics["cam_val"]: the classifier's own ensembled maps on val, with the true tags and with predicted ones."""
    split = run.scored_validation
    if split is None:
        return
    config = run.config
    model, _ = load_classifier(config, run.classifier_checkpoint, run.data.classes)
    model.to(run.device)
    size = config.cam.size or config.classifier.size
    found = predict_labels(
        model, split, size=size, device=run.device, precision=config.precision, workers=config.data.workers
    )
    tags = [tuple(np.flatnonzero(row).tolist()) for row in found]
    guessed = replace(split, records=tuple(replace(r, labels=t) for r, t in zip(split.records, tags, strict=True)))
    scores = {}
    with Reporter("maps on val", 2 * len(split), console=run.console, shared=True) as bar:
        for name, version in (("tags", split), ("predicted", guessed)):
            sweep = ThresholdSweep(len(run.data.classes) + 1)
            for record, cams in classifier_maps(run, model, version):
                assert record.mask is not None
                target = read_mask(record.mask, len(run.data.classes))
                update_sweep(sweep, cams, "ensemble", target)
                bar.advance()
                distributed.check()
            distributed.add_counts(sweep.histogram)
            scores[name] = sweep_metrics(sweep)
    run.add_metrics(cam_val=scores)


def convert(run: Run, layout: str) -> None:
    """Write the run's maps in another project's format."""
    folder = run.folder / f"cams-{layout}"
    for record in distributed.share(run.map_split.records):
        distributed.check()
        cams = load_maps(run.map_file(record))
        if layout == "oaa":
            save_oaa(folder, record.id, cams)
        else:
            save_maps(folder / f"{record.id}.npy", cams, layout)
    distributed.wait()
    run.note(f"maps in the format of {layout}: {folder}")


if __name__ == "__main__":
    sys.exit(main())
