"""The edge readout's Triton kernels against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gwsss_fast import ops
from gwsss_fast.launch import edge_readout as starts
from gwsss_fast.launch import launcher
from tests.ops.golden import assert_as_good_as_plain, run

pytestmark = pytest.mark.skipif(launcher.missing() is not None, reason=str(launcher.missing()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


def case(
    shape: tuple[int, int, int, int], dtype: torch.dtype, scale: float = 0.5, mean: float = 0.0, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """Nodes (B, K, N, C) and the gradients of both results."""
    generator = torch.Generator().manual_seed(seed)
    groups, nodes, _, channels = shape

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    g = scale * draw(*shape) + mean
    grads = [draw(groups, nodes, nodes, 2 * channels) for _ in range(2)]
    return [g.to(DEVICE, dtype)], [x.to(DEVICE, dtype) for x in grads]


@both_dtypes
@pytest.mark.parametrize(
    "shape",
    [(3, 1, 1, 20), (1, 2, 37, 20), (2, 3, 1, 33), (1, 4, 6, 20), (1, 5, 3, 8), (1, 1, 37, 70)],
    ids=str,
)
def test_values_and_gradients(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    assert_as_good_as_plain("triton", ops.edge_readout, *case(shape, dtype))


@both_dtypes
@pytest.mark.parametrize("shape", [(1, 1, 785, 4), (1, 1, 3, 512)], ids=str)
def test_many_positions_and_many_channels(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    assert_as_good_as_plain("triton", ops.edge_readout, *case(shape, dtype))


@both_dtypes
@pytest.mark.parametrize(("shape", "scale", "mean"), [((1, 1, 40, 24), 0.5, 1.5), ((1, 2, 9, 64), 0.1, 16.0)], ids=str)
def test_features_far_from_zero(
    shape: tuple[int, int, int, int], scale: float, mean: float, dtype: torch.dtype
) -> None:
    """As after a ReLU: the gradients of the scores cancel in their rows. With large scores a weight is 1 only where
    both sides of the diagonal are rounded alike."""
    assert_as_good_as_plain("triton", ops.edge_readout, *case(shape, dtype, scale, mean))


def test_scores_beyond_the_range_of_float16() -> None:
    """x x^T exceeds 65504: plain float16 products overflow; here scores are float32 and results stay right."""
    (g,), grads = case((1, 2, 9, 64), torch.float16, scale=60.0)
    assert (g[0, 0] @ g[0, 0].mT).isinf().any()
    assert (g[0, 0].mT @ g[0, 0]).isinf().any()
    assert_as_good_as_plain("triton", ops.edge_readout, [g], grads)


def transposed(g: Tensor) -> Tensor:
    return g.transpose(2, 3).contiguous().transpose(2, 3)


def padded(g: Tensor) -> Tensor:
    """A hole after the channels of every position."""
    groups, nodes, positions, channels = g.shape
    return g.new_full((groups, nodes, positions, channels + 3), float("nan"))[..., :channels].copy_(g)


def windowed(g: Tensor) -> Tensor:
    """Holes between positions, nodes and groups."""
    groups, nodes, positions, channels = g.shape
    wide = g.new_full((groups, nodes + 1, positions + 2, channels + 1), float("nan"))
    return wide[:, 1:, 1:-1, 1:].copy_(g)


@pytest.mark.parametrize("layout", [transposed, padded, windowed])
def test_layout_does_not_matter(layout) -> None:
    (g,), grads = case((2, 2, 5, 6), torch.float16)
    expected = run("triton", ops.edge_readout, [g], grads)
    loose = run("triton", ops.edge_readout, [layout(g)], [layout(x) for x in grads])
    for ours, theirs in zip([*expected[0], *expected[1]], [*loose[0], *loose[1]], strict=True):
        torch.testing.assert_close(ours, theirs)


@both_dtypes
def test_one_node_a_group_whatever_the_stride_that_does_not_count(dtype: torch.dtype) -> None:
    """PyTorch calls (3, 1, N, C) contiguous with any stride of its second dimension."""
    (g,), grads = case((3, 1, 5, 16), dtype)
    odd = g.as_strided(g.shape, (80, 240, 16, 1))
    assert odd.is_contiguous()
    assert_as_good_as_plain("triton", ops.edge_readout, [odd], grads)


@both_dtypes
def test_same_bits_every_time(dtype: torch.dtype) -> None:
    inputs, grads = case((1, 2, 21, 20), dtype)
    first, second = (run("triton", ops.edge_readout, inputs, grads) for _ in range(2))
    for ours, again in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
        assert ours.isfinite().all()
        assert torch.equal(ours, again)


def test_reversed_edges_exchange_the_halves() -> None:
    (g,), _ = case((2, 3, 7, 20), torch.float16)
    with ops.backend("triton"):
        for means in ops.edge_readout(g):
            assert torch.equal(means.transpose(1, 2), means.roll(20, -1))


@pytest.mark.parametrize("power", [-6, 0, 9])
def test_gradients_of_any_size_in_float16(power: int) -> None:
    """What multiplies the nodes is scaled into float16's range and back: results follow a power of two exactly."""
    inputs, grads = case((2, 1, 37, 20), torch.float16)
    _, (expected,) = run("triton", ops.edge_readout, inputs, grads)
    _, (ours,) = run("triton", ops.edge_readout, inputs, [x * 2.0**power for x in grads])
    normal = ours.abs() >= torch.finfo(torch.float16).tiny
    assert torch.equal(ours[normal], (expected.float() * 2.0**power).half()[normal])


def test_no_gradient_and_an_overflowed_one() -> None:
    inputs, grads = case((1, 2, 7, 20), torch.float16)
    _, (none,) = run("triton", ops.edge_readout, inputs, [torch.zeros_like(x) for x in grads])
    assert not none.any()
    grads[0][0, 0, 1, 3] = float("inf")  # a loss scale that was too high has to be seen
    _, (overflowed,) = run("triton", ops.edge_readout, inputs, grads)
    assert not overflowed.isfinite().all()


@pytest.mark.parametrize("used", [0, 1])
def test_one_result_alone_may_be_used(used: int) -> None:
    (g,), grads = case((1, 2, 7, 5), torch.float32)
    leaf = g.clone().requires_grad_()
    with ops.backend("triton"):
        (alone,) = torch.autograd.grad(ops.edge_readout(leaf)[used], leaf, grads[used])
    grads[1 - used].zero_()
    _, (expected,) = run("reference", ops.edge_readout, [g], grads)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_which_kernels_run(dtype: torch.dtype) -> None:
    """In float32 PyTorch makes the products; K matrices and one matrix of blocks serve all K^2 edges."""
    g = torch.empty(2, 4, 49, 32, device="meta", dtype=dtype)
    with launcher.record() as started:
        position, channel, *statistics = starts.edge_readout(g)
    names = [launch.kernel.__name__ for launch in started if launch.kernel.__name__ not in ("gram", "mirror")]
    assert names == ["position_statistics", "position_weights", "position_readout", "channel_readout"]
    assert len(started) - len(names) == 2
    with launcher.record() as started:
        starts.edge_readout_backward(position, channel, g, *statistics)
    names = [launch.kernel.__name__ for launch in started if launch.kernel.__name__ not in ("gram", "mirror")]
    expected = ["weight_slopes", "mean_slopes", "position_gradient", "channel_gradient"]
    assert names == [*expected, *(["node_gradient"] if dtype == torch.bfloat16 else [])]
