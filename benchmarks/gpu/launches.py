"""Which kernels an operation starts, with what: recorded on tensors that hold no values, so no GPU is needed.

A start becomes a `Job`, what the compiler sees of it: types, and of numbers whether they are 1 or divisible by 16. Two
starts with one job run one machine code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness.cases import OPERATIONS, Operation, as_tuple, dtype_name, has_kernel
from benchmarks.harness.sizes import ARITHMETICS, Size
from gwsss_fast.launch import launcher
from gwsss_fast.ops import dispatch

INT32_END = 2**31


@dataclass(frozen=True)
class Pointer:
    """A tensor as the compiler sees it."""

    dtype: str
    aligned: bool


@dataclass(frozen=True)
class Job:
    """A kernel to compile: where it is defined, its arguments by kind, its compile-time constants, and the card."""

    module: str
    kernel: str
    arguments: tuple[Any, ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    card: str
    registers: int | None = None


@dataclass(frozen=True)
class Use:
    """Who starts a job."""

    operation: str
    backward: bool
    size: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.operation} {'backward' if self.backward else 'forward'}, {self.size}, {self.dtype}"


def kind(argument: Any) -> Any:
    """The argument reduced to what Triton specialises on, as a value of the same kind."""
    if isinstance(argument, Tensor):
        offset = argument.storage_offset() * argument.element_size()
        address = 0 if argument.device.type == "meta" else argument.data_ptr() - offset
        return Pointer(dtype_name(argument.dtype), bool((address + offset) % 16 == 0))
    if argument is None or isinstance(argument, bool):
        return argument
    if isinstance(argument, float):
        return 0.5
    if not isinstance(argument, int):
        raise TypeError(f"a kernel was started with {argument!r}; only tensors, numbers and None are known here")
    if argument == 1:
        return 1
    wide = 0 if -INT32_END <= argument < INT32_END else 2 * INT32_END
    return wide + (16 if argument % 16 == 0 else 3)


def job(launch: launcher.Launch, card: str) -> Job:
    """What the compiler is given for a recorded start."""
    function = launch.kernel.fn
    arguments = tuple(kind(x) for x in launch.arguments)
    constants = tuple(sorted(launch.constants.items()))
    tiles = launch.tiles
    return Job(
        *(function.__module__, function.__name__, arguments, constants),
        *(tiles.num_warps, tiles.num_stages, card, tiles.registers),
    )


class _OwnCode(TorchDispatchMode):
    """Runs our operators' own code on the `meta` device, where PyTorch would run their shape functions instead."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        definition = OPDEFS.get(name) if name.startswith("gwsss_fast::") else None
        return (func if definition is None else definition._init_fn)(*args, **(kwargs or {}))


def recorded(
    operation: Operation, size: Size, dtype: torch.dtype, card: str
) -> tuple[list[launcher.Launch], list[launcher.Launch]]:
    """The starts of an operation's Triton backend, forward (without and with gradients to come) and backward, with the
    tiles that `card` gets."""
    tensors = operation.inputs(size, dtype, "meta", 0)
    with mock.patch.object(dispatch, "choose", return_value="triton"), _OwnCode():
        with launcher.record(card) as forward, torch.no_grad():
            operation.call(*tensors)
        leaves = [x.requires_grad_(number < operation.differentiable) for number, x in enumerate(tensors)]
        with launcher.record(card) as training:
            results = as_tuple(operation.call(*leaves))
        with launcher.record(card) as backward:
            cotangents = [torch.empty_like(x) for x in results]
            torch.autograd.grad(results, leaves[: operation.differentiable], cotangents)
    return [*forward, *training], backward


def refusal(operation: Operation, size: Size, dtype: torch.dtype) -> str | None:
    """Why the Triton backend cannot take this size and dtype, or None."""
    if not has_kernel(operation, "triton"):
        return "it has no Triton kernel"
    return dispatch.kernel(operation.name, "triton").refuse(*operation.inputs(size, dtype, "meta", 0))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside the block float32 products may be tf32, or whatever is set already."""
    before = torch.backends.cuda.matmul.fp32_precision
    if allowed:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def jobs(
    sizes: Iterable[Size],
    dtypes: Iterable[str],
    cards: Iterable[str],
    operations: Iterable[Operation] = OPERATIONS,
    passes: Iterable[bool] = (False, True),
) -> dict[Job, list[Use]]:
    """Every distinct kernel that these cases need, and who starts it. dtypes: keys of `ARITHMETICS`."""
    found: dict[Job, list[Use]] = {}
    dtypes, cards, passes = list(dtypes), list(cards), list(passes)
    for operation in operations:
        for size in sizes:
            for name in dtypes:
                if refusal(operation, size, ARITHMETICS[name]) is not None:
                    continue
                for card in cards:
                    with tf32(name == "tf32"):
                        both = recorded(operation, size, ARITHMETICS[name], card)
                    for backward in passes:
                        use = Use(operation.label, backward, size.name, name)
                        for launch in both[backward]:
                            uses = found.setdefault(job(launch, card), [])
                            if use not in uses:
                                uses.append(use)
    return found
