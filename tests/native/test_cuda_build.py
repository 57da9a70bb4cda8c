"""The kernels in CUDA compile for every card they are meant for, whether or not there is a GPU: without spills.

The library is built with nvcc once for each state of its sources and kept in the cache; the assembler's words are in
the build's output. Then it is a library as any other: it loads on this machine, and says what it was built for.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gwsss_fast.native import build, library

ROOT = Path(__file__).resolve().parents[2]
CARDS = {"sm_80", "sm_90a", "sm_100"}
MOST_REGISTERS = 128
MOST_SHARED = 48 << 10  # bytes that a kernel has without asking for more
ENSURE = """
import json
from gwsss_fast.native import library
path = library.ensure()
site = library.site()
told = site.cuda_failure.read_text() if site.cuda_failure.is_file() else ""
print(json.dumps([str(path), str(site.log), told]))
"""
LOADED = """
import json, torch
from gwsss_fast import ops
from gwsss_fast.native import library
assert library.prepare() is None
has = torch._C._dispatch_has_kernel_for_dispatch_key
names = [name.split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("gwsss_fast_native")]
print(json.dumps([library.information(), sorted(name for name in names if has(name, "CUDA")),
                  {name: str(states["cuda"]) for name, states in ops.available().items()}]))
"""


def python(code: str) -> list:
    """What a process prints whose library is built for all cards."""
    settings = {**os.environ, "TORCH_CUDA_ARCH_LIST": "8.0;9.0a;10.0+PTX"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def built() -> tuple[Path, str]:
    """The library with its parts for GPUs, and the output of its build."""
    try:
        tools = build.find_tools(ROOT)
    except build.BuildError as error:
        pytest.skip(str(error))
    if tools.nvcc is None:
        pytest.skip("nvcc is not installed")
    path, log, failure = python(ENSURE)
    assert not failure
    return Path(path), Path(log).read_text(encoding="utf-8")


def kernels(log: str) -> Iterator[tuple[str, str, int, int, int, int]]:
    """(name, card, stack bytes, spilled bytes, registers, bytes of shared memory) of each kernel."""
    for found in re.finditer(
        r"Compiling entry function '(\S+)' for '(\w+)'\n"
        r".*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*?Used (\d+) registers([^\n]*)",
        log,
        re.DOTALL,
    ):
        name, card, *numbers, rest = found.groups()
        stack, stores, loads, registers = map(int, numbers)
        shared = re.search(r"(\d+) bytes smem", rest)
        yield name, card, stack, stores + loads, registers, int(shared[1]) if shared else 0


def test_no_kernel_spills(built: tuple[Path, str]) -> None:
    found = list(kernels(built[1]))
    assert len(found) == built[1].count("Compiling entry function")
    for card in CARDS:
        assert sum(kernel[1] == card for kernel in found) >= 40, card
    assert {kernel[1] for kernel in found} == CARDS
    for kernel in found:
        _, _, stack, spilled, registers, shared = kernel
        assert (stack, spilled) == (0, 0), kernel
        assert registers <= MOST_REGISTERS, kernel
        assert shared <= MOST_SHARED, kernel


def test_the_library_for_gpus_loads_anywhere(built: tuple[Path, str]) -> None:
    information, on_gpu, states = python(LOADED)
    assert information["cuda architectures"] == "80-real;90a-real;100-real;100-virtual"
    assert information["nvcc"]
    for operation in ("dense_crf", "graph_dropout"):
        assert {f"gwsss_fast_native::{operation}", f"gwsss_fast_native::{operation}_backward"} <= set(on_gpu)
        assert re.search("no GPU is visible|usable|cannot use this GPU", states[operation])


def test_pixels_are_located_without_fused_multiplication(built: tuple[Path, str], tmp_path: Path) -> None:
    """As on the CPU: a product that is not rounded before it is added would put pixels into other simplices."""
    nvcc = build.find_tools(ROOT).nvcc
    assert nvcc is not None
    (command,) = set(re.findall(r"set_source_files_properties\(csrc/cuda/dense_crf\.cu .*?(-fmad=false)\)", _cmake()))
    texts = []
    for flags in ([command], []):
        listing = tmp_path / "dense_crf.ptx"
        source = ROOT / "csrc" / "cuda" / "dense_crf.cu"
        arguments = [nvcc, "-std=c++17", "-arch=compute_80", "-ptx", *flags, "-o", listing, source]
        subprocess.run(list(map(str, arguments)), check=True, capture_output=True)
        (text,) = re.findall(r"\.entry \S*LocateILi5\S*\((.*?)\n}", listing.read_text(), re.DOTALL)
        texts.append(text)
    assert "fma.rn.f32" not in texts[0]
    assert "fma.rn.f32" in texts[1]  # so it is the flag that does it


def _cmake() -> str:
    return (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def test_without_a_gpu_the_first_use_builds_for_the_cpu_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """nvcc would double the time of a build whose kernels nobody can run; TORCH_CUDA_ARCH_LIST asks for it anyway."""
    nvcc = shutil.which("true")
    monkeypatch.setattr(build, "_find_nvcc", lambda: nvcc)
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path))
    library._tools.cache_clear()
    seen = []
    try:
        for gpu, wanted in ((False, ""), (True, ""), (False, "9.0a")):
            monkeypatch.setattr(library.torch.cuda, "is_available", lambda gpu=gpu: gpu)
            monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
            seen.append(library.site().tools.nvcc)
    except build.BuildError as error:
        pytest.skip(str(error))
    finally:
        library._tools.cache_clear()
    assert seen == [None, nvcc, nvcc]
    assert build.find_tools(ROOT).nvcc == nvcc  # ahead of time


def test_where_nvcc_fails_the_parts_for_the_cpu_are_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = build.Tools("cmake", None, "c++", "g++ 12", "nvcc")
    where = library.Site(ROOT, tools, tmp_path / "key")
    tried = []

    def attempt(source: Path, tools: build.Tools, prefix: Path, log: Path) -> None:
        tried.append((tools.nvcc, log.name))
        if tools.nvcc is not None:
            raise build.BuildError("nvcc: unsupported compiler")

    monkeypatch.setattr(build, "build", attempt)
    library._build(where)
    assert tried == [("nvcc", "key.log"), (None, "key.cpu.log")]
    assert where.cuda_failure.read_text() == "nvcc: unsupported compiler\n"


def test_what_is_missing_on_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert library.missing_on_gpu() == "no GPU is visible to PyTorch"
    if (reason := library.prepare()) is not None or library._prebuilt() or os.environ.get("TORCH_CUDA_ARCH_LIST"):
        pytest.skip(reason or "the library was not built on first use on a machine without a GPU")
    assert not library.information()["cuda architectures"]
    monkeypatch.setattr(library.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(library, "_gpu_problem", library._gpu_problem.__wrapped__)
    assert "built without nvcc (architectures built: none" in str(library.missing_on_gpu())
