"""The native library's build: found tools, one build for many processes, remembered failures, never a broken import."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gwsss_fast.native import build, library
from tests.processes import python

ROOT = Path(__file__).resolve().parents[2]
CRF = """
import sys, torch
from gwsss_fast import ops
prob, image = torch.rand(2, 5, 6), torch.zeros(5, 6, 3, dtype=torch.uint8)
options = dict(sxy_gaussian=3, w_gaussian=3, sxy_bilateral=80, srgb=13, w_bilateral=10, iterations=1)
print(ops.dense_crf(prob, image, **options).shape, ops.available()["dense_crf"]["cpp"])
"""


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_importing_builds_nothing(tmp_path: Path) -> None:
    code = "import gwsss_fast, gwsss_fast.doctor; gwsss_fast.ops.available(); gwsss_fast.doctor.native_table()"
    code += "; from gwsss_fast.native import dense_crf; dense_crf.forget()"
    settings = {**os.environ, "GWSSS_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=settings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*"))


def test_an_unbuilt_library_says_that_it_builds_on_first_use(tmp_path: Path) -> None:
    code = "from gwsss_fast import ops; state = ops.available()['dense_crf']['cpp']; print(bool(state), state)"
    assert python(code, GWSSS_CACHE=str(tmp_path)).stdout.startswith("True not built yet: builds on first use")
    assert "False GWSSS_NATIVE=0 forbids" in python(code, GWSSS_CACHE=str(tmp_path), GWSSS_NATIVE="0").stdout


def test_the_key_follows_source_compiler_torch_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "CMakeLists.txt").write_text("a")
    tools = build.Tools("cmake", None, "c++", "g++ 12", None)
    keys = [build.build_key(tmp_path, tools, "2.14.1"), build.build_key(tmp_path, tools, "2.11.0")]
    keys.append(build.build_key(tmp_path, build.Tools("cmake", None, "c++", "g++ 13", None), "2.14.1"))
    assert build.build_key(tmp_path, build.Tools("other", "ninja", "c++", "g++ 12", None), "2.14.1") == keys[0]
    (tmp_path / "csrc" / "x.cpp").write_text("")
    keys.append(build.build_key(tmp_path, tools, "2.14.1"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    keys.append(build.build_key(tmp_path, tools, "2.14.1"))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("programs", "compiler", "message"),
    [
        ((), "", "no C\\+\\+ compiler; install"),
        ((), "no-such-compiler", "CXX=no-such-compiler is not there"),
        (("c++",), "", "pip install cmake ninja"),
        (("c++", "cmake"), "", "pip install ninja"),
        (("c++", "cmake", "ninja"), "", "older than 3.21"),
    ],
)
def test_what_is_missing_is_named(
    programs: tuple[str, ...], compiler: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in programs:
        script(tmp_path / program, "echo version 3.1")
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(build, "_which", lambda program: shutil.which(program, path=str(tmp_path)))
    with pytest.raises(build.BuildError, match=message):
        build.find_tools(ROOT)


def test_jobs_are_bounded_by_the_setting_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "3")
    assert build.jobs(cuda=True) == 3
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(build.BuildError, match="MAX_JOBS is 'many'"):
        build.jobs(cuda=False)
    monkeypatch.delenv("MAX_JOBS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "sysconf", lambda name: 8 << 20 if name == "SC_AVPHYS_PAGES" else 1024)
    assert (build.jobs(cuda=False), build.jobs(cuda=True)) == (8, 4)
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    assert build.jobs(cuda=False) == 1


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
from gwsss_fast.native import build, library
def slow(folder, tools, prefix, log):
    with open({str(tmp_path / "builds")!r}, "a") as record:
        record.write("x")
    time.sleep(1)
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib" / build.NAME).write_text("")
build.build = slow
print(library.ensure())
"""
    with ThreadPoolExecutor(2) as pool:
        cache = str(tmp_path / "cache")
        outputs = [done.stdout for done in pool.map(lambda _: python(code, GWSSS_CACHE=cache), range(2))]
    assert outputs[0] == outputs[1] != ""
    assert (tmp_path / "builds").read_text() == "x"


def test_a_failure_is_remembered_and_explained_and_breaks_nothing(tmp_path: Path) -> None:
    """A compiler that fails: the reference computes, the second process does not try again, doctor says what to do."""
    tries = tmp_path / "tries"
    compiler = script(
        tmp_path / "compiler",
        f'case "$*" in --version) echo broken 1.0;; *) echo x >> {tries}; echo "error: cosmic ray"; exit 1;; esac',
    )
    settings = {"GWSSS_CACHE": str(tmp_path / "cache"), "CXX": str(compiler)}
    first = python(CRF, **settings)
    assert first.returncode == 0, first.stderr
    assert "torch.Size([2, 5, 6]) the native library cannot be used" in first.stdout
    assert "building the native library, once ... failed" in first.stderr
    count = len(tries.read_text())
    second = python(CRF, **settings)
    assert "building the native library failed" in second.stdout
    assert "doctor --build` tries again" in second.stdout
    assert (second.stderr, len(tries.read_text())) == ("", count)
    told = python(
        "import sys; from gwsss_fast import doctor; sys.exit(doctor.main(['--build']))", COLUMNS="300", **settings
    )
    assert told.returncode == 2
    assert len(tries.read_text()) > count
    (log,) = (tmp_path / "cache" / "native").glob("*.log")
    assert str(log) in told.stdout
    assert "error: the native library could not be built" in told.stderr
    leftovers = [path for path in (tmp_path / "cache" / "native").iterdir() if path.is_dir()]
    assert not leftovers


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = python(CRF, GWSSS_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr
    assert "set GWSSS_CACHE" in done.stdout


def test_the_library_says_what_built_it() -> None:
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)
    source = build.source_folder()
    assert source is not None
    information = library.information()
    assert information["sources"] == build.source_hash(source)
    assert information["instruction set in use"] in information["instruction sets"].split(";")
    assert information["compiler"]
    assert library.missing() is library.pending() is None


def test_the_library_uses_nothing_newer_than_the_oldest_torch() -> None:
    """It is compiled for torch 2.11, and its symbols from torch are those of the stable C interface."""
    reason = library.prepare()
    if reason is not None or shutil.which("nm") is None:
        pytest.skip(reason or "nm is not installed")
    assert "TORCH_TARGET_VERSION 0x020b000000000000" in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    listed = subprocess.run(["nm", "-D", "-u", "-C", library.loaded()], capture_output=True, text=True, check=True)
    undefined = {line.split()[-1] for line in listed.stdout.splitlines()}
    foreign = {name for name in undefined if "torch" in name or "c10" in name or "at::" in name}
    assert any(name.startswith("torch_parallel_for") for name in foreign)
    assert all(name.startswith(("torch_", "aoti_torch_")) for name in foreign), foreign


def test_the_example_in_cpp_finds_links_and_runs(tmp_path: Path) -> None:
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)
    path = library.loaded()
    source = build.source_folder()
    assert path is not None
    assert source is not None
    tools = build.find_tools(source)
    folder = tmp_path / "build"
    configure = [tools.cmake, "-S", source / "csrc/examples", "-B", folder, f"-DCMAKE_PREFIX_PATH={path.parents[1]}"]
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools.ninja}"] if tools.ninja else []
    for command in (
        [*configure, f"-DCMAKE_CXX_COMPILER={tools.compiler}", *generator],
        [tools.cmake, "--build", folder],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([folder / "crf"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "69.6 % of the pixels right before, 100.0 % after" in done.stdout
    assert "dense_crf: prob has no labels" in done.stdout


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        ("", '"80-real;90a-real;100-real;100-virtual"'),
        ("9.0a+PTX 8.6", '"90a-real;90a-virtual;86-real"'),
        ("hopper", "TORCH_CUDA_ARCH_LIST holds 'hopper'"),
        (None, "no nvcc; the CPU parts"),
    ],
)
def test_cuda_sources_are_for_the_wanted_cards_where_there_is_nvcc(
    wanted: str | None, answer: str, tmp_path: Path
) -> None:
    """Configured with a stand-in for a kernel; None: as on a machine without nvcc."""
    try:
        tools = build.find_tools(ROOT)
    except build.BuildError as error:
        pytest.skip(str(error))
    if wanted is not None and shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    (tmp_path / "csrc" / "cuda").mkdir(exist_ok=True)
    (tmp_path / "csrc" / "cuda" / "stand_in.cu").write_text("__global__ void stand_in() {}\n")
    assert build.has_cuda_sources(tmp_path)
    command = [tools.cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-DGWSSS_TORCH={build.torch_folder()}"]
    if wanted is None:
        command.append("-DCMAKE_CUDA_COMPILER=NOTFOUND")
    settings = {**os.environ, "TORCH_CUDA_ARCH_LIST": wanted or ""}
    done = subprocess.run(list(map(str, command)), env=settings, capture_output=True, text=True, check=False)
    information = tmp_path / "build" / "build_info.h"
    told = done.stdout + done.stderr + (information.read_text() if information.is_file() else "")
    assert answer in told.replace("\n", " ").replace("  ", " "), told


def test_an_older_nvcc_is_not_asked_for_cards_it_does_not_know(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    try:
        cmake = build.find_tools(ROOT).cmake
    except build.BuildError as error:
        pytest.skip(str(error))
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    older = script(tmp_path / "nvcc", f'if [ "$*" = --version ]; then echo release 12.4; else exec {nvcc} "$@"; fi')
    command = [cmake, "-S", ROOT, "-B", tmp_path / "build", f"-DGWSSS_TORCH={build.torch_folder()}"]
    settings = {**os.environ, "TORCH_CUDA_ARCH_LIST": ""}
    command.append(f"-DCMAKE_CUDA_COMPILER={older}")
    done = subprocess.run(list(map(str, command)), env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    information = (tmp_path / "build" / "build_info.h").read_text()
    assert '"80-real;90a-real;90-real;90-virtual"' in information
