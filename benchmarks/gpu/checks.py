"""Whether every operation is right on a device, before anything is timed: values, gradients, layouts, dtypes, memory
that holds NaN, repeated runs, and what PyTorch's own machinery (opcheck, graphs, the compiler) makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import checking, group_step, restarts
from benchmarks.harness.cases import OPERATIONS, Operation, as_tuple
from benchmarks.harness.peers import first_line
from benchmarks.harness.restarts import BrokenGpuError, broken
from benchmarks.harness.sizes import DTYPES, ODD, PAPER, Size
from benchmarks.harness.timing import time_limit, time_limit_in
from gwsss_fast import ops
from gwsss_fast.ops import dispatch

ODD_ONE = ODD[0]
"""Nothing in it is a multiple of a tile."""


@dataclass(frozen=True)
class Check:
    """One question; run() gives the reasons why the answer is no. group: what it is about, for the summary."""

    group: str
    name: str
    run: Callable[[], list[str]]

    @property
    def label(self) -> str:
        return f"{self.group}, {self.name}"


@dataclass(frozen=True)
class Outcome:
    """A check that has run; skipped when no time was left for it. broken: it left the GPU in a state that ends all."""

    check: Check
    failures: list[str]
    skipped: bool = False
    broken: BrokenGpuError | None = None


def carry_out(
    checks: Sequence[Check], go_on: Callable[[], bool] = lambda: True, limit: Callable[[], float] | None = None
) -> Iterator[Outcome]:
    """Run the checks; an exception is a failure of its check. limit: seconds that a check may take now.

    A check that breaks the GPU is the last.
    """
    for check in checks:
        if check.label in restarts.left_out:
            continue
        if not go_on():
            yield Outcome(check, [], skipped=True)
            continue
        try:
            with time_limit(limit() if limit is not None else None):
                failures = check.run()
        except BrokenGpuError as error:
            yield Outcome(check, [str(error)], broken=error)
            return
        except Exception as error:
            failures = [first_line(error)]
            if broken():
                yield Outcome(check, failures, broken=BrokenGpuError(check.label, failures[0]))
                return
        yield Outcome(check, failures)


def all_checks(
    device: str,
    sizes: Sequence[Size] = (PAPER, *ODD),
    dtypes: Sequence[torch.dtype] = tuple(DTYPES.values()),
    operations: Sequence[Operation] = OPERATIONS,
) -> list[Check]:
    """Every check, the most telling first: each operation and dtype at the first size, then the others."""
    found = []
    for size in sizes:
        for operation in operations:
            found += [value_check(operation, size, dtype, device) for dtype in dtypes]
    for operation in operations:
        found.append(poison_check(operation, device))
        found.append(layout_check(operation, device))
        found.append(repeat_check(operation, sizes[0], device))
        found.append(opcheck_check(operation, device))
        found.append(compile_check(operation, device))
        if device.startswith("cuda"):
            found.append(graph_check(operation, device))
    step = [step_check(dtype, sizes[0], device) for dtype in dtypes]
    if device.startswith("cuda"):
        step += [captured_step_check(dtype, sizes[0], device) for dtype in dtypes]
        found.append(compiled_step_check(dtypes[-1], sizes[0], device))  # last, as it takes the longest
    return [*found[: len(operations) * len(dtypes)], *step, *found[len(operations) * len(dtypes) :]]


def backends(operation: Operation, tensors: list[Tensor]) -> list[str]:
    """Of the backends that can run these tensors, those that are more than the reference itself."""
    return [name for name in operation.backends(tensors) if name != "reference"] or ["reference"]


def disagreements(operation: Operation, tensors: list[Tensor], wanted: checking.Expected) -> list[str]:
    """What every backend gets wrong by the tolerance rule; one that raises does not hide the others."""
    failures = []
    for name in backends(operation, tensors):
        try:
            with ops.backend(name):
                values = checking.run(operation.call, tensors, operation.differentiable)
            failures += [f"{name}: {failure}" for failure in wanted.failures(values)]
        except Exception as error:
            if time_limit_in(error) is not None:
                raise
            if broken():
                raise BrokenGpuError(f"{operation.name}: {name}", first_line(error)) from error
            failures.append(f"{name}: {first_line(error)}")
    return failures


def value_check(operation: Operation, size: Size, dtype: torch.dtype, device: str) -> Check:
    """Values and gradients of every backend by the tolerance rule."""

    def run() -> list[str]:
        tensors = operation.inputs(size, dtype, device, 0)
        wanted = checking.expected(operation, tensors)
        return disagreements(operation, tensors, wanted)

    return Check("values and gradients", f"{operation.label}, {size.name}, {dtype}", run)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN inside the block."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def poison_check(operation: Operation, device: str) -> Check:
    """Every result is written: memory that was NaN before is finite and right afterwards."""

    def run() -> list[str]:
        tensors = operation.inputs(ODD_ONE, torch.float32, device, 1)
        wanted = checking.expected(operation, tensors)
        with poisoned():
            return disagreements(operation, tensors, wanted)

    return Check("every result is written", operation.label, run)


def strided(x: Tensor) -> Tensor:
    """The same values with a hole after every row of the last two dimensions, and these exchanged in memory."""
    if x.dim() < 2:
        return x
    wide = x.new_empty((*x.shape[:-2], x.shape[-1] + 3, x.shape[-2] + 1))
    view = wide[..., : x.shape[-1], : x.shape[-2]].transpose(-1, -2)
    view.copy_(x)
    return view


def layout_check(operation: Operation, device: str) -> Check:
    """Strides change nothing beyond rounding."""

    def run() -> list[str]:
        tensors = operation.inputs(ODD_ONE, torch.float32, device, 2)
        wanted = checking.expected(operation, tensors)
        return disagreements(operation, [strided(x) for x in tensors], wanted)

    return Check("any strides", operation.label, run)


@contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """cuDNN takes algorithms alone that give the same bits each time; those of gradients of weights need not."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def repeat_check(operation: Operation, size: Size, device: str) -> Check:
    """Two runs agree in every bit, where cuDNN is told to be deterministic."""

    def run() -> list[str]:
        tensors = operation.inputs(size, torch.bfloat16, device, 3)
        failures = []
        for name in backends(operation, tensors):
            with ops.backend(name), deterministic_convolutions():
                first, second = (checking.run(operation.call, tensors, operation.differentiable) for _ in range(2))
            if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
                failures.append(f"{name}: two runs on the same inputs differ")
        return failures

    return Check("deterministic", operation.label, run)


class OwnCalls(TorchDispatchMode):
    """Lists the calls of our operators inside the block, and lets them run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("gwsss_fast::"):
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def with_gradients(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments with tensors that are leaves, and want gradients where the given ones did."""
    return tuple(x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in arguments)


def opcheck_check(operation: Operation, device: str) -> Check:
    """torch.library's own tests: schema, shapes, autograd registration, tracing."""

    def run() -> list[str]:
        tensors = operation.inputs(ODD_ONE, torch.float32, device, 4)
        leaves = [x.detach().requires_grad_(number < operation.differentiable) for number, x in enumerate(tensors)]
        for name in backends(operation, tensors):
            with ops.backend(name), OwnCalls() as own:
                operation.call(*leaves)
            for function, arguments in own.calls:
                opcheck(function, with_gradients(arguments))
        return []

    return Check("opcheck", operation.label, run)


def compile_check(operation: Operation, device: str) -> Check:
    """torch.compile takes the operation whole, and its result is the same."""

    def run() -> list[str]:
        tensors = operation.inputs(ODD_ONE, torch.float32, device, 5)
        wanted = checking.expected(operation, tensors)
        compiled = torch.compile(operation.call, fullgraph=True, dynamic=False, backend="aot_eager")
        return wanted.failures(checking.run(compiled, tensors, operation.differentiable))

    return Check("torch.compile", operation.label, run)


def graph_check(operation: Operation, device: str) -> Check:
    """A captured forward pass gives, replayed on new values, what a plain call gives."""

    def run() -> list[str]:
        tensors = operation.inputs(ODD_ONE, torch.float32, device, 6)
        fresh = operation.inputs(ODD_ONE, torch.float32, device, 7)
        with torch.no_grad():
            for _ in range(2):
                operation.call(*tensors)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                results = as_tuple(operation.call(*tensors))
            for x, value in zip(tensors, fresh, strict=True):
                x.copy_(value)
            graph.replay()
            wanted = as_tuple(operation.call(*fresh))
        same = all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))
        return [] if same else ["the replayed graph gives other values"]

    return Check("CUDA graph", operation.label, run)


def step_check(dtype: torch.dtype, size: Size, device: str) -> Check:
    """Loss and gradients of a whole training step as `auto` runs it."""

    def run() -> list[str]:
        step = group_step.build(size, dtype, device)
        return group_step.expected(size, dtype, device).failures(step.run(), group_step.STEP_FACTOR)

    return Check("GroupGNN step", f"{size.name}, {dtype}", run)


def captured_step_check(dtype: torch.dtype, size: Size, device: str) -> Check:
    """A training step, captured with its backward pass on other values, gives when replayed what `step_check` wants."""

    def run() -> list[str]:
        step = group_step.build(size, dtype, device)
        values = step.features.detach().clone()
        with torch.no_grad():
            step.features.mul_(0.5)
        replay = group_step.captured_step(step)
        replay()
        with torch.no_grad():
            step.features.copy_(values)
        return group_step.expected(size, dtype, device).failures(replay(), group_step.STEP_FACTOR)

    return Check("captured GroupGNN step", f"{size.name}, {dtype}", run)


def compiled_step_check(dtype: torch.dtype, size: Size, device: str) -> Check:
    """A training step through torch.compile's own code generator, as one graph."""

    def run() -> list[str]:
        torch._dynamo.reset()
        step = group_step.compiled_step(group_step.build(size, dtype, device))
        return group_step.expected(size, dtype, device).failures(step(), group_step.STEP_FACTOR)

    return Check("compiled GroupGNN step", f"{size.name}, {dtype}", run)


def chosen(operation: Operation, device: str) -> str:
    """What `auto` takes for the paper's size in bfloat16."""
    return dispatch.choose(operation.name, *operation.inputs(PAPER, torch.bfloat16, device, 0))
