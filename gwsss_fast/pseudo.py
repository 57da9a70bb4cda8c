"""`python -m gwsss_fast.pseudo --run DIR`: pseudo labels from a run's maps, and their scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from gwsss_fast import cli, distributed
from gwsss_fast.config import PseudoConfig
from gwsss_fast.data.ahead import read_ahead
from gwsss_fast.data.dataset import Record
from gwsss_fast.data.images import read_image, read_mask, read_saliency
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluation.segmentation import confusion_matrix, coverage, segmentation_scores
from gwsss_fast.labels.interchange import load_maps, open_maps
from gwsss_fast.labels.maps import CamSet
from gwsss_fast.labels.masks import save_mask
from gwsss_fast.labels.pseudo import PseudoInput, PseudoOptions, pseudo_labels
from gwsss_fast.training.logs import Reporter
from gwsss_fast.training.runs import Run, missing_files


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return cli.run(lambda: _command(sys.argv[1:] if arguments is None else arguments))


def _command(arguments: Sequence[str]) -> None:
    _, run = cli.open_stage(cli.StageArguments, "pseudo", arguments)
    cli.run_stage(run, "pseudo", make_pseudo_labels)
    cli.print_summary(run)


def make_pseudo_labels(run: Run, resume: bool = False) -> None:
    """Write pseudo/ID.png of every image and metrics["pseudo"]; with `resume` the files that are there are kept.

    Raises GwsssError when maps or saliency maps are missing; what was made before is untouched then.
    """
    split, scoring, classes = run.map_split, run.data.scoring, len(run.data.classes) + 1
    read = distributed.main_first(lambda: map_reader(run))
    rule = check_background(run)
    run.begin("pseudo", resume)
    if not resume:
        run.discard("pseudo")
    scored = {record.id for record in scoring.records} if scoring else set()
    confusion, covered = np.zeros((classes, classes), np.int64), []
    records = distributed.share(split.records)
    with Reporter("pseudo", len(split), console=run.console, shared=True) as bar:
        prepare = partial(pseudo_input, run, read, rule)
        for batch in read_ahead(records, prepare, torch.get_num_threads()):
            made = iter(run_rules(run, [given for _, given in batch if given is not None], rule))
            for record, given in batch:
                file = run.pseudo_file(record)
                label = read_mask(file, classes - 1) if given is None else next(made)
                if given is not None:
                    save_mask(file, label)
                covered.append(coverage(label))
                if record.id in scored and record.mask is not None:
                    target = read_mask(record.mask, classes - 1)
                    policy = run.config.evaluate.ignored_prediction
                    confusion += confusion_matrix(label, target, classes, ignored_prediction=policy)
                bar.advance()
                distributed.check()
    distributed.add_counts(confusion)
    metrics = {"coverage": 100 * float(np.mean(distributed.unshare(covered))), "background": rule}
    if scoring:
        metrics = {"miou": 100 * segmentation_scores(confusion).miou, **metrics}
    else:
        run.note("pseudo: the training images have no masks, so the pseudo labels are not scored")
    run.add_metrics(pseudo=metrics)


def background_rule(run: Run) -> str:
    """The configured rule; `auto` is saliency when every image has a saliency map, else threshold."""
    rule = run.config.pseudo.background
    if rule != "auto":
        return rule
    return "saliency" if all(record.saliency is not None for record in run.map_split.records) else "threshold"


def check_background(run: Run) -> str:
    """The background rule. Raises GwsssError when it needs saliency maps that the data set lacks."""
    rule, records = background_rule(run), run.map_split.records
    lacking = [record for record in records if record.saliency is None]
    if rule == "saliency" and lacking and run.config.pseudo.missing_saliency == "error":
        raise GwsssError(
            f"{lacking[0].image} has no saliency map ({len(lacking)} of {len(records)} images); add one to the data "
            "set, choose --pseudo.background threshold or alpha, or set --pseudo.missing-saliency threshold"
        )
    return rule


def map_reader(run: Run) -> Callable[[Record], CamSet]:
    """What reads an image's maps, the run's own or another project's. Raises GwsssError when some are missing."""
    split, folder = run.map_split, run.config.pseudo.maps
    if folder is not None:
        return open_maps(folder, split.records, run.config.pseudo.maps_list)
    missing = missing_files([run.map_file(record) for record in split.records])
    if missing:
        raise GwsssError(f"maps {missing[0]} do not exist ({len(missing)} of {len(split)}); run stage cam first")
    return lambda record: load_maps(run.map_file(record))


def pseudo_input(run: Run, read: Callable[[Record], CamSet], rule: str, record: Record) -> PseudoInput | None:
    """What an image's pseudo label is made from; None where it has been made."""
    if run.pseudo_file(record).is_file():
        return None
    config, cams = run.config.pseudo, read(record)
    saliency = read_saliency(record.saliency) if rule == "saliency" and record.saliency else None
    image = np.asarray(read_image(record.image)) if config.crf else None
    return PseudoInput(getattr(cams, config.readout), cams.keys, saliency, image, str(record.image))


def run_rules(run: Run, inputs: Sequence[PseudoInput], rule: str) -> list[NDArray[np.uint8]]:
    """The pseudo labels of some images, as the run's configuration wants them."""
    config = run.config.pseudo
    return pseudo_labels(inputs, background=rule, options=pseudo_options(config), crf=config.crf)


def pseudo_options(config: PseudoConfig) -> PseudoOptions:
    """The constants of the rules."""
    return PseudoOptions(**{field.name: getattr(config, field.name) for field in fields(PseudoOptions)})


if __name__ == "__main__":
    sys.exit(main())
