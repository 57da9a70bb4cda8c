"""What has to be built before anything can be checked on a GPU, each within a limit of seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import compile_ahead, launches
from benchmarks.launches import Job
from benchmarks.sizes import DTYPES, LARGE, ODD, PAPER, PAPER_8
from gwsss_fast.native import library
from gwsss_fast.native.build import BuildError

ORDER = (
    ((PAPER,), tuple(DTYPES)),
    ((PAPER_8,), ("bfloat16",)),
    (ODD, tuple(DTYPES)),
    ((LARGE,), ("bfloat16",)),
    ((PAPER_8,), ("float32", "float16")),
)
"""Sizes and dtypes whose kernels are compiled: those of the checks and of the most wanted times before the others."""
HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""A program that was started in the background ignores interrupts, and so do those that it starts."""
BUILD = (sys.executable, "-c", f"{HEED}; from gwsss_fast.native import library; library.prepare_on_gpu()")


def wanted_kernels(card: str) -> list[Job]:
    """In the order in which they are compiled."""
    found: dict[Job, None] = {}
    for sizes, dtypes in ORDER:
        found |= dict.fromkeys(launches.jobs(sizes, dtypes, [card]))
    return list(found)


def kernels(card: str, workers: int, seconds: float) -> tuple[int, dict[Job, str | None]]:
    """Fill Triton's cache: how many kernels are wanted, and the error, or None, of each that was done in time."""
    wanted = wanted_kernels(card)
    return len(wanted), compile_ahead.warm_cache(wanted, workers, seconds)


def native_library(seconds: float, command: Sequence[str] = BUILD) -> str | None:
    """Why the native library's kernels for GPUs cannot be used here, or None. It is built by a process of its own.

    Where that takes longer than `seconds`, this process will do without the library: no check must wait for a build.
    """
    child = subprocess.Popen(command, start_new_session=True)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        _stop(child)
        os.environ["GWSSS_NATIVE"] = "0"
        return f"it was not built within {seconds:.0f} s"
    return library.prepare_on_gpu()


def _stop(child: subprocess.Popen[bytes]) -> None:
    """The process and the compilers that it started; it is given the time to remove what they have written."""
    for number, patience in ((signal.SIGINT, 5.0), (signal.SIGKILL, None)):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def lacks_nvcc() -> bool:
    """Whether the library's parts for the CPU are in use, and those for GPUs missing for want of the CUDA toolkit."""
    if library.loaded() is None or library.information().get("cuda architectures"):
        return False
    try:
        return library.site().tools.nvcc is None
    except BuildError:  # an installed library whose sources or compiler are not here
        return True
