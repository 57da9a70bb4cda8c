"""Graph dropout's Triton kernels against float64 and plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gwsss_fast import ops
from gwsss_fast.launch import graph_dropout as starts
from gwsss_fast.launch import launcher
from tests.ops.golden import assert_as_good_as_plain, run

pytestmark = pytest.mark.skipif(launcher.missing() is not None, reason=str(launcher.missing()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


def nodes(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Nodes (B, K, N, C), their means on both sides of zero, and the gradient of the result."""
    generator = torch.Generator().manual_seed(seed)
    g, level, grad = (torch.randn(*size, generator=generator) for size in (shape, (*shape[:3], 1), shape))
    return (g + level).to(DEVICE, dtype), grad.to(DEVICE, dtype)


def dropped(r: Tensor, rate: float = 0.8, threshold: float = 0.7) -> Callable[[Tensor], Tensor]:
    return lambda g: ops.graph_dropout(g, r, drop_rate=rate, drop_threshold=threshold)


@both_dtypes
@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 20), (2, 5, 37, 20), (2, 2, 785, 5), (1, 3, 3, 512), (2, 4, 2, 1030)], ids=str
)
@pytest.mark.parametrize("per_node", [False, True])
def test_values_and_gradients(shape: tuple[int, ...], per_node: bool, dtype: torch.dtype) -> None:
    """Draws on both sides of the rate, once a group or once a node."""
    g, grad = nodes(shape, dtype)
    r = torch.linspace(0.95, 0.1, shape[0] * (shape[1] if per_node else 1), device=DEVICE)
    r = r.reshape(shape[:2]) if per_node else r
    assert_as_good_as_plain("triton", dropped(r), [g], [grad])


def transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def padded(x: Tensor) -> Tensor:
    """A hole after the channels of every position: rows still follow each other evenly."""
    return x.new_full((*x.shape[:3], x.shape[3] + 3), float("nan"))[..., : x.shape[3]].copy_(x)


def windowed(x: Tensor) -> Tensor:
    """Holes between positions, nodes and groups."""
    groups, count, positions, channels = x.shape
    wide = x.new_full((groups, count + 1, positions + 2, channels + 1), float("nan"))
    return wide[:, 1:, 1:-1, 1:].copy_(x)


@both_dtypes
@pytest.mark.parametrize("layout", [transposed, padded, windowed])
def test_layout_does_not_matter(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    g, grad = nodes((2, 3, 19, 20), dtype)
    r = torch.tensor([0.9, 0.1], device=DEVICE)
    for other in (layout(g), layout(grad)):
        assert not other.is_contiguous()
    packed, loose = (run("triton", dropped(r), [x], [y]) for x, y in ((g, grad), (layout(g), layout(grad))))
    for a, b in zip([*packed[0], *packed[1]], [*loose[0], *loose[1]], strict=True):
        assert torch.equal(a, b)
    (_, (expanded,)), (_, (ones,)) = (
        run("triton", dropped(r), [g], [x]) for x in (g.new_ones(1).expand(g.shape), torch.ones_like(g))
    )
    assert torch.equal(expanded, ones)


@both_dtypes
def test_a_fully_dropped_map(dtype: torch.dtype) -> None:
    """Equal positive means are all above 0.7 of their maximum: nothing is left, and nothing flows back."""
    g = torch.ones(1, 2, 37, 20, device=DEVICE, dtype=dtype)
    (out,), (grad,) = run("triton", dropped(torch.tensor([0.9], device=DEVICE)), [g], [g])
    assert not out.any()
    assert not grad.any()


def test_large_values_in_float16() -> None:
    """Channel sums beyond 65504, and products with the map that are not: both are float32 inside."""
    g, grad = nodes((2, 2, 9, 512), torch.float16)
    g = 200 * (1 + 0.1 * g)
    assert g.sum(-1, dtype=torch.float32).max() > 65504
    r = torch.tensor([0.9, 0.1], device=DEVICE)
    (out,), _ = run("triton", dropped(r), [g], [grad])
    assert out.isfinite().all()
    assert_as_good_as_plain("triton", dropped(r), [g], [grad])


def test_two_starts_forward_and_one_backward() -> None:
    g = torch.empty(2, 4, 49, 32, device="meta", dtype=torch.bfloat16)
    r = torch.empty(2, device="meta")
    with launcher.record() as forward:
        _, means = starts.graph_dropout(g, r, 0.8, 0.7)
    with launcher.record() as backward:
        starts.graph_dropout_backward(g, g, means, r, 0.8, 0.7)
    assert [start.kernel.__name__ for start in forward] == ["channel_mean", "scale"]
    assert [start.kernel.__name__ for start in backward] == ["scale_backward"]
