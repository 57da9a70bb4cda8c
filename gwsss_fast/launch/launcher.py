"""How a Triton kernel is started, and how a start can be recorded instead so that it can be compiled without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """A configuration of a kernel: its compile-time block sizes, warps a program and stages of its pipeline.

    registers: how many a thread may have. The assembler's own choice (None) puts some into memory where one program
    more fits on a multiprocessor that way.
    """

    blocks: dict[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    registers: int | None = None

    def __hash__(self) -> int:
        return hash((tuple(self.blocks.items()), self.num_warps, self.num_stages, self.registers))

    @property
    def options(self) -> dict[str, int]:
        """Triton's names for what is no argument of the kernel."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return options if self.registers is None else {**options, "maxnreg": self.registers}


@dataclass(frozen=True)
class Launch:
    """A recorded start: the kernel, its run-time arguments, its compile-time ones, its tiles and its grid."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    tiles: Tiles
    grid: tuple[int, ...]


_recording: list[Launch] | None = None
_recorded_card = "none"


@contextmanager
def record(card: str = "none") -> Iterator[list[Launch]]:
    """Inside the block kernels are listed, not run. Meant for tensors on the `meta` device, which hold no values.

    card: the GPU whose tiles are chosen, such as "sm_90".
    """
    global _recording, _recorded_card
    before, before_card = _recording, _recorded_card
    _recording, _recorded_card = [], card
    try:
        yield _recording
    finally:
        _recording, _recorded_card = before, before_card


def recorded_card() -> str:
    """The card that starts are being recorded for, "none" outside `record`."""
    return _recorded_card


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, tiles: Tiles, **constants: Any) -> None:
    """Start `kernel` on `grid` programs. arguments: in the kernel's order; constants: its other `constexpr`s."""
    if 0 in grid:
        return
    if _recording is not None:
        _recording.append(Launch(kernel, arguments, {**constants, **tiles.blocks}, tiles, tuple(grid)))
        return
    tensor = next(x for x in arguments if isinstance(x, Tensor))
    # A kernel runs on the current device, which need not be that of its tensors.
    with torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext():
        kernel[tuple(grid)](*arguments, **constants, **tiles.blocks, **tiles.options)


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU (TRITON_INTERPRET=1), for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def missing() -> str | None:
    """Why no Triton kernel can run here, or None."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed; python -m pip install triton (Linux)"
    if not interpreted() and not torch.cuda.is_available():
        return "no CUDA GPU is visible to PyTorch"
    return None


def refuse(*tensors: Tensor) -> str | None:
    """Why Triton kernels cannot take these tensors, or None: their device, dtype or device's age."""
    device = tensors[0].device
    if device.type == "cpu" and not interpreted():
        return "it needs tensors on a CUDA GPU, not on the CPU"
    if device.type not in ("cpu", "cuda", "meta"):
        return f"it needs tensors on a CUDA GPU, not on {device.type}"
    for x in tensors:
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"it computes in float32, float16 and bfloat16, not {x.dtype}"
    if device.type == "cuda" and _too_old(device):
        return "its kernels are written for compute capability 8.0 and newer"
    return None


def _too_old(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) < (8, 0)


# Asked while torch.compile traces, which would put the question into the graph.
_too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]


def only_on_request(*tensors: Tensor) -> bool:
    """Interpreted kernels are for tests: `auto` never takes them."""
    return tensors[0].device.type == "cpu"


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def power_of_two(size: int, least: int = 16) -> int:
    """The least power of two that holds `size`, and not under `least` (tensor cores want 16)."""
    return max(least, 1 << max(0, size - 1).bit_length())
