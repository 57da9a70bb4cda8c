"""One table of operations: their inputs, how they are called, what they mean and what anyone would write.

Whoever adds a backend to an operation adds nothing here: correctness, times and resources ask `ops.available()`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import plain
from benchmarks.harness.sizes import DTYPES, Size
from benchmarks.harness.work import FORMULAS, Work
from gwsss_fast import ops, reference
from gwsss_fast.ops import dispatch

Function = Callable[..., Any]
RATE, THRESHOLD, SCALE = 0.8, 0.7, 0.3


@dataclass(frozen=True)
class Operation:
    """An operation with one choice of its options.

    inputs(size, dtype, device, seed): its tensors, of which the first `differentiable` have gradients. call: the
    public function. exact: its meaning, in any dtype, for autograd. plain: what anyone would write (see `plain`).
    """

    name: str
    option: str
    inputs: Callable[[Size, torch.dtype, str, int], list[Tensor]]
    differentiable: int
    call: Function
    exact: Function
    plain: Function
    kernel: int = 1

    @property
    def label(self) -> str:
        """Name and option."""
        return f"{self.name} {self.option}".strip()

    def work(self, size: Size, dtype: torch.dtype, backward: bool) -> Work:
        """Operations and bytes of one pass."""
        options = {"kernel": self.kernel} if self.name == "conv_gru" else {}
        return FORMULAS[self.name](size, dtype.itemsize, backward, **options)

    def backends(self, tensors: list[Tensor]) -> list[str]:
        """Backends that can run these tensors here, the reference last."""
        usable = [name for name, state in ops.available()[self.name].items() if state and name != "reference"]
        taken = [name for name in usable if dispatch.kernel(self.name, name).refuse(*tensors) is None]
        return [*taken, "reference"]


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    """A function's results, always as a tuple."""
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def normal(shape: tuple[int, ...], deviation: float, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Normal values that are the same on every device; memory without values on "meta"."""
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * deviation).to(device=device, dtype=dtype)


def _edge_inputs(size: Size, dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
    """Factors whose scores have a standard deviation of 2: rows that neither are uniform nor pick one position."""
    shape = (size.groups, size.nodes, size.positions)
    deviation = 2**0.5 / size.rank**0.25
    factors = [normal((*shape, size.rank), deviation, dtype, device, seed + i) for i in range(2)]
    return [*factors, normal((*shape, size.channels), 1.0, dtype, device, seed + 2)]


def _nodes(size: Size, dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
    """Nodes whose squared length over two of them is 4: the softmaxes see more than each position itself."""
    shape = (size.groups, size.nodes, size.positions, size.channels)
    return [normal(shape, (2 / size.channels) ** 0.5, dtype, device, seed)]


def _dropout_inputs(size: Size, dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
    """Both branches occur as soon as there are two groups."""
    shape = (size.groups, size.nodes, size.positions, size.channels)
    return [normal(shape, 1.0, dtype, device, seed), torch.linspace(0.95, 0.1, size.groups, device=device)]


def _gru_inputs(kernel: int) -> Callable[[Size, torch.dtype, str, int], list[Tensor]]:
    def inputs(size: Size, dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
        c = size.channels
        nodes = (size.images, size.height, size.width, c)
        m, h = (normal(nodes, 1.0, dtype, device, seed + i).permute(0, 3, 1, 2) for i in range(2))
        weight = normal((3 * c, 2 * c, kernel, kernel), (2 * c * kernel**2) ** -0.5, dtype, device, seed + 2)
        return [m, h, weight, normal((3 * c,), 0.1, dtype, device, seed + 3)]

    return inputs


def _co_attention(reverse: str) -> Operation:
    return Operation(
        "co_attention",
        reverse,
        _edge_inputs,
        3,
        lambda p, q, g: ops.co_attention(p, q, g, reverse=reverse),
        lambda p, q, g: reference.co_attention(p, q, g, reverse)[0],
        lambda p, q, g: plain.co_attention(p, q, g, reverse),
    )


def exact_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    residual: Tensor | None = None,
    message: Tensor | None = None,
    message_scale: float = 1.0,
) -> Tensor:
    """The reference, with its sums."""
    return plain.with_sums(reference.attention(q, k, v)[0], residual, message, message_scale)


def _attention() -> Operation:
    return Operation("attention", "", _edge_inputs, 3, ops.attention, exact_attention, plain.attention)


def _attention_with_sums() -> Operation:
    def inputs(size: Size, dtype: torch.dtype, device: str, seed: int) -> list[Tensor]:
        q, k, v = _edge_inputs(size, dtype, device, seed)
        addends = [normal(tuple(v.shape), 1.0, dtype, device, seed + number) for number in (3, 4)]
        return [q, k, v, *addends]

    return Operation(
        "attention",
        "with sums",
        inputs,
        5,
        lambda q, k, v, residual, message: ops.attention(
            q, k, v, residual=residual, message=message, message_scale=SCALE
        ),
        lambda q, k, v, residual, message: exact_attention(q, k, v, residual, message, SCALE),
        lambda q, k, v, residual, message: plain.attention(q, k, v, residual, message, SCALE),
    )


def _graph_dropout() -> Operation:
    return Operation(
        "graph_dropout",
        "",
        _dropout_inputs,
        1,
        lambda g, r: ops.graph_dropout(g, r, RATE, THRESHOLD),
        lambda g, r: reference.graph_dropout(g, r, RATE, THRESHOLD)[0],
        lambda g, r: plain.graph_dropout(g, r, RATE, THRESHOLD),
    )


def _conv_gru(kernel: int) -> Operation:
    """Two convolutions are both what the equations mean and what anyone would write."""
    inputs = _gru_inputs(kernel)
    return Operation("conv_gru", f"kernel {kernel}", inputs, 4, ops.conv_gru, plain.conv_gru, plain.conv_gru, kernel)


def _edge_readout() -> Operation:
    return Operation("edge_readout", "", _nodes, 1, ops.edge_readout, reference.edge_readout, plain.edge_readout)


OPERATIONS = (
    _co_attention("transpose"),
    _co_attention("directed"),
    _attention(),
    _attention_with_sums(),
    _graph_dropout(),
    _conv_gru(1),
    _conv_gru(3),
    _edge_readout(),
)
TIMED = tuple(operation for operation in OPERATIONS if operation.option not in ("directed", "with sums"))
"""Both directions of co-attention cost the same, so one is timed; peers have no sums in their attention."""


def operation(label: str) -> Operation:
    """The row of the table with this name and option."""
    return next(row for row in OPERATIONS if row.label == label)


def has_kernel(row: Operation, backend: str) -> bool:
    """Whether the operation has functions for this backend, usable here or not."""
    try:
        dispatch.kernel(row.name, backend)
    except KeyError:
        return False
    return True


def rerouted(row: Operation, function: Function) -> Operation:
    """The same operation, its public function replaced: for peers, and for tests of the checks themselves."""
    return dataclasses.replace(row, call=function)


def dtype_name(dtype: torch.dtype) -> str:
    """Key of `DTYPES`."""
    return next(name for name, value in DTYPES.items() if value == dtype)
