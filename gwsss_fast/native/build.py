"""Builds the native library with CMake from CMakeLists.txt and csrc/, which are installed with the package.

Needs only the standard library, so that `setup.py` can run it before the package is installed. Ahead of time the parts
for GPUs are compiled wherever there is nvcc; on first use only where somebody can run them, see `library`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "libgwsss_fast.so"
SOURCES = "libgwsss_fast.sources"  # beside it: the hash of what it was built from
CMAKE_AT_LEAST = (3, 21)
_GIB = 1 << 30


class BuildError(Exception):
    """The library cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Tools:
    """What builds the library: paths of programs, versions as they print them."""

    cmake: str
    ninja: str | None
    compiler: str
    compiler_version: str
    nvcc: str | None
    launcher: tuple[str, ...] = ()  # what stands before the compiler in $CXX, such as ccache
    compiler_flags: tuple[str, ...] = ()  # what stands after it


def source_folder() -> Path | None:
    """Where CMakeLists.txt and csrc/ lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next((folder for folder in (package, package.parent) if (folder / "CMakeLists.txt").is_file()), None)


def source_files(folder: Path) -> list[Path]:
    """Everything that the build reads."""
    return [folder / "CMakeLists.txt", *sorted(path for path in (folder / "csrc").rglob("*") if path.is_file())]


def source_hash(folder: Path) -> str:
    """A hash of names and contents of the sources."""
    digest = hashlib.sha256()
    for path in source_files(folder):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def built_from(prefix: Path) -> str | None:
    """The hash of the sources of the library that lies in `prefix`; None where it does not say."""
    told = prefix / "lib" / SOURCES
    return told.read_text(encoding="utf-8").strip() if told.is_file() else None


def torch_folder() -> Path:
    """The torch package, found without importing it. Raises BuildError without one."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise BuildError("torch is not installed; python -m pip install torch")
    return Path(next(iter(found.submodule_search_locations)))


def has_cuda_sources(folder: Path) -> bool:
    """Whether there is anything for nvcc to do."""
    return any((folder / "csrc" / "cuda").glob("*.cu"))


def find_tools(folder: Path, cuda: bool = True) -> Tools:
    """cuda: with nvcc, where there is one, whether or not there is a GPU.

    Raises BuildError, which names what is missing and how to get it.
    """
    if platform.system() != "Linux":
        raise BuildError(f"the native library is for Linux, not for {platform.system()}")
    words = os.environ.get("CXX", "").split()
    programs = list(itertools.takewhile(lambda word: not word.startswith("-"), words))  # "ccache g++ -m64"
    for word in dict.fromkeys([*programs[:1], *programs[-1:]]):
        if _which(word) is None:
            raise BuildError(f"CXX={word} is not there; install g++ 11 or newer (Debian: apt-get install g++)")
    compiler = next(filter(None, map(_which, programs[-1:] or ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise BuildError("there is no C++ compiler; install g++ 11 or newer (Debian: apt-get install g++)")
    cmake = _which("cmake")
    if cmake is None:
        raise BuildError("there is no cmake; python -m pip install cmake ninja")
    ninja = _which("ninja")
    if ninja is None and _which("make") is None:
        raise BuildError("there is no ninja; python -m pip install ninja")
    numbers = re.search(r"(\d+)\.(\d+)", _first_line([cmake, "--version"]))
    if numbers is None or tuple(map(int, numbers.groups())) < CMAKE_AT_LEAST:
        raise BuildError(f"{cmake} is older than {'.'.join(map(str, CMAKE_AT_LEAST))}; python -m pip install -U cmake")
    nvcc = _find_nvcc() if cuda and has_cuda_sources(folder) else None
    version = _first_line([compiler, "--version"])
    return Tools(cmake, ninja, compiler, version, nvcc, tuple(programs[:-1]), tuple(words[len(programs) :]))


def _which(program: str) -> str | None:
    """Programs that pip installed beside this Python come first: its folder need not be on PATH."""
    own = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    return shutil.which(program, path=os.pathsep.join([*own, os.environ.get("PATH", os.defpath)]))


def _find_nvcc() -> str | None:
    given = [os.environ.get("CUDACXX")]
    given += [f"{os.environ[name]}/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for found in filter(None, map(shutil.which, [*filter(None, given), "nvcc"])):
        with contextlib.suppress(BuildError):  # the CPU's parts do without it
            _first_line([found, "--version"])
            return found
    return None


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Raises BuildError where the program cannot be started: it is for other machines, or what is to run it is gone."""
    try:
        return subprocess.run(command, text=True, errors="replace", check=False, **options)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror}; install it again or take another") from error


def _first_line(command: list[str]) -> str:
    done = _run(command, capture_output=True)
    return (done.stdout or done.stderr).partition("\n")[0]


def build_key(folder: Path, tools: Tools, torch_version: str) -> str:
    """Names a build: another torch, compiler, source or setting makes another one."""
    parts = [source_hash(folder), torch_version, tools.compiler, tools.compiler_version, platform.machine()]
    parts += [_first_line([tools.nvcc, "--version"]) if tools.nvcc else "", os.environ.get("CXXFLAGS", "")]
    parts += [os.environ.get(name, "") for name in ("TORCH_CUDA_ARCH_LIST", "GWSSS_SANITIZE")] + [*tools.compiler_flags]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def jobs(cuda: bool) -> int:
    """$MAX_JOBS, else as many compilers at once as there are cores and memory for (2 GiB each with nvcc, else 1)."""
    if asked := os.environ.get("MAX_JOBS"):
        if not asked.isdigit() or int(asked) < 1:
            raise BuildError(f"MAX_JOBS is {asked!r}; give a number of 1 or more")
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        memory = 4 * _GIB
    return max(1, min(cores, memory // (_GIB * (2 if cuda else 1))))


def build(folder: Path, tools: Tools, prefix: Path, log: Path) -> None:
    """Configure, compile and install to `prefix`, which appears whole or not at all; what was printed goes to `log`.

    A folder that is there already is replaced. Raises BuildError with the first error of the compiler.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{prefix.name}.", dir=prefix.parent) as temporary:
        work, installed = Path(temporary) / "build", Path(temporary) / "installed"
        configure = [tools.cmake, "-S", str(folder), "-B", str(work), f"-DCMAKE_INSTALL_PREFIX={prefix}"]
        configure += [f"-DGWSSS_TORCH={torch_folder()}"]
        configure += [f"-DCMAKE_CXX_COMPILER={';'.join([tools.compiler, *tools.compiler_flags])}"]
        if tools.launcher:
            configure += [f"-DCMAKE_CXX_COMPILER_LAUNCHER={';'.join(tools.launcher)}"]
        configure += [f"-DGWSSS_SOURCE_HASH={source_hash(folder)}"]
        configure += [f"-DGWSSS_SANITIZE={os.environ.get('GWSSS_SANITIZE', '')}"]
        if tools.ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools.ninja}"]
        configure += [f"-DCMAKE_CUDA_COMPILER={tools.nvcc or 'NOTFOUND'}"]  # CMake would look for one by itself
        parallel = str(jobs(tools.nvcc is not None))
        with log.open("w", encoding="utf-8") as output:
            for command in (
                configure,
                [tools.cmake, "--build", str(work), "--parallel", parallel],
                [tools.cmake, "--install", str(work), "--prefix", str(installed), "--strip"],
            ):
                output.write(f"$ {' '.join(command)}\n")
                output.flush()
                if _run(command, stdout=output, stderr=subprocess.STDOUT).returncode != 0:
                    raise BuildError(f"{_first_error(log)}; the whole output is in {log}")
        (installed / "lib" / SOURCES).write_text(f"{source_hash(folder)}\n", encoding="utf-8")
        shutil.rmtree(prefix, ignore_errors=True)  # what has lost its library: only an empty folder can be replaced
        os.replace(installed, prefix)


def _first_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.strip() for line in lines if re.search(r"\berror\b|Error", line)]
    return (errors or lines or ["the build failed"])[0][:300]
