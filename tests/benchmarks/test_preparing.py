"""Building before the checks: in which order, and that it ends in time."""

import os
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.gpu import compile_ahead, launches, preparing
from benchmarks.gpu.launches import Job
from benchmarks.harness.sizes import DTYPES, ODD, PAPER, PAPER_8
from gwsss_fast.native import library
from gwsss_fast.native.build import BuildError


def test_kernels_of_the_checks_and_of_the_most_wanted_times_are_compiled_first() -> None:
    wanted = preparing.wanted_kernels("sm_90")
    assert len(wanted) == len(set(wanted))
    first = set(launches.jobs((PAPER, *ODD), list(DTYPES), ["sm_90"])) | set(
        launches.jobs((PAPER_8,), ["bfloat16"], ["sm_90"])
    )
    assert set(wanted[: len(first)]) == first
    assert len(wanted) > len(first)


def test_compiling_ends_in_time_with_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thread in place of a process: the second of three kernels takes too long, so its process is ended."""
    end, begun = threading.Event(), []

    def compiling(job: str) -> str:
        begun.append(job)
        if job == "slow":
            end.wait(30)
        return job

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int, *rest: object) -> None:
            super().__init__(workers)
            self._processes = {7: types.SimpleNamespace(kill=end.set)}

    monkeypatch.setattr(compile_ahead, "ProcessPoolExecutor", Pool)
    jobs = ["quick", "slow", "late"]
    begin = time.monotonic()
    found = dict(compile_ahead.in_processes(compiling, jobs, 1, seconds=0.5))  # type: ignore[arg-type]
    assert time.monotonic() - begin < 15
    assert found == {"quick": "quick"}
    assert begun == ["quick", "slow"]


def test_the_limit_reaches_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("module", "kernel", (), (), 4, 2, "sm_90")
    monkeypatch.setattr(preparing, "wanted_kernels", lambda card: [job])
    given: list[object] = []

    def in_processes(function: object, jobs: object, workers: int, seconds: float) -> list[object]:
        given.extend([jobs, workers, seconds])
        return []

    monkeypatch.setattr(compile_ahead, "in_processes", in_processes)
    assert preparing.kernels("sm_90", 3, 7.0) == (1, {})
    assert given == [[job], 3, 7.0]


def unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also what the test sets by itself is gone after it."""
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)


def test_triton_keeps_one_cache_whatever_the_compiler_of_pytorch_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile names another folder with its first kernel, unless there is a name already."""
    triton = pytest.importorskip("triton")
    unset(monkeypatch, "TRITON_CACHE_DIR")
    before = triton.knobs.cache.dir
    preparing.keep_one_cache()
    assert os.environ["TRITON_CACHE_DIR"] == before
    preparing.keep_one_cache()
    assert triton.knobs.cache.dir == before


@pytest.mark.parametrize(
    ("card", "wanted"), [("sm_90", "9.0a"), ("sm_80", "8.0"), ("sm_100", "10.0"), ("sm_120", "12.0")]
)
def test_the_library_is_built_for_the_card_alone(card: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "3")
    unset(monkeypatch, "TORCH_CUDA_ARCH_LIST")
    preparing.build_for(card)
    assert (os.environ["TORCH_CUDA_ARCH_LIST"], os.environ["MAX_JOBS"]) == (wanted, "3")
    preparing.build_for("sm_75")
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == wanted


def test_what_starts_a_kernel_is_built_ahead_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Triton 3.7, which starts all kernels alike; where it cannot be built, the first start will tell."""
    job = Job("module", "kernel", (), (), 4, 2, "sm_90")
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    given: list[object] = []

    class Launcher:
        def __init__(self, *arguments: object) -> None:
            given.append(arguments)
            raise AssertionError("libcuda.so cannot be found")

    kernel = types.SimpleNamespace(src="source", metadata="metadata")
    monkeypatch.setattr(compile_ahead, "compile_job", lambda job: kernel)
    monkeypatch.setattr(driver, "CudaLauncher", Launcher)
    for version in ("3.6.0", "3.7.0", "3.10.1"):
        monkeypatch.setattr(preparing.importlib.metadata, "version", lambda name, version=version: version)
        assert preparing.make_ready(job) is None
    assert given == [("source", "metadata")]

    def refused(job: Job) -> None:
        raise RuntimeError("too many registers\nthe end")

    monkeypatch.setattr(compile_ahead, "compile_job", refused)
    assert preparing.make_ready(job) == "RuntimeError: the end"


SLOW_BUILD = f"""
{preparing.HEED}
import pathlib, subprocess, sys, time
path = pathlib.Path(sys.argv[1])
try:  # from the first moment on: on a busy machine it may be stopped anywhere
    path.write_text("half")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    path.with_suffix(".child").write_text(str(child.pid))
    child.wait()
finally:
    path.unlink(missing_ok=True)
"""


def test_a_build_that_takes_too_long_is_stopped_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GWSSS_NATIVE", "1")
    written = tmp_path / "library"
    begin = time.monotonic()
    reason = preparing.native_library(2.0, [sys.executable, "-c", SLOW_BUILD, str(written)])
    assert reason == "it was not built within 2 s"
    assert time.monotonic() - begin < 20
    assert not written.exists()
    assert os.environ["GWSSS_NATIVE"] == "0"  # nothing later in this process builds it either
    if written.with_suffix(".child").is_file():
        process = Path("/proc", written.with_suffix(".child").read_text(), "stat")
        assert not process.is_file() or process.read_text().split()[2] == "Z"


def test_a_library_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "prepare_on_gpu", lambda: "said by the library")
    assert preparing.native_library(60.0, [sys.executable, "-c", ""]) == "said by the library"


@pytest.mark.parametrize(
    ("loaded", "architectures", "nvcc", "expected"),
    [(True, "", None, True), (True, "", "nvcc", False), (True, "90-real", None, False), (False, "", None, False)],
)
def test_only_a_library_built_without_nvcc_lacks_it(
    loaded: bool, architectures: str, nvcc: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Site:
        class tools:
            pass

    Site.tools.nvcc = nvcc  # type: ignore[attr-defined]
    monkeypatch.setattr(library, "loaded", lambda: Path("x") if loaded else None)
    monkeypatch.setattr(library, "information", lambda: {"cuda architectures": architectures} if loaded else {})
    monkeypatch.setattr(library, "site", lambda: Site)
    assert preparing.lacks_nvcc() is expected


def test_an_installed_library_without_its_sources_lacks_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    def site() -> None:
        raise BuildError("no sources")

    monkeypatch.setattr(library, "loaded", lambda: Path("x"))
    monkeypatch.setattr(library, "information", lambda: {"cuda architectures": ""})
    monkeypatch.setattr(library, "site", site)
    assert preparing.lacks_nvcc()
