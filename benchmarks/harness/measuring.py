"""One case of an operation: every backend and peer is checked, then all that passed are timed in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.harness import checking
from benchmarks.harness.cases import Function, Operation, as_tuple
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.checking import Expected
from benchmarks.harness.peers import Peer, UnusableError, first_line, peers
from benchmarks.harness.records import Record, describe, measured
from benchmarks.harness.restarts import BrokenGpuError, broken
from benchmarks.harness.sizes import Size
from benchmarks.harness.timing import NO_TIME, Call, Timer, cache_bytes, interleave, peak_bytes, rotations, time_limit

PASSES = {False: "forward", True: "backward"}


Functions = dict[bool, dict[Peer, Function]]
"""By pass: what may be timed. A peer can be right forward and have no backward pass."""


def check(
    function: Function, tensors: list[Tensor], wanted: Expected, differentiable: int, factor: float
) -> str | None:
    """Why the function's results must not be believed, or None. differentiable: 0 leaves gradients out."""
    try:
        values = checking.run(function, tensors, differentiable)
        failures = wanted.failures(values, factor)
    except Exception as error:
        return first_line(error)
    return f"wrong: {failures[0]}" if failures else None


def forward_calls(function: Function, versions: Sequence[list[Tensor]]) -> list[Call]:
    """One call for each set of inputs, without gradients."""

    def call(tensors: list[Tensor]) -> Call:
        def once() -> None:
            with torch.no_grad():
                function(*tensors)

        return once

    return [call(tensors) for tensors in versions]


def backward_calls(function: Function, versions: Sequence[list[Tensor]], differentiable: int) -> list[Call]:
    """One backward pass for each set of inputs, whose forward pass has been done and is kept."""

    def call(tensors: list[Tensor]) -> Call:
        leaves = [x.detach().requires_grad_(number < differentiable) for number, x in enumerate(tensors)]
        results = as_tuple(function(*leaves))
        cotangents = [torch.randn_like(x) for x in results]
        inputs = leaves[:differentiable]
        return lambda: torch.autograd.grad(results, inputs, cotangents, retain_graph=True)

    return [call(tensors) for tensors in versions]


def accepted(
    found: list[Peer],
    operation: Operation,
    tensors: list[Tensor],
    wanted: Expected,
    limit: Callable[[], float] | None = None,
) -> tuple[Functions, dict[tuple[Peer, bool], str]]:
    """By pass, the peers whose results are right, with their functions; and the reasons against the others."""
    functions: Functions = {False: {}, True: {}}
    refused: dict[tuple[Peer, bool], str] = {}
    for peer in found:
        function, missing = None, None
        try:
            with time_limit(limit() if limit is not None else None):
                function = peer.build(tensors)
        except UnusableError as error:
            missing = str(error)
        except Exception as error:  # the compiler's own errors have no common type
            missing = first_line(error)
        factor = 1.0 if peer.ours else checking.PEER_FACTOR
        for backward in (False, True):
            reason = missing or refused.get((peer, False))
            if function is not None and reason is None:
                differentiable = operation.differentiable if backward else 0
                with time_limit(limit() if limit is not None else None):
                    reason = check(function, tensors, wanted, differentiable, factor)
            if function is not None and reason is None:
                functions[backward][peer] = function
            else:
                refused[peer, backward] = reason or "unknown"
        if refused.get((peer, True)) and broken():
            raise BrokenGpuError(f"{operation.name}: {peer.name}", refused[peer, True])
    return functions, refused


def measure(
    operation: Operation,
    size: Size,
    dtype: torch.dtype,
    device: str,
    timer: Timer,
    *,
    ceilings: Ceilings | None = None,
    rounds: int = 30,
    compiled: bool = True,
    go_on: Callable[[], bool] = lambda: True,
    passes: Sequence[bool] = (False, True),
    limit: Callable[[], float] | None = None,
) -> list[Record]:
    """Lines for forward and backward of every backend and peer; one that is wrong or cannot run has no time but a
    reason. limit: seconds that a peer may take now to compile and to be checked."""
    if compiled:  # earlier sizes count as recompilations, of which PyTorch allows a few
        torch._dynamo.reset()
    tensors = operation.inputs(size, dtype, device, 0)
    wanted = checking.expected(operation, tensors)
    found = peers(operation, tensors, compiled)
    functions, refused = accepted(found, operation, tensors, wanted, limit)
    del wanted
    records = []
    for backward in passes:
        base = {"operation": operation.label, "pass": PASSES[backward], **describe(size, dtype)}
        work = operation.work(size, dtype, backward)
        sets = rotations(work.bytes, cache_bytes(device)) if device.startswith("cuda") else 2
        versions = [operation.inputs(size, dtype, device, 100 * number) for number in range(sets)]
        calls, peaks, late = _calls(functions[backward], versions, operation, backward, device)
        times = interleave({peer.name: made for peer, made in calls.items()}, timer, rounds, go_on)
        for peer in found:
            line = {**base, "peer": peer.name, "ours": peer.ours}
            if peer in calls and peer.name in times:
                line |= measured(times[peer.name], work, dtype, ceilings, peaks[peer])
            else:
                line["reason"] = refused.get((peer, backward)) or late.get(peer, NO_TIME)
            records.append(line)
        del calls, versions
        release(device)
    return records


def _calls(
    functions: dict[Peer, Function], versions: list[list[Tensor]], operation: Operation, backward: bool, device: str
) -> tuple[dict[Peer, list[Call]], dict[Peer, int | None], dict[Peer, str]]:
    """What is to be timed, warmed up, with its peak memory; and the reasons of those that failed only now."""
    calls: dict[Peer, list[Call]] = {}
    peaks: dict[Peer, int | None] = {}
    late: dict[Peer, str] = {}
    for peer, function in functions.items():
        try:
            made = forward_calls(function, versions)
            whole = made[0]
            if backward:
                made = backward_calls(function, versions, operation.differentiable)
                whole = _train(function, versions[0], operation.differentiable)
            for call in made:
                call()
            peaks[peer] = peak_bytes(whole, device)
            calls[peer] = made
        except Exception as error:  # out of memory, most likely
            late[peer] = first_line(error)
            if broken():
                raise BrokenGpuError(f"{operation.name}: {peer.name}", late[peer]) from error
            release(device)
    return calls, peaks, late


def _train(function: Function, tensors: list[Tensor], differentiable: int) -> Call:
    return lambda: checking.run(function, tensors, differentiable)


def release(device: str) -> None:
    """Give memory back between cases."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
