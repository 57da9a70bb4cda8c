"""What no version can be much faster than: an operation's bytes or matrix products alone, on its own tensors.

They are timed in turn with the versions, so that caches, threads and other work are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness.cases import Operation
from benchmarks.harness.timing import Call, interleave, wall_clock
from gwsss_fast.native import products

NAMES = ("copy", "sum", "products")


def calls(operation: Operation, versions: Sequence[list[Tensor]], backward: bool) -> dict[str, list[Call]]:
    """By name, one call for each set of inputs; none for operations that are neither bytes nor known products.

    "copy alone" reads and writes what graph dropout must, "sum alone" what its backward pass must; "products alone" are
    those of a ConvGRU with kernel 1, each by the library that is the faster here.
    """
    if moves_bytes(operation):
        target = torch.empty_like(versions[0][0])
        move = _sum if backward else _copy
        return {"sum alone" if backward else "copy alone": [move(tensors[0], target) for tensors in versions]}
    if operation.name == "conv_gru" and operation.kernel == 1:
        make = _gradient_products if backward else _products
        return {"products alone": [make(*tensors) for tensors in versions]}
    return {}


def moves_bytes(operation: Operation) -> bool:
    """Whether it does little else: who found inputs in the last cache that another has read would be the faster."""
    return operation.name == "graph_dropout"


def last_cache() -> float:
    """Bytes of the processor's last cache as Linux tells them, else 32 MiB."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii").strip()
        return float(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
    except (OSError, ValueError):
        return 2.0**25


def onednn_rate(side: int, rounds: int) -> float:
    """Floating-point operations a second of a square float32 product, as the native library makes them."""
    left, right = (torch.randn(side, side) for _ in range(2))
    products.product(left, right)
    times = interleave({"gemm": [lambda: products.product(left, right)]}, wall_clock, rounds)
    return 2.0 * side**3 / (1e-3 * times["gemm"].p50)


def _copy(g: Tensor, target: Tensor) -> Call:
    return lambda: target.copy_(g)


def _sum(g: Tensor, target: Tensor) -> Call:
    other = torch.randn_like(g)
    return lambda: torch.add(g, other, out=target)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _in_turn(steps: Sequence[Callable[[], Tensor]]) -> Call:
    def run() -> None:
        for step in steps:
            step()

    return run


def _products(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Call:
    channels, flat = h.shape[1], weight.flatten(1)
    joined = torch.cat([_rows(m), _rows(h)], 1)
    ranges = (slice(None, 2 * channels), slice(2 * channels, None))
    return _in_turn([lambda part=part: products.product(joined, flat[part], bias[part]) for part in ranges])  # type: ignore[misc]


def _gradient_products(m: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Call:
    channels, flat = h.shape[1], weight.flatten(1)
    joined = torch.cat([_rows(m), _rows(h)], 1)
    gates, candidate = torch.randn_like(joined), torch.randn_like(_rows(h))
    return _in_turn(
        [
            lambda: products.product(candidate, flat[2 * channels :].T),
            lambda: products.product(gates, flat[: 2 * channels].T),
            lambda: products.product(candidate.T, joined.T),
            lambda: products.product(gates.T, joined.T),
        ]
    )
