"""What broke the GPU is left out of what follows: an illegal access stays an error of every later call of its process.

So a process whose GPU is broken is replaced by another, which knows what was found until then and does not start what
broke it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gwsss_fast.ops import dispatch

left_out: set[str] = set()
"""Names as `BrokenGpuError` gives them."""


class BrokenGpuError(Exception):
    """No call to the GPU succeeds any more. name: "OPERATION: BACKEND OR PEER", or a check's, for `leave_out`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} broke the GPU: {reason}")
        self.name = name


@dataclass
class State:
    """What a run has found. checks: label to whether it passed. jobs: labels of what was measured. found: all lines.
    failed: builds and measurements that failed. without: what broke the GPU."""

    checks: dict[str, bool] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    without: list[str] = field(default_factory=list)


def broken() -> bool:
    """Whether the GPU has an error that stays, or PyTorch's memory of it a graph whose capture failed and has no end:
    it refuses to give memory back then, and every later capture asks for that first."""
    if not torch.cuda.is_initialized():
        return False
    for _ in range(2):  # an error that does not stay is told once
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            return False
        except RuntimeError:
            continue
    return True


def leave_out(names: Iterable[str]) -> None:
    """Nothing in this process uses them: a backend is missing for everybody, "auto" included."""
    for name in names:
        left_out.add(name)
        operation, _, backend = name.partition(": ")
        try:
            kernel = dispatch.kernel(operation, backend)
        except KeyError:
            continue  # a peer or a check
        dispatch.register(operation, backend, dataclasses.replace(kernel, missing=lambda: "it broke the GPU"))


def read(path: Path | None) -> State:
    """What the process before this one has left; it is read once."""
    if path is None:
        return State()
    state = State(**json.loads(path.read_text(encoding="utf-8")))
    path.unlink()
    return state


def replace_process(state: State, module: str, words: Sequence[str]) -> None:
    """Begin again as `python -m MODULE WORDS --state PATH`; does not return."""
    handle, path = tempfile.mkstemp(prefix="gwsss_fast_", suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(state), file)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *words, "--state", path])
