"""What the `bench_*.py` files share: which cases run on this machine, and how a time reaches pytest-benchmark."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from benchmarks.harness import checking, measuring
from benchmarks.harness.cases import OPERATIONS, Operation
from benchmarks.harness.checking import Expected
from benchmarks.harness.peers import peers
from benchmarks.harness.sizes import DTYPES, LARGE, PAPER, PAPER_8, SMALL, Size
from benchmarks.harness.timing import Call, EventTimer, Timer, cache_bytes, rotations, wall_clock
from gwsss_fast import ops

GPU = torch.cuda.is_available()
DEVICE = "cuda:0" if GPU else "cpu"
SIZES = (PAPER, PAPER_8, LARGE) if GPU else (SMALL, PAPER)
DTYPE_NAMES = ("bfloat16",) if GPU else ("float32", "bfloat16")
ROUNDS = {"small": 20, "paper": 3} if not GPU else {}
COMPILED_ON_CPU = ("graph_dropout", "co_attention", "attention")
"""Where fusing pays most; compiling takes a CPU half a minute each time."""
TOO_LONG_ON_CPU = {("conv_gru kernel 3", "paper"), ("edge_readout", "paper")}
"""Their float64 references alone take tens of seconds there."""


class FedClock:
    """A clock for pytest-benchmark that stands still but for what it is told: times that the GPU's events gave."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = FedClock()


def fed(call: Call, timer: Timer) -> Callable[[], None]:
    """Run `call` under `timer` and put its time on the clock."""

    def run() -> None:
        CLOCK.now += 1e-3 * timer(call).device_ms

    return run


def names(operation: Operation) -> list[str]:
    """Backends that this machine can run, and peers."""
    backends = [name for name, state in ops.available()[operation.name].items() if state]
    if not GPU:
        backends = [name for name in backends if name != "triton"]
    tensors = operation.inputs(SMALL, torch.float32, "cpu", 0)
    compiled = GPU or operation.name in COMPILED_ON_CPU
    others = [peer.name for peer in peers(operation, tensors, compiled) if not peer.ours]
    gpu_only = ("sdpa", "flex")
    return [*backends, *(name for name in others if GPU or not name.startswith(gpu_only))]


def cases(*labels: str) -> list[Any]:
    """Parameters of the benchmarks of some operations."""
    found = []
    for operation in (row for row in OPERATIONS if row.label in labels):
        for size in SIZES:
            if not GPU and (operation.label, size.name) in TOO_LONG_ON_CPU:
                continue
            for dtype in DTYPE_NAMES:
                for backward in (False, True):
                    for name in names(operation):
                        words = (operation.label, size.name, dtype, measuring.PASSES[backward], name)
                        parameters = (operation, size, DTYPES[dtype], backward, name)
                        found.append(pytest.param(*parameters, id="-".join(words).replace(" ", "_")))
    return found


def benchmarked(*labels: str) -> pytest.MarkDecorator:
    """Decorator of a benchmark that takes operation, size, dtype, backward and name."""
    return pytest.mark.parametrize(("operation", "size", "dtype", "backward", "name"), cases(*labels))


@functools.lru_cache(maxsize=1)
def _begin(label: str, size: Size, dtype: torch.dtype) -> Expected:
    """What results of a new case are compared with."""
    torch._dynamo.reset()  # earlier cases count as recompilations, of which PyTorch allows a few
    operation = next(row for row in OPERATIONS if row.label == label)
    return checking.expected(operation, operation.inputs(size, dtype, DEVICE, 0))


@functools.lru_cache(maxsize=32)
def _accepted(
    label: str, size: Size, dtype: torch.dtype, name: str
) -> tuple[dict[bool, Callable[..., Any]], dict[bool, str]]:
    """By pass, the function of one peer or the reason against it."""
    operation = next(row for row in OPERATIONS if row.label == label)
    tensors = operation.inputs(size, dtype, DEVICE, 0)
    peer = next(peer for peer in peers(operation, tensors) if peer.name == name)
    functions, refused = measuring.accepted([peer], operation, tensors, _begin(label, size, dtype))
    right = {backward: found[peer] for backward, found in functions.items() if peer in found}
    return right, {backward: reason for (_, backward), reason in refused.items()}


def run(benchmark: Any, operation: Operation, size: Size, dtype: torch.dtype, backward: bool, name: str) -> None:
    """Check, then time. A peer that cannot run is skipped with its reason; a wrong result, and a backend of ours that
    does not run, fail without a time."""
    tensors = operation.inputs(size, dtype, DEVICE, 0)
    peer = next((peer for peer in peers(operation, tensors) if peer.name == name), None)
    if peer is None:
        pytest.skip(f"{name} does not take these inputs")
    functions, reasons = _accepted(operation.label, size, dtype, peer.name)
    verdict(reasons.get(backward), peer.ours)
    function = functions[backward]
    count = rotations(operation.work(size, dtype, backward).bytes, cache_bytes(DEVICE)) if GPU else 2
    versions = [operation.inputs(size, dtype, DEVICE, 100 * number) for number in range(count)]
    if backward:
        calls = measuring.backward_calls(function, versions, operation.differentiable)
    else:
        calls = measuring.forward_calls(function, versions)
    work = operation.work(size, dtype, backward)
    benchmark.extra_info.update(flops=work.flops, bytes=work.bytes, device=DEVICE, ours=peer.ours)
    time_calls(benchmark, calls, ROUNDS.get(size.name, 30), EventTimer() if GPU else wall_clock)


def verdict(reason: str | None, ours: bool) -> None:
    """Fail for a wrong result and for any reason against ours, skip a peer whose result cannot be had."""
    if reason is None:
        return
    if ours or reason.startswith("wrong"):
        pytest.fail(reason)
    pytest.skip(reason)


def time_calls(benchmark: Any, calls: Sequence[Call], rounds: int, timer: Timer) -> None:
    """Hand pytest-benchmark the times of `rounds` calls that take turns."""
    for call in calls:
        call()
    turns = iter([*calls] * (rounds // len(calls) + 2))
    benchmark.pedantic(lambda: fed(next(turns), timer)(), rounds=rounds, iterations=1)
