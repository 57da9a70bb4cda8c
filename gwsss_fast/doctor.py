"""`python -m gwsss_fast.doctor`: versions, device, and which backend runs which operation here, with reasons."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table

from gwsss_fast import cli, ops
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.precision import choose_device
from gwsss_fast.training.runs import environment

OPTIONAL = {
    "timm": "backbones timm:NAME",
    "pycocotools": "COCO annotations (extra `coco`)",
    "onnx": "export (extra `export`)",
    "triton": "Triton kernels",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return cli.run(lambda: _command(arguments))


def _command(arguments: Sequence[str]) -> None:
    if arguments:
        if arguments[0] in ("-h", "--help"):
            print(__doc__)
            return
        raise GwsssError(f"unknown option {arguments[0]}; gwsss-fast doctor takes none")
    console = Console()
    console.print(versions_table())
    console.print(backends_table())
    if not torch.cuda.is_available():
        console.print("No GPU is visible to PyTorch: install a CUDA build of torch, or go on with the CPU.")


def versions_table() -> Table:
    """Versions and machine."""
    table = Table("what", "found", title="environment")
    for name, value in environment(choose_device("auto")).items():
        table.add_row(name, str(value))
    for package, use in OPTIONAL.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = f"not installed; `pip install {package}` for {use}"
        table.add_row(package, found)
    return table


def backends_table() -> Table:
    """Each operation and backend: usable, or the reasons why not."""
    table = Table("operation", "backend", "state", title="backends, tried from the fastest to the reference")
    for operation, backends in ops.available().items():
        for number, (backend, state) in enumerate(backends.items()):
            table.add_row(operation if number == 0 else "", backend, str(state))
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())
