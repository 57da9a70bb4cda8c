"""`python -m gwsss_fast.report_run --run DIR`: the HTML report of a run, DIR/report.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from gwsss_fast import cli, distributed
from gwsss_fast.errors import GwsssError
from gwsss_fast.report import build_report
from gwsss_fast.training.build import load_classifier
from gwsss_fast.training.runs import STAGES, Run
from gwsss_fast.training.segmenter import load_segmenter


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status. `report DIR` is the same as `report --run DIR`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--run")
    return cli.run(lambda: _command(arguments))


def _command(arguments: Sequence[str]) -> None:
    _, run = cli.open_stage(cli.StageArguments, "report", arguments)
    cli.run_stage(run, "report", lambda run: distributed.on_main(lambda: write_report(run)))
    if distributed.is_main():
        print(run.folder / "report.html")


def write_report(run: Run) -> None:
    """Write report.html of a run's folder. Raises GwsssError when no stage has left anything there."""
    if not any(run.begun(stage) for stage in STAGES[:-1]):
        raise GwsssError(f"{run.folder} holds nothing to report; run stage {STAGES[0]} and those after it first")
    run.begin("report", False)

    def classifier(checkpoint: Path) -> nn.Module:
        return load_classifier(run.config, checkpoint, run.data.classes)[0].to(run.device)

    def segmenter(checkpoint: Path) -> nn.Module:
        return load_segmenter(run.config, checkpoint, run.data.classes).to(run.device)

    build_report(run.folder, data=run.data, load_classifier=classifier, load_segmenter=segmenter)


if __name__ == "__main__":
    sys.exit(main())
