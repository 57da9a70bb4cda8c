"""The report of an export, at the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gwsss_fast.errors import GwsssError
from gwsss_fast.export.runtimes import Runtime, open_runtime


def present_runtimes(path: Path, device: torch.device) -> tuple[list[Runtime], dict[str, str]]:
    """Everything that runs the file here, and why the rest does not, by device."""
    runtimes: list[Runtime] = []
    refused = {}
    for name in dict.fromkeys(("cpu", str(device))):
        try:
            runtimes.append(open_runtime(path, name))
        except GwsssError as error:
            refused[name] = str(error)
    return runtimes, refused


def show(facts: dict[str, Any]) -> None:
    """The report as tables."""
    console = Console()
    if facts["agreement"]:
        title = f"Against eager fp32: {facts['images']}"
        table = Table(
            "runtime",
            "equal pixels",
            "largest logit difference",
            "mIoU",
            title=title,
        )
        for name, scores in facts["agreement"].items():
            difference, miou = "-", "-"
            if "logit_difference" in scores:
                difference = f"{scores['logit_difference']:.2g} of {scores['logit_scale']:.3g}"
            if "miou" in scores:
                miou = f"{scores['miou']:.2f} % ({scores['miou_difference']:+.2f})"
            table.add_row(name, f"{100 * scores['pixel_agreement']:.3f} %", difference, miou)
        console.print(table)
    table = Table("runtime", "batch", "size", "p50 ms", "p90 ms", "images/s", title="Speed, in turns")
    for row in facts["timings"]:
        size = f"{row['width']}x{row['height']}"
        numbers = (f"{row[name]:.1f}" for name in ("p50_ms", "p90_ms", "images_per_second"))
        table.add_row(row["runtime"], str(row["batch"]), size, *numbers)
    console.print(table)
    for note in facts["notes"]:
        print(note)
    for name, reason in facts["not_run"].items():
        print(f"not run on {name}: {reason}", file=sys.stderr)
    if facts["passed"] is False:
        print(f"agreement is below {facts['bound']}; exit status 1", file=sys.stderr)
