"""One small case of every operation: how to call it and the tensors it takes.

`shapes` are (B, K, H, W, C, D); odd sizes on purpose. Tensors come non-contiguous where the caller asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gwsss_fast import ops
from gwsss_fast.ops import dispatch

SHAPES = [(2, 3, 3, 2, 6, 3), (1, 1, 1, 1, 4, 1), (1, 2, 1, 1, 5, 2), (2, 4, 5, 7, 20, 5)]


@dataclass(frozen=True)
class Case:
    """`call(*tensors)` runs the public function; `raw(*tensors, backend)` lists the operator's own arguments."""

    name: str
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    tensors: Callable[..., list[Tensor]]
    operator: Callable[[], torch._ops.OpOverloadPacket]
    options: tuple[object, ...] = ()


def strided(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random values with transposed strides and a hole after every row: never contiguous."""
    padded = torch.randn(*shape[:-2], shape[-1] + 3, shape[-2] + 1, generator=generator, dtype=torch.float64)
    return padded[..., : shape[-1], : shape[-2]].transpose(-1, -2).to(dtype)


def dense(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random contiguous values."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


Make = Callable[[Sequence[int], torch.dtype, torch.Generator], Tensor]


def _edge(make: Make, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    groups, nodes, height, width, channels, rank = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(groups, nodes, height * width, size) for size in (rank, rank, channels)]
    return [make(size, dtype, generator) for size in sizes]


def _edge_and_addends(make: Make, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    return [
        *_edge(make, shape, dtype, seed),
        *_nodes(make, shape, dtype, seed + 100),
        *_nodes(dense, shape, dtype, seed),
    ]


def _nodes(make: Make, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    return _edge(make, shape, dtype, seed)[2:]


def _dropout(make: Make, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
    return [*_nodes(make, shape, dtype, seed), torch.linspace(0.1, 0.95, shape[0])]


def _gru(kernel: int) -> Callable[..., list[Tensor]]:
    def tensors(make: Make, shape: Sequence[int], dtype: torch.dtype, seed: int) -> list[Tensor]:
        groups, nodes, height, width, channels, _ = shape
        generator = torch.Generator().manual_seed(seed)
        size = (groups * nodes, channels, height, width)
        weight = 0.3 * dense((3 * channels, 2 * channels, kernel, kernel), dtype, generator)
        return [
            make(size, dtype, generator),
            make(size, dtype, generator),
            weight,
            dense((3 * channels,), dtype, generator),
        ]

    return tensors


library = torch.ops.gwsss_fast
CASES = [
    Case("attention", ops.attention, _edge, lambda: library.attention, (None, None, 1.0)),
    Case(
        "attention",
        lambda q, k, v, residual, message: ops.attention(
            q, k, v, residual=residual, message=message, message_scale=0.3
        ),
        _edge_and_addends,
        lambda: library.attention,
        (0.3,),
    ),
    Case("co_attention", ops.co_attention, _edge, lambda: library.co_attention, ("transpose",)),
    Case(
        "co_attention",
        lambda p, q, g: ops.co_attention(p, q, g, reverse="directed"),
        _edge,
        lambda: library.co_attention,
        ("directed",),
    ),
    Case("graph_dropout", ops.graph_dropout, _dropout, lambda: library.graph_dropout, (0.8, 0.7)),
    Case("conv_gru", ops.conv_gru, _gru(1), lambda: library.conv_gru),
    Case("conv_gru", ops.conv_gru, _gru(3), lambda: library.conv_gru),
    Case("edge_readout", ops.edge_readout, _nodes, lambda: library.edge_readout),
]


def case_id(case: Case) -> str:
    """Name and option, for pytest."""
    return "-".join([case.name, *(str(option) for option in case.options)])


def usable(case: Case, dtype: torch.dtype = torch.float32) -> list[str]:
    """Backends that can run this case here."""
    tensors = case.tensors(dense, SHAPES[0], dtype, 0)
    names = [name for name, state in ops.available()[case.name].items() if state]
    return [name for name in names if dispatch.kernel(case.name, name).refuse(*tensors) is None]


def outputs(case: Case, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The public function's results, always as a tuple."""
    result = case.call(*tensors)
    return result if isinstance(result, tuple) else (result,)


def gradients(case: Case, tensors: list[Tensor], seed: int = 1) -> list[Tensor]:
    """Gradients of all floating inputs but dropout's draw, contracted with fixed random cotangents."""
    leaves = [x.detach().requires_grad_(case.name != "graph_dropout" or i == 0) for i, x in enumerate(tensors)]
    generator = torch.Generator().manual_seed(seed)
    results = outputs(case, leaves)
    total = sum((x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in results)
    return list(torch.autograd.grad(total, [x for x in leaves if x.requires_grad]))
