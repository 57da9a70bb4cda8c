"""A run that begins with another run's classifier and maps, for what differs only behind them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gwsss_fast.config import write_config
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.runs import STAGES, Run

_METRICS = ("cam", "environment")


def fork_run(source: Run, folder: Path, stages: tuple[str, ...] = ("classifier", "cam")) -> None:
    """Give `folder` what `stages` of `source` have made, as if they had run there; a run that is there stays.

    Files are linked where the disk allows it, since neither run ever writes into a file that is there.

    Raises GwsssError when one of `stages` is not complete.
    """
    if (folder / "config.yaml").is_file():
        return
    lacking = [stage for stage in stages if not source.complete(stage)]
    if lacking:
        raise GwsssError(f"{source.folder} has no complete stage {lacking[0]} to begin with; run it first")
    for stage in stages:
        for path in source.expected_files(stage):
            _link(path, folder / path.relative_to(source.folder))
    metrics = source.metrics()
    run = Run(folder, source.config, source.data, source.device, source.console)
    run.add_metrics(
        **{name: metrics[name] for name in _METRICS if name in metrics},
        seconds={stage: metrics["seconds"][stage] for stage in STAGES if stage in stages},
        initialised_from={name: x for name, x in metrics.get("initialised_from", {}).items() if name in stages},
    )
    write_config(source.config, folder / "config.yaml")  # last: a folder without it is begun again


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)
