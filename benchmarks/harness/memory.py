"""How much memory a call needs on the CPU, measured in a process of its own (Linux)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def in_own_process(expression: str, module: str) -> float:
    """The value of an expression in the names of `module`, from a fresh process."""
    code = f"from {module} import *; print({expression})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def growth(call: Callable[[], object]) -> float:
    """MiB by which this process grows in a call, at its peak."""
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024
