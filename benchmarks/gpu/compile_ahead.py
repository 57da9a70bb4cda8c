"""Compiles kernels for a card that need not be there, and reads what the machine code needs.

Triton is given a driver that names the card, so a kernel goes the way of a real start (specialisation and options
included) up to the point where it would be loaded. Registers and spills come from `ptxas -v`, instructions from
`cuobjdump`; both ship with Triton.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.launches import Job, Pointer
from benchmarks.harness.sizes import DTYPES
from gwsss_fast import files
from gwsss_fast.launch.launcher import Tiles

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
TENSOR_MEMORY_COLUMNS = 512
CARDS = ("sm_80", "sm_90", "sm_100")

# SASS: warpgroup products of Hopper, tensor-memory products of Blackwell, and the per-warp ones of all.
_TENSOR_CORE = re.compile(r"\b(UTC\w*MMA|[HQI]GMMA|[HQIOD]MMA)\b")
_DOT = re.compile(r"tt\.dot(?:_scaled)? [^\n]*")
_SIXTEEN_BITS = re.compile(r"x(?:f16|bf16|f8\w+)>\s*\*")


@dataclass(frozen=True)
class Report:
    """What a compiled kernel needs. wants_tensor_core: it has a product that tensor cores can do (16-bit factors, or
    float32 with tf32 allowed). tensor_core: then their instructions by name. error: why it did not compile, or None."""

    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0
    tensor_memory: int = 0
    tensor_core: dict[str, int] = field(default_factory=dict)
    wants_tensor_core: bool = False
    error: str | None = None

    def problems(self, card: str) -> list[str]:
        """Why this kernel must not be shipped for `card`."""
        if self.error is not None:
            return [f"it does not compile: {self.error}"]
        found = []
        if self.spill_stores or self.spill_loads:
            found.append(f"it spills {self.spill_stores} bytes of stores and {self.spill_loads} of loads")
        if self.shared > SHARED_LIMIT[card]:
            found.append(f"it needs {self.shared} bytes of shared memory and {card} has {SHARED_LIMIT[card]}")
        if self.tensor_memory > TENSOR_MEMORY_COLUMNS:
            found.append(f"it needs {self.tensor_memory} columns of tensor memory of {TENSOR_MEMORY_COLUMNS}")
        if self.wants_tensor_core and not self.tensor_core:
            found.append("it has a product of matrices but no tensor-core instruction")
        return found


class NamedCard:
    """As much of a Triton driver as compilation asks for."""

    def __init__(self, card: str) -> None:
        self.capability = int(card.removeprefix("sm_"))

    def get_current_device(self) -> int:
        """Kernels are cached by device, so each card is one."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def named_card(card: str) -> Iterator[None]:
    """Compile for `card` inside the block."""
    from triton.runtime.driver import driver

    before = driver._active
    driver.set_active(NamedCard(card))
    try:
        yield
    finally:
        driver._active = before


def compile_job(job: Job) -> Any:
    """Triton's compiled kernel, not loaded. Raises what the compiler raises."""
    kernel = getattr(importlib.import_module(job.module), job.kernel)
    if not hasattr(kernel, "warmup"):
        raise RuntimeError("Triton interprets kernels in this process (TRITON_INTERPRET=1), so it cannot compile them")
    arguments = [_argument(x) for x in job.arguments]
    options = Tiles({}, job.num_warps, job.num_stages, job.registers).options
    with named_card(job.card):
        return kernel.warmup(*arguments, grid=(1,), **dict(job.constants), **options)


def _argument(value: Any) -> Any:
    if not isinstance(value, Pointer):
        return value
    tensor = torch.empty(16, dtype=DTYPES[value.dtype], device="meta")
    return tensor if value.aligned else _Unaligned(tensor.dtype)


class _Unaligned:
    """A pointer whose address is not divisible by 16, as Triton looks at it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def data_ptr(self) -> int:
        return 8


def report(job: Job) -> Report:
    """Compile and read the machine code; a compiler's refusal is part of the report."""
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log):
            kernel = compile_job(job)
        wanted = wants_tensor_core(kernel.asm["ttir"])
        sass = disassemble(kernel.asm["cubin"]) if wanted else ""
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Report(error=f"{type(error).__name__}: {lines[-1]}")
    metadata = kernel.metadata
    numbers: dict[str, Any] = {**ptxas_numbers(log.getvalue())}
    return Report(
        **numbers,
        shared=metadata.shared,
        tensor_memory=getattr(metadata, "tmem_size", 0) or 0,
        tensor_core=tensor_core(sass),
        wants_tensor_core=wanted,
    )


def ptxas_numbers(log: str) -> dict[str, int]:
    """Registers, stack frame and spills of `ptxas -v`'s report, the largest where it speaks of several functions."""
    patterns = {
        "registers": r"Used (\d+) registers",
        "stack": r"(\d+) bytes stack frame",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    found = {name: [int(x) for x in re.findall(pattern, log)] for name, pattern in patterns.items()}
    missing = [name for name, values in found.items() if not values]
    if missing:
        raise RuntimeError(f"ptxas reported no {', '.join(missing)}")
    return {name: max(values) for name, values in found.items()}


def tensor_core(sass: str) -> dict[str, int]:
    """Tensor-core instructions of a disassembly, counted by name."""
    names = _TENSOR_CORE.findall(sass)
    return {name: names.count(name) for name in sorted(set(names))}


def wants_tensor_core(ttir: str) -> bool:
    """Whether Triton's own code has a product that tensor cores can do: full float32 ("ieee") cannot."""
    return any(_SIXTEEN_BITS.search(dot) or "tf32" in dot for dot in _DOT.findall(ttir))


def disassemble(cubin: bytes) -> str:
    """SASS, by the cuobjdump that ships with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    path = {"PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tools / "cuobjdump"), "-sass", file.name]
        done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True, check=False)
    if done.returncode != 0 or "Function :" not in done.stdout:
        raise RuntimeError(f"cuobjdump could not read the kernel: {done.stderr.strip() or 'no function in it'}")
    return done.stdout


def _prepare_worker(with_log: bool) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    torch.set_num_threads(1)
    if with_log:  # a kernel from Triton's cache comes without the report
        os.environ.update(TRITON_ALWAYS_COMPILE="1", TRITON_DUMP_PTXAS_LOG="1")


def in_processes(
    function: Callable[[Job], Any], jobs: Iterable[Job], workers: int, seconds: float | None = None
) -> Iterator[tuple[Job, Any]]:
    """(job, result) as they come, from fresh processes: Triton holds much memory and no two cards share a process.

    Begun in the order of `jobs`. seconds: when it ends at the latest; what has begun then is broken off.
    """
    late = False
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _prepare_worker, (function is report,))
    try:
        futures = {pool.submit(function, job): job for job in jobs}
        for future in as_completed(futures, seconds):
            yield futures[future], future.result()
    except concurrent.futures.TimeoutError:
        late = True
    finally:
        if late:  # a pool that nobody waits for does not end in Python 3.11, and its process neither
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def cache_folder() -> Path:
    """Where reports are kept between runs."""
    base = os.environ.get("GWSSS_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "gwsss_fast_resources"


def fingerprint(job: Job) -> str:
    """Changes with the kernel's source (that of the functions it calls included), the job and Triton's version."""
    import triton

    kernel = getattr(importlib.import_module(job.module), job.kernel)
    text = repr((triton.__version__, kernel.cache_key, dataclasses.astuple(job)))
    return hashlib.sha256(text.encode()).hexdigest()


def reports(jobs: Iterable[Job], workers: int, folder: Path | None) -> Iterator[tuple[Job, Report]]:
    """The report of every job, from `folder` where it has one already (None: compile all)."""
    paths = {job: folder / f"{fingerprint(job)}.json" if folder is not None else None for job in jobs}
    missing = []
    for job, path in paths.items():
        known = _read(path)
        if known is None:
            missing.append(job)
        else:
            yield job, known
    if not missing:
        return
    for job, found in in_processes(report, missing, workers):
        path = paths[job]
        if path is not None and found.error is None:
            files.write_json(path, dataclasses.asdict(found))
        yield job, found


def _read(path: Path | None) -> Report | None:
    if path is None or not path.is_file():
        return None
    try:
        return Report(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None
