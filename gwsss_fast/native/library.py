"""The native library in this process: found, built on first use, or the reason why not.

It is looked for in the package (built by `GWSSS_BUILD_NATIVE=1 pip install --no-build-isolation .`), then in the cache
folder under a key of torch, compiler and sources, and built there when neither has it. Importing the package never
builds. GWSSS_NATIVE=0 forbids the library. On first use the parts for GPUs are built only where there is a GPU or
TORCH_CUDA_ARCH_LIST names some; where nvcc fails, the parts for the CPU are built without them.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gwsss_fast.errors import GwsssError
from gwsss_fast.files import cache_folder, write_text
from gwsss_fast.native import build
from gwsss_fast.native.build import BuildError, Tools

log = logging.getLogger("gwsss_fast")

PREBUILT = Path(__file__).resolve().parent / "prebuilt"
_FORBIDDEN = "GWSSS_NATIVE=0 forbids the native library"
_NOT_BUILT = "not built yet: builds on first use, in about half a minute"
_loaded: Path | None = None
_load_failure: str | None = None


@dataclass(frozen=True)
class Site:
    """Where the library of this torch, compiler and source lies or is to be built."""

    source: Path
    tools: Tools
    prefix: Path

    @property
    def library(self) -> Path:
        return self.prefix / "lib" / build.NAME

    @property
    def log(self) -> Path:
        return self.prefix.with_suffix(".log")

    @property
    def failure(self) -> Path:
        return self.prefix.with_suffix(".failed")

    @property
    def cuda_failure(self) -> Path:
        return self.prefix.with_suffix(".cuda-failed")


def _constant(function: Callable[[], str | None]) -> Callable[[], str | None]:
    """torch.compile calls it while tracing. (torch.compiler.assume_constant_result would import all of TorchDynamo.)"""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def loaded() -> Path | None:
    """The library in use by this process, if any."""
    return _loaded


@_constant
def missing() -> str | None:
    """Why the library cannot be used here, or None. Does not build: it may still be `pending`. Never raises."""
    if _loaded is not None:
        return None
    if _forbidden():
        return _FORBIDDEN
    if _load_failure is not None:
        return _load_failure
    if _prebuilt() is not None:
        return None
    try:
        where = site()
        if not where.library.is_file() and where.failure.is_file():
            reason = where.failure.read_text(encoding="utf-8").strip()
            return f"building the native library failed: {reason}; `python -m gwsss_fast.doctor --build` tries again"
    except (BuildError, GwsssError, OSError) as error:
        return f"the native library cannot be built: {error}"
    return None


@_constant
def missing_on_gpu() -> str | None:
    """As `missing`, for the parts that run on a GPU."""
    if not torch.cuda.is_available():
        return "no GPU is visible to PyTorch"
    reason = missing()
    if reason is None and _loaded is not None:
        return _gpu_problem()
    if reason is None and _prebuilt() is None and site().tools.nvcc is None:
        return "the native library cannot be built for GPUs: no nvcc; install the CUDA toolkit, or set CUDA_HOME"
    return reason


@functools.cache
def _gpu_problem() -> str | None:
    """Asks the loaded library whether its kernels can run on the current GPU."""
    library = ctypes.CDLL(str(_loaded))
    library.gwsss_fast_cuda_problem.restype = ctypes.c_char_p
    problem = library.gwsss_fast_cuda_problem().decode()
    if not problem:
        return None
    built = information()["cuda architectures"].replace(";", ", ") or "none"
    if _prebuilt() is None and (where := site()).cuda_failure.is_file():
        failure = where.cuda_failure.read_text(encoding="utf-8").strip()
        problem = f"nvcc failed: {failure}; delete {where.prefix} to try again"
    return f"the native library cannot use this GPU: {problem} (architectures built: {built}; see TORCH_CUDA_ARCH_LIST)"


@_constant
def prepare_on_gpu() -> str | None:
    """As `prepare`, for the parts that run on a GPU."""
    return prepare() or missing_on_gpu()


@_constant
def pending() -> str | None:
    """What is still to be done before the first use, or None."""
    if _loaded is not None or _prebuilt() is not None or missing() is not None:
        return None
    return None if site().library.is_file() else _NOT_BUILT


@_constant
def prepare() -> str | None:
    """Load the library, building it if need be; the reason if that cannot be done."""
    global _loaded, _load_failure
    if _loaded is not None:
        return None
    reason = missing()
    if reason is not None:
        return reason
    try:
        path = _prebuilt() or ensure()
        torch.ops.load_library(path)
        _loaded = path
    except (BuildError, GwsssError, OSError, RuntimeError) as error:
        _load_failure = f"the native library cannot be used: {error}"
        log.warning("%s; `python -m gwsss_fast.doctor` says more", _load_failure)
    return _load_failure


def _prebuilt() -> Path | None:
    return _of_these_sources(PREBUILT)


@functools.cache
def _of_these_sources(prefix: Path) -> Path | None:
    """The library in `prefix`, unless the sources have changed since it was built, as they do in a checkout."""
    path, source = prefix / "lib" / build.NAME, build.source_folder()
    if not path.is_file():
        return None
    if source is None or build.built_from(prefix) == build.source_hash(source):
        return path
    log.warning("%s was built from other sources and is not used; install gwsss_fast again or delete it", path)
    return None


def _forbidden() -> bool:
    return os.environ.get("GWSSS_NATIVE") == "0"


def _wants_cuda() -> bool:
    """Whether a build on first use is for GPUs too; ahead of time it always is where there is nvcc."""
    return torch.cuda.is_available() or bool(os.environ.get("TORCH_CUDA_ARCH_LIST"))


@functools.cache
def _tools(path: str, compiler: str | None, cuda: bool) -> Tools | BuildError:
    """What was found, or why not: every call of an operation asks."""
    source = build.source_folder()
    try:
        if source is None:
            raise BuildError("its sources were not installed; install gwsss_fast again")
        return build.find_tools(source, cuda)
    except BuildError as error:
        return error.with_traceback(None)


@functools.cache
def _source_key(source: Path, tools: Tools, *settings: str | None) -> str:
    return build.build_key(source, tools, torch.__version__)


def site() -> Site:
    """Raises BuildError when something that the build needs is missing, GwsssError without a cache folder."""
    environment = os.environ
    tools = _tools(environment.get("PATH", ""), environment.get("CXX"), _wants_cuda())
    if isinstance(tools, BuildError):
        raise BuildError(str(tools))
    source = build.source_folder()
    assert source is not None  # _tools has looked
    settings = [environment.get(name) for name in ("CXXFLAGS", "TORCH_CUDA_ARCH_LIST", "GWSSS_SANITIZE")]
    return Site(source, tools, cache_folder() / "native" / _source_key(source, tools, *settings))


def ensure(again: bool = False) -> Path:
    """The library's path, after building it if it is not there. again: also where building failed before.

    One process builds, others wait for it. Raises BuildError with the reason, which is remembered where the build was
    tried.
    """
    if _forbidden():
        raise BuildError(_FORBIDDEN)
    where = site()
    if where.library.is_file():
        return where.library
    build.jobs(where.tools.nvcc is not None)  # a wrong setting is told before: it is not a build that failed
    with _lock(where.prefix):
        if where.library.is_file():
            return where.library
        if where.failure.is_file():
            if not again:
                raise BuildError(where.failure.read_text(encoding="utf-8").strip())
            where.failure.unlink()
        started = time.monotonic()
        without = " (no nvcc: the CPU parts only)" if _lacks_nvcc(where) else ""
        _say(f"gwsss_fast: building the native library, once{without} ... ")
        try:
            _build(where)
        except BuildError as error:
            _say("failed\n")
            write_text(where.failure, f"{error}\n")
            raise
        _say(f"done in {time.monotonic() - started:.0f} s\n")
    return where.library


def _build(where: Site) -> None:
    """All parts; where nvcc is there and fails, those for the CPU."""
    try:
        build.build(where.source, where.tools, where.prefix, where.log)
    except BuildError as error:
        if where.tools.nvcc is None:
            raise
        _say("the parts for GPUs failed, `python -m gwsss_fast.doctor` says why ... ")
        write_text(where.cuda_failure, f"{error}\n")
        log_of_rest = where.prefix.with_suffix(".cpu.log")
        build.build(where.source, replace(where.tools, nvcc=None), where.prefix, log_of_rest)


def _lacks_nvcc(where: Site) -> bool:
    return _wants_cuda() and where.tools.nvcc is None and build.has_cuda_sources(where.source)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


@contextmanager
def _lock(prefix: Path) -> Iterator[None]:
    """Held by one process at a time; the system frees it when its holder ends, however that may be."""
    import fcntl  # Linux only, as the library

    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(prefix.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise BuildError(f"cannot write to {prefix.parent}: {error.strerror}; set GWSSS_CACHE") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def information() -> dict[str, str]:
    """What the loaded library says about itself: compiler, flags, instruction sets, CUDA architectures, sources."""
    if _loaded is None:
        return {}
    library = ctypes.CDLL(str(_loaded))
    for function in (library.gwsss_fast_build_info, library.gwsss_fast_instruction_set):
        function.restype = ctypes.c_char_p
    lines = library.gwsss_fast_build_info().decode().splitlines()
    found = {name: value.strip() for name, _, value in (line.partition(": ") for line in lines)}
    return {**found, "instruction set in use": library.gwsss_fast_instruction_set().decode()}
