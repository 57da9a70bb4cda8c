"""`python -m gwsss_fast.evaluate`: scores of maps, pseudo labels or predictions, of a run or of any folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gwsss_fast import cli, distributed, files
from gwsss_fast.cam import Sweeps, score_validation_maps
from gwsss_fast.config import DataConfig
from gwsss_fast.data.ahead import read_ahead
from gwsss_fast.data.dataset import Record, Split
from gwsss_fast.data.images import read_image, read_mask, set_pixel_limit
from gwsss_fast.data.transforms import normalise
from gwsss_fast.data.voc_results import RESULTS, check_results, read_test_list
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation.segmentation import confusion_matrix, coverage, segmentation_scores
from gwsss_fast.labels.crf import label_probabilities, refine_images
from gwsss_fast.labels.interchange import open_maps
from gwsss_fast.labels.maps import CamSet
from gwsss_fast.labels.masks import save_mask
from gwsss_fast.labels.pseudo import PseudoInput, PseudoOptions, pseudo_labels
from gwsss_fast.models.deeplab import DeepLabV2, predict_probabilities
from gwsss_fast.models.precision import autocast
from gwsss_fast.training.logs import Reporter
from gwsss_fast.training.runs import Run, missing_files, open_data
from gwsss_fast.training.segmenter import load_segmenter


@dataclass(frozen=True)
class Arguments:
    """Score a folder of maps (ID.npy) or masks (ID.png) against a data set, or the predictions of a run again."""

    data: DataConfig = field(default_factory=DataConfig)
    run: str | None = None
    """Folder of a run: predict val again and score it."""
    cams: str | None = None
    """Folder of maps to score: a run's, IRN's or SEAM's ID.npy, or OAA's ID_CLASS.png."""
    cams_list: str | None = None
    """List whose lines, from 0, OAA's INDEX_CLASS.png count: the one it was trained with."""
    masks: str | None = None
    """Folder of masks to score: pseudo labels or predictions, ID.png."""
    split: Literal["train", "train_aug", "val"] = "train"
    """The images that are scored."""
    crf: Literal["psa", "irn", "deeplab", "mcis", "toco"] | None = None
    """Dense CRF preset; maps are refined at their best threshold."""
    ignored_prediction: Literal["background", "ignore"] = "background"
    """How a predicted 255 is counted."""
    scores: str | None = None
    """JSON file that the scores are written to as well, of maps with the whole curve over the thresholds."""
    voc_results: str | None = None
    """With --run: new folder for a submission to PASCAL VOC's server; --test-list is predicted instead of val."""
    test_list: str = "test"
    """With --voc-results: list of the test images, a path or a name in ImageSets/Segmentation of the run's data."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return cli.run(lambda: _command(sys.argv[1:] if arguments is None else arguments))


@dataclass(frozen=True)
class RunArguments(cli.StageArguments):
    """Predict the validation images of a run again and score them, or predict PASCAL VOC's test images."""

    voc_results: str | None = None
    """New folder for a submission to PASCAL VOC's server; --test-list is predicted instead of val."""
    test_list: str = "test"
    """List of the test images, a path or a name in ImageSets/Segmentation of the run's data."""


def _command(arguments: Sequence[str]) -> None:
    if any(item == "--run" or item.startswith("--run=") for item in arguments):
        given, run = cli.open_stage(RunArguments, "evaluate", arguments)
        if given.voc_results is not None:
            predict_test(run, given.test_list, Path(given.voc_results))
            return
        cli.run_stage(run, "evaluate", evaluate)
        cli.print_summary(run)
        return
    options = distributed.on_main(lambda: read_arguments(arguments))
    set_pixel_limit(options.data.max_megapixels)
    data = distributed.main_first(lambda: open_data(options.data))
    split = data.splits.get(options.split)
    if split is None:
        raise GwsssError(f"{data.root} has no split {options.split}; it has {', '.join(data.splits)}")
    split = with_masks(split)
    table, metrics = score_maps(split, options) if options.cams else score_masks(split, options)
    if distributed.is_main():
        Console().print(table)
        if options.scores is not None:
            files.write_json(options.scores, metrics)


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line. Raises GwsssError where it does not name one thing to score."""
    options = cli.parse(Arguments, Arguments(), arguments, "gwsss-fast evaluate", Arguments.__doc__ or "")
    if options.voc_results is not None:
        raise GwsssError("--voc-results needs --run DIR, whose segmenter predicts the test images")
    if (options.cams is None) == (options.masks is None):
        raise GwsssError("gwsss-fast evaluate needs one of --run DIR, --cams DIR and --masks DIR")
    if options.cams_list is not None and options.cams is None:
        raise GwsssError("--cams-list says how the maps of --cams DIR are named; give both")
    return options


def with_masks(split: Split) -> Split:
    """The images of `split` that have a mask to score against. Raises GwsssError when none has."""
    known = [number for number, record in enumerate(split.records) if record.mask is not None]
    if not known:
        raise GwsssError(f"no image of split {split.name} has a mask to score against")
    if len(known) < len(split) and distributed.is_main():
        words = f"{len(known)} of the {len(split)} images of split {split.name} have masks; only they are scored"
        print(words, file=sys.stderr)
    return split.subset(known)


def evaluate(run: Run) -> None:
    """Predict val into predictions/ID.png, and score it: metrics["segmentation"] and metrics["cam_val"].

    metrics["segmentation_tags"]: the same where only the image's true tags may be predicted, which maps are told too.
    metrics["segmentation_network"]: with a CRF, the score without it.
    """
    split = run.data.validation
    if split is None or not len(split):
        run.begin("evaluate", False)
        run.note("evaluate: the data set has no validation images; nothing to predict")
        return
    found = predict_split(run, split)
    if found is None:
        run.note("evaluate: the validation images have no masks, so the predictions are not scored")
        return
    scores = [mask_metrics(x, run.data.classes, run.config.evaluate.ignored_prediction) for x in found]
    run.add_metrics(
        segmentation=scores[0], segmentation_tags=scores[1], segmentation_network=scores[2] if scores[2:] else {}
    )
    if run.config.evaluate.val_maps and distributed.on_main(run.classifier_checkpoint.is_file):
        score_validation_maps(run)


def predict_split(run: Run, split: Split) -> list[np.ndarray] | None:
    """Write the predictions of `split`. The confusion matrices of them, of those that may only be the image's true
    tags, and, with a CRF, of those before it, over the images that have masks; None when none has."""
    options, classes = run.config.evaluate, len(run.data.classes) + 1
    model = load_segmenter(run.config, run.segmenter_checkpoint, run.data.classes).to(run.device)
    run.begin("evaluate", False)
    scored = sum(record.mask is not None for record in split.records)
    if 0 < scored < len(split):
        run.note(f"evaluate: {scored} of the {len(split)} validation images have masks; only they are scored")
    found = np.zeros((3 if options.crf else 2, classes, classes), np.int64)
    with Reporter("evaluate", len(split), console=run.console, shared=True) as bar:
        for record, before, scores in predict_records(run, model, distributed.share(split.records)):
            prediction = scores.argmax(0).astype(np.uint8)
            save_mask(run.prediction_file(record), prediction)
            if record.mask is not None:
                target, tags = read_mask(record.mask, classes - 1), np.array([0, *(c + 1 for c in record.labels)])
                found[0] += confusion_matrix(prediction, target, classes)
                found[1] += confusion_matrix(tags[scores[tags].argmax(0)], target, classes)
                if options.crf:
                    found[2] += confusion_matrix(before.argmax(0).astype(np.uint8), target, classes)
            bar.advance()
            distributed.check()
    distributed.add_counts(found)
    return list(found) if scored else None


def predict_records(
    run: Run, model: DeepLabV2, records: Sequence[Record]
) -> Iterator[tuple[Record, NDArray[np.float32], NDArray[np.float32]]]:
    """Each record with the network's probabilities (L + 1, H, W), and these after the CRF where there is to be one."""
    crf = run.config.evaluate.crf
    for batch in read_ahead(records, lambda record: read_image(record.image), torch.get_num_threads()):
        network = every = [probabilities_of(run, model, image) for _, image in batch]
        if crf:
            every = refine_images(network, [np.asarray(image) for _, image in batch], crf)
        for (record, _), before, scores in zip(batch, network, every, strict=True):
            yield record, before, scores


def predict_test(run: Run, test_list: str, output: Path) -> None:
    """Write FOLDER/results/VOC2012/Segmentation/comp6_test_cls/ID.png of a list without labels, and check it.

    Raises GwsssError when `output` holds anything, or the list or one of its images does not exist.
    """
    distributed.on_main(lambda: cli.refuse_existing(output))
    records = read_test_list(test_list, run.data.root)
    model = load_segmenter(run.config, run.segmenter_checkpoint, run.data.classes).to(run.device)
    with Reporter("test", len(records), console=run.console, shared=True) as bar:
        for record, _, scores in predict_records(run, model, distributed.share(records)):
            save_mask(output / RESULTS / f"{record.id}.png", scores.argmax(0).astype(np.uint8))
            bar.advance()
            distributed.check()
    distributed.wait()
    faults = distributed.on_main(lambda: check_results(output, records, len(run.data.classes)))
    if faults:
        raise GwsssError(f"{faults[0]} ({len(faults)} faults in all)")
    if distributed.is_main():
        print(f"{len(records)} masks, checked: {output / RESULTS}")


def probabilities_of(run: Run, model: DeepLabV2, image: Image.Image) -> NDArray[np.float32]:
    """(L + 1, H, W) of one image."""
    with autocast(run.device, run.config.precision):
        pixels = normalise(image).to(run.device)
        probabilities = predict_probabilities(model, pixels, run.config.evaluate.scales, run.config.evaluate.flip)
    return probabilities.float().cpu().numpy()


def mask_metrics(confusion: np.ndarray, classes: Sequence[str], policy: str) -> dict[str, Any]:
    """Scores of a confusion matrix in percent, as they stand in metrics.json."""
    scores = segmentation_scores(confusion)
    names = ("background", *classes)
    return {
        "miou": 100 * scores.miou,
        "iou": {name: 100 * float(value) for name, value in zip(names, scores.iou, strict=True)},
        "accuracy": 100 * scores.accuracy,
        "false_positives": 100 * scores.fp,
        "false_negatives": 100 * scores.fn,
        "ignored_prediction": policy,
    }


def score_maps(split: Split, options: Arguments) -> tuple[Table, dict[str, Any]]:
    """Threshold sweep of the maps in a folder, each class at the best threshold, and their mIoU after a CRF there."""
    read = distributed.main_first(lambda: open_maps(str(options.cams), split.records, options.cams_list))
    records, sweeps = distributed.share(split.records), Sweeps(len(split.classes))
    with Reporter("maps", len(split), shared=True) as bar:
        for record in records:
            sweeps.update(read(record), record)
            bar.advance()
            distributed.check()
    sweeps.add_up()
    table = Table("maps", "mIoU %", "best threshold", title=_title(options.cams, split))
    metrics = sweeps.metrics()
    for name, scores in metrics.items():
        table.add_row(name, f"{scores['miou']:.2f}", f"{scores['best_threshold']:.2f}")
        best = sweeps.sweeps[name].scores().confusion
        scores.update(mask_metrics(best, split.classes, options.ignored_prediction))
    _add_classes(table, metrics["ensemble"])
    if options.crf:
        threshold, classes = metrics["ensemble"]["best_threshold"], len(split.classes) + 1
        confusion = np.zeros((classes, classes), np.int64)
        settings = PseudoOptions(threshold=threshold)
        with Reporter(f"CRF {options.crf}", len(split), shared=True) as bar:
            for batch in read_ahead(records, partial(_maps_and_image, read), torch.get_num_threads()):
                inputs = [given for _, given in batch]
                labels = pseudo_labels(inputs, background="threshold", options=settings, crf=options.crf)
                for (record, _), label in zip(batch, labels, strict=True):
                    confusion += confusion_matrix(label, _target(record, classes), classes)
                    bar.advance()
                    distributed.check()
        distributed.add_counts(confusion)
        metrics["crf"] = mask_metrics(confusion, split.classes, options.ignored_prediction)
        table.add_row(f"ensemble + CRF {options.crf}", f"{metrics['crf']['miou']:.2f}", "")
    return table, metrics


def score_masks(split: Split, options: Arguments) -> tuple[Table, dict[str, Any]]:
    """mIoU, coverage and each class of the masks in a folder."""
    items = distributed.share([*zip(split.records, _files(split, Path(str(options.masks)), ".png"), strict=True)])
    classes = len(split.classes) + 1
    confusion, covered = np.zeros((classes, classes), np.int64), []
    policy = options.ignored_prediction

    def read(item: tuple[Record, Path]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        image = np.asarray(read_image(item[0].image)) if options.crf else None
        return read_mask(item[1], classes - 1), image

    with Reporter("masks", len(split), shared=True) as bar:
        for batch in read_ahead(items, read, torch.get_num_threads()):
            masks = [mask for _, (mask, _) in batch]
            if options.crf:
                probs = [label_probabilities(mask, classes, options.crf) for mask in masks]
                images = [image for _, (_, image) in batch if image is not None]
                masks = [x.argmax(0).astype(np.uint8) for x in refine_images(probs, images, options.crf)]
            for ((record, _), _), mask in zip(batch, masks, strict=True):
                covered.append(coverage(mask))
                confusion += confusion_matrix(mask, _target(record, classes), classes, ignored_prediction=policy)
                bar.advance()
                distributed.check()
    distributed.add_counts(confusion)
    metrics = mask_metrics(confusion, split.classes, policy)
    metrics["coverage"] = 100 * float(np.mean(distributed.unshare(covered)))
    table = Table("masks", "%", title=_title(options.masks, split))
    words = {
        "miou": "mIoU",
        "coverage": f"coverage (255 counts as {policy})",
        "accuracy": "pixel accuracy",
        "false_positives": "false positives, mean share of the union",
        "false_negatives": "false negatives, mean share of the union",
    }
    for name, text in words.items():
        table.add_row(text, f"{metrics[name]:.2f}")
    _add_classes(table, metrics)
    return table, metrics


def _add_classes(table: Table, metrics: dict[str, Any]) -> None:
    for name, value in metrics["iou"].items():
        table.add_row(Text(f"  {name}"), "-" if value != value else f"{value:.2f}")


def _maps_and_image(read: Callable[[Record], CamSet], record: Record) -> PseudoInput:
    cams = read(record)
    return PseudoInput(cams.ensemble, cams.keys, None, np.asarray(read_image(record.image)), str(record.image))


def _title(folder: str | None, split: Split) -> Text:
    return Text(f"{folder} on {split.name} ({len(split)} images)", style="table.title")


def _target(record: Record, classes: int) -> np.ndarray:
    assert record.mask is not None
    return read_mask(record.mask, classes - 1)


def _files(split: Split, folder: Path, suffix: str) -> list[Path]:
    paths = [folder / f"{record.id}{suffix}" for record in split.records]
    missing = missing_files(paths)
    if missing:
        raise GwsssError(f"{missing[0]} does not exist ({len(missing)} of {len(paths)} images of split {split.name})")
    return paths


if __name__ == "__main__":
    sys.exit(main())
