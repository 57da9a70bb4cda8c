"""What has to be built before anything can be checked on a GPU, each within a limit of seconds."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu import compile_ahead, launches
from benchmarks.gpu.launches import Job
from benchmarks.harness.sizes import DTYPES, LARGE, ODD, PAPER, PAPER_8
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


def card_of(device: str) -> str:
    """Such as "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def wanted_kernels(card: str) -> list[Job]:
    """In the order in which they are compiled."""
    found: dict[Job, None] = {}
    for sizes, dtypes in ORDER:
        found |= dict.fromkeys(launches.jobs(sizes, dtypes, [card]))
    return list(found)


def keep_one_cache() -> None:
    """Hold Triton to the folder of its cache, in this process and those that it starts.

    torch.compile moves it to another with the first kernel of its own; what was compiled ahead would not be found any
    more, and kernels that start after that would be compiled again, one after the other.
    """
    from triton import knobs

    os.environ.setdefault("TRITON_CACHE_DIR", str(knobs.cache.dir))


def kernels(card: str, workers: int, seconds: float) -> tuple[int, dict[Job, str | None]]:
    """Fill Triton's cache: how many kernels are wanted, and the error, or None, of each that was done in time."""
    wanted = wanted_kernels(card)
    return len(wanted), dict(compile_ahead.in_processes(make_ready, wanted, workers, seconds))


def make_ready(job: Job) -> str | None:
    """Put all into Triton's cache that the first start of a kernel needs; the error, or None."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Triton prints the whole program that ptxas refused
            kernel = compile_ahead.compile_job(job)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
    with contextlib.suppress(Exception):  # the first start builds it too
        build_launcher(kernel)
    return None


def build_launcher(kernel: Any) -> None:
    """Triton before 3.7 starts kernels by a C extension for each list of argument types, built on the first start."""
    if tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) < (3, 7):
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(kernel.src, kernel.metadata)


def build_for(card: str) -> None:
    """Have the native library built, here and by processes started from here, for `card` alone, by all cores: a third
    of the time for all cards. What the user has set stays. Free memory says little of a virtual machine, whose memory
    grows with its use."""
    number = card.removeprefix("sm_")
    own = "a" if number == "90" else ""  # code for clusters is compiled for 9.0a
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{number[:-1]}.{number[-1]}{own}")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))


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


def native_library_is_ready() -> bool:
    """Whether a process before this one has built the library's kernels for GPUs."""
    return library.pending() is None and library.prepare_on_gpu() is None


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
