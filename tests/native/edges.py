"""What the tests of the native attention and co-attention share: the library, cases, and agreement with float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.harness import checking
from benchmarks.harness.cases import Operation
from benchmarks.harness.sizes import Size
from gwsss_fast import ops
from gwsss_fast.native import library
from tests.processes import python

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SIZES = (
    Size("one position", 1, 2, 1, 1, 20, 5),
    Size("odd", 2, 3, 37, 1, 20, 5),
    Size("wide", 1, 5, 1, 37, 512, 128),
    Size("two blocks", 1, 4, 15, 15, 36, 9),
    Size("four blocks", 1, 2, 157, 5, 512, 128),
)


def need_library() -> None:
    """Skip where it cannot be built."""
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)


def run(operation: Operation, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Values and gradients on the native backend."""
    with ops.backend("cpp"):
        return checking.run(operation.call, tensors, operation.differentiable)


def check(operation: Operation, tensors: Sequence[Tensor]) -> list[Tensor]:
    """By the tolerance rule; the results."""
    values = run(operation, tensors)
    failures = checking.expected(operation, tensors).failures(values)
    assert not failures, failures
    return values


def loose(x: Tensor) -> Tensor:
    """The same values with gaps between them and the axes in another order."""
    wide = x.new_full((*x.shape[:-2], x.shape[-1] + 1, 2 * x.shape[-2]), float("nan"))
    view = wide.transpose(-1, -2)[..., ::2, :-1]
    view.copy_(x)
    assert not view.is_contiguous() or view.numel() < 2
    return view


def printed(code: str, **environment: str) -> dict[str, str]:
    """Lines "name: text" that a process of its own prints, whose last line says that it lives."""
    done = python(code, **environment)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["alive"]), done.stdout + done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
