"""`python -m gwsss_fast.train`: the main job, from images with tags to a segmentation network, scores and a report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gwsss_fast import cli, distributed
from gwsss_fast.cam import make_maps
from gwsss_fast.config import Config, absolute_paths, check, load_config
from gwsss_fast.errors import GwsssError
from gwsss_fast.evaluate import evaluate
from gwsss_fast.models.backbones import check_backbone
from gwsss_fast.pseudo import check_background, make_pseudo_labels
from gwsss_fast.report_run import write_report
from gwsss_fast.training.classifier import train_classifier
from gwsss_fast.training.runs import STAGES, Run
from gwsss_fast.training.segmenter import check_segmenter, train_segmenter

RUNS = Path("runs")
ALONE = ("report",)  # stages that process 0 works on by itself


@dataclass(frozen=True)
class Arguments:
    """Train on image-level labels: classifier, maps, pseudo labels, segmenter, scores and report."""

    config: tyro.conf.FlagConversionOff[Annotated[Config, tyro.conf.arg(name="")]]
    preset: str = "quick"
    """Name of a preset, or a YAML file such as a run's config.yaml."""
    stage: Literal["all", "classifier", "cam", "pseudo", "segmenter", "evaluate", "report"] = "all"
    """Run this stage only."""
    resume: bool = False
    """Go on in an existing folder; finished stages are skipped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return cli.run(lambda: _command(sys.argv[1:] if arguments is None else arguments))


def _command(arguments: Sequence[str]) -> None:
    options = distributed.on_main(lambda: read_arguments(arguments))
    folder = distributed.on_main(lambda: choose_folder(options))
    config = options.config
    stored = distributed.broadcast((folder / "config.yaml").is_file())
    run = cli.open_run(folder, config, verify=not stored)
    stages = wanted_stages(config) if options.stage == "all" else (options.stage,)

    def check() -> bool:
        if stored:
            cli.refuse_changes(cli.stored_config(folder), config, folder, lambda stage: run.begun(stage))
        return not folder.exists() or not any(folder.iterdir())

    bare = distributed.on_main(check)
    check_stages(run, stages, options.resume)
    together = f", {distributed.size()} processes" if distributed.size() > 1 else ""
    run.note(f"run: {folder} on {run.device.type}{together}")
    try:
        run_stages(run, stages, options.resume)
    except Exception:
        if bare and distributed.is_main():
            remove_if_bare(folder)
        raise
    if run.complete("segmenter"):
        run.note(f"to segment other images: python -m gwsss_fast.predict IMAGES --model {run.segmenter_checkpoint}")
    cli.print_summary(run)


def read_arguments(arguments: Sequence[str]) -> Arguments:
    """The command line over its preset; with --resume, over the configuration of the run that goes on.

    Raises GwsssError for an unknown preset, option or value.
    """
    if distributed.restarted():
        arguments = [*arguments, "--resume"]
    preset, output = cli.peek(arguments, "--preset"), cli.peek(arguments, "--output")
    base = preset or "quick"
    backbone = cli.peek(arguments, "--backbone", "--model.backbone")
    if preset is None and output is not None and "--resume" in arguments:
        stored = Path(output) / "config.yaml"
        base = str(stored) if stored.is_file() else base
    default = Arguments(config=load_config(base, backbone), preset=base)
    options = cli.parse(Arguments, default, arguments, "gwsss-fast train", Arguments.__doc__ or "")
    return replace(options, config=absolute_paths(check(options.config, "command line")))


def wanted_stages(config: Config) -> tuple[str, ...]:
    """All stages, without those whose results come from elsewhere."""
    first = "pseudo" if config.pseudo.maps is not None else "classifier"
    if config.segmenter.pseudo_labels is not None:
        first = "segmenter"
    return STAGES[STAGES.index(first) :]


def choose_folder(options: Arguments) -> Path:
    """The run's folder. Raises GwsssError when it holds something and --resume is not given."""
    if options.config.output is not None:
        folder = Path(options.config.output)
        if not options.resume or not folder.is_dir():
            cli.refuse_existing(folder)
        elif any(folder.iterdir()) and not (folder / "config.yaml").is_file():
            raise GwsssError(f"output {folder} is not the folder of a run (no config.yaml); name another folder")
        return folder
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise GwsssError(
            "torchrun --max-restarts needs --output DIR: a restart has to find the run that it goes on with"
        )
    data = options.config.data.root
    data = data if data == "embedded" else Path(data).resolve().name
    preset = Path(options.preset).stem if options.preset.endswith((".yaml", ".yml")) else options.preset
    stem = f"{preset.replace('/', '-')}-{data}-"
    if options.resume:
        earlier = sorted(path.parent for path in RUNS.glob(f"{stem}*/config.yaml"))
        if earlier:
            return earlier[-1]
    return RUNS / f"{stem}{time.strftime('%Y%m%d-%H%M%S')}"


def check_stages(run: Run, stages: Sequence[str], resume: bool) -> None:
    """Raises GwsssError for an option that would stop a later one of `stages` after hours of the earlier ones."""
    # What follows a stage that runs is outdated by it and runs too.
    first = next((i for i, stage in enumerate(stages) if not (resume and run.complete(stage))), len(stages))
    todo, config = stages[first:], run.config
    if "classifier" in todo:
        check_backbone(config.model.backbone, config.model.weights)
    if "pseudo" in todo:
        check_background(run)
    if "segmenter" in todo:
        check_segmenter(config)


def run_stages(run: Run, stages: Sequence[str], resume: bool) -> None:
    """Run `stages` in order; with `resume`, a complete stage is skipped and a broken training goes on."""
    for stage in stages:
        if resume and run.complete(stage):
            run.note(f"{stage}: done before, skipped")
            continue
        go_on = distributed.on_main(lambda stage=stage: resume and not run.outdated(stage))  # type: ignore[misc]
        cli.run_stage(run, stage, stage_function(stage, go_on))


def stage_function(stage: str, resume: bool) -> Callable[[Run], None]:
    """What runs a stage; with `resume` it goes on with what it has left."""

    def classifier(run: Run) -> None:
        run.begin("classifier", resume)
        if not resume:
            run.discard("classifier")
        run.add_metrics(initialised_from={"classifier": train_classifier(run, resume)})

    def segmenter(run: Run) -> None:
        run.add_metrics(initialised_from={"segmenter": train_segmenter(run, run.data.training, resume)})

    functions: dict[str, Callable[[Run], None]] = {
        "classifier": classifier,
        "cam": partial(make_maps, resume=resume),
        "pseudo": partial(make_pseudo_labels, resume=resume),
        "segmenter": segmenter,
        "evaluate": evaluate,
        "report": write_report,
    }
    return (lambda run: distributed.on_main(lambda: functions[stage](run))) if stage in ALONE else functions[stage]


def remove_if_bare(folder: Path) -> None:
    """Remove a new run's folder that holds nothing but its configuration."""
    if [path.name for path in folder.rglob("*")] == ["config.yaml"]:
        (folder / "config.yaml").unlink()
        folder.rmdir()
        if folder.parent == RUNS and not any(RUNS.iterdir()):
            RUNS.rmdir()


if __name__ == "__main__":
    sys.exit(main())
