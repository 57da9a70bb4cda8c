"""`python -m gwsss_fast.doctor`: versions, device, which backend runs which operation here, and why others do not.

--build: build the native library now, also where that failed before; it is otherwise built when it is first needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.table import Table

from gwsss_fast import cli, ops
from gwsss_fast.errors import GwsssError
from gwsss_fast.native import library
from gwsss_fast.native.build import BuildError
from gwsss_fast.training.precision import choose_device
from gwsss_fast.training.runs import environment

OPTIONAL = {
    "timm": "backbones timm:NAME",
    "pycocotools": "COCO annotations (extra `coco`)",
    "onnx": "writing ONNX files (extra `export`)",
    "onnxruntime": "running ONNX files (extra `export`)",
    "fastapi": "serve (extra `serve`)",
    "opencv-python-headless": "videos and cameras (extra `video`)",
    "triton": "Triton kernels",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return cli.run(lambda: _command(arguments))


def _command(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    unknown = [argument for argument in arguments if argument != "--build"]
    if unknown:
        raise GwsssError(f"unknown option {unknown[0]}; gwsss-fast doctor takes --build")
    console = Console()
    console.print(versions_table())
    failure = build_native() if arguments else None
    console.print(backends_table())
    console.print(native_table())
    if not torch.cuda.is_available():
        console.print("No GPU is visible to PyTorch: install a CUDA build of torch, or go on with the CPU.")
    if failure is not None:
        raise GwsssError(f"the native library could not be built: {failure}")


def build_native() -> str | None:
    """Build the library where it is not built yet; the reason if that fails."""
    try:
        library.ensure(again=True)
    except (BuildError, GwsssError, OSError) as error:
        return str(error)
    return None


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


def native_table() -> Table:
    """The native library: where it is, what built it, for which processors and GPUs; or why it is not there."""
    table = Table("what", "found", title="native library")
    note = library.missing() or library.pending() or library.prepare()
    table.add_row("state", note or "built")
    if library.loaded() is not None:
        table.add_row("file", str(library.loaded()))
        for name, value in library.information().items():
            table.add_row(name, value or "none")
        return table
    try:
        site = library.site()
    except (BuildError, GwsssError):
        return table
    table.add_row("sources", str(site.source))
    table.add_row("compiler", f"{site.tools.compiler}: {site.tools.compiler_version}")
    table.add_row("to be built in", str(site.prefix))
    if site.failure.is_file():
        table.add_row("output of the build", str(site.log))
    return table


if __name__ == "__main__":
    sys.exit(main())
