"""The ConvGRU's Triton kernels against float64: fused products for kernel 1, pointwise kernels around products else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gwsss_fast import ops
from gwsss_fast.launch import conv_gru as starts
from gwsss_fast.launch import launcher
from gwsss_fast.ops import dispatch
from tests.ops.golden import assert_as_good_as_plain, run

pytestmark = pytest.mark.skipif(launcher.missing() is not None, reason=str(launcher.missing()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def case(
    shape: tuple[int, int, int, int], kernel: int, dtype: torch.dtype, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """m, h, weight, bias and the gradient of the new state; message and state in channels last."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    weight = draw(3 * channels, 2 * channels, kernel, kernel) * (2 * channels * kernel**2) ** -0.5
    tensors = [draw(*shape), draw(*shape), weight, draw(3 * channels), draw(*shape)]
    m, h, weight, bias, grad = (x.to(DEVICE, dtype) for x in tensors)
    m, h, grad = (x.contiguous(memory_format=torch.channels_last) for x in (m, h, grad))
    return [m, h, weight, bias], grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        *(((3, 20, 1, 1), k) for k in (1, 3, 5)),
        *(((2, 20, 1, 37), k) for k in (1, 3)),
        *(((1, 6, 5, 157), k) for k in (1, 3)),
        *(((2, 33, 3, 4), k) for k in (1, 5)),
    ],
    ids=str,
)
def test_values_and_gradients(shape: tuple[int, int, int, int], kernel: int, dtype: torch.dtype) -> None:
    inputs, grad = case(shape, kernel, dtype)
    assert_as_good_as_plain("triton", ops.conv_gru, inputs, [grad])


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_maps_at_all(kernel: int, dtype: torch.dtype) -> None:
    inputs, grad = case((0, 4, 2, 3), kernel, dtype)
    values, gradients = run("triton", ops.conv_gru, inputs, [grad])
    assert values[0].shape == (0, 4, 2, 3)
    assert [x.shape for x in gradients] == [x.shape for x in inputs]
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_papers_channels(dtype: torch.dtype) -> None:
    inputs, grad = case((1, 512, 1, 3), 1, dtype)
    assert_as_good_as_plain("triton", ops.conv_gru, inputs, [grad])


@pytest.mark.skipif(DEVICE == "cuda", reason="tensor cores round float32 to tf32; the interpreter does not")
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("shape", [(3, 20, 1, 1), (1, 20, 1, 37), (1, 6, 5, 157), (1, 130, 3, 4)], ids=str)
def test_fused_kernels_in_float32(shape: tuple[int, int, int, int]) -> None:
    inputs, grad = case(shape, 1, torch.float32)
    assert_as_good_as_plain("triton", ops.conv_gru, inputs, [grad])


def packed(x: Tensor) -> Tensor:
    return x.contiguous()


def padded(x: Tensor) -> Tensor:
    """Channels last with a hole after the channels of every position."""
    batch, channels, height, width = x.shape
    wide = x.new_full((batch, height, width, channels + 3), float("nan")).permute(0, 3, 1, 2)[:, :channels]
    return wide.copy_(x)


def windowed(x: Tensor) -> Tensor:
    """A window of a larger image: rows of positions do not follow each other evenly."""
    batch, channels, height, width = x.shape
    return x.new_full((batch, channels, height + 1, width + 2), float("nan"))[..., 1:, 1:-1].copy_(x)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [packed, padded, windowed])
@pytest.mark.parametrize(("kernel", "dtype"), [(1, torch.float16), (1, torch.float32), (3, torch.float32)], ids=str)
def test_layout_does_not_matter(layout, kernel: int, dtype: torch.dtype, batch: int) -> None:
    """A single image in PyTorch's usual layout is a matrix of rows whose channels are far apart."""
    inputs, grad = case((batch, 5, 4, 3), kernel, dtype)
    expected = run("triton", ops.conv_gru, inputs, [grad])
    weight = inputs[2].transpose(0, 1).contiguous().transpose(0, 1)
    loose = run("triton", ops.conv_gru, [layout(inputs[0]), layout(inputs[1]), weight, inputs[3]], [layout(grad)])
    for ours, theirs in zip([*expected[0], *expected[1]], [*loose[0], *loose[1]], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("kernel", "dtype"), [(1, torch.float16), (1, torch.float32), (3, torch.float32)], ids=str)
def test_same_bits_every_time(kernel: int, dtype: torch.dtype) -> None:
    inputs, grad = case((3, 20, 5, 7), kernel, dtype)
    first, second = (run("triton", ops.conv_gru, inputs, [grad]) for _ in range(2))
    for ours, again in zip([*first[0], *first[1]], [*second[0], *second[1]], strict=True):
        assert ours.isfinite().all()
        assert torch.equal(ours, again)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_gates_are_kept_only_for_a_backward_pass(kernel: int, backend: str) -> None:
    inputs, grad = case((1, 4, 2, 3), kernel, torch.float32)
    function = dispatch.kernel("conv_gru", backend).forward
    out, *gates = function(*inputs, True)
    alone, *none = function(*inputs, False)
    assert torch.equal(out, alone)
    assert [x.numel() for x in gates] == 3 * [grad.numel()]
    assert [x.numel() for x in none] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_gates_at_their_ends(dtype: torch.dtype) -> None:
    """Open and shut gates and a saturated candidate: no overflow, and exactly the state or the candidate."""
    m, h = torch.full((1, 2, 1, 1), 60.0, dtype=dtype), torch.tensor([[[[0.5]], [[-2.0]]]], dtype=dtype)
    weight = torch.zeros(6, 4, 1, 1, dtype=dtype)
    for gate, channel, value in ((0, 0, 500.0), (0, 1, -500.0), (2, 0, -500.0), (2, 1, 500.0)):
        weight[2 * gate + channel, channel] = value
    inputs = [x.to(DEVICE) for x in (m, h, weight, torch.zeros(6, dtype=dtype))]
    (out,), grads = run("triton", ops.conv_gru, inputs, [torch.ones_like(inputs[1])])
    assert out.flatten().tolist() == [-1.0, -2.0]
    assert all(x.isfinite().all() for x in grads)
    assert grads[1].flatten().tolist() == [0.0, 1.0]


@pytest.mark.usefixtures("tf32")
def test_small_candidates_keep_their_digits() -> None:
    """tanh near zero has a relative error of float32, not an absolute one."""
    values = torch.logspace(-6, 1, 64, dtype=torch.float64).reshape(1, 4, 4, 4)
    m = torch.cat([values, -values]).to(DEVICE, torch.float32)
    weight = torch.zeros(12, 8, 1, 1, device=DEVICE)
    bias = torch.cat([torch.full((4,), 50.0), torch.zeros(8)]).to(DEVICE)  # wide open: the new state is the candidate
    weight[8:, :4, 0, 0] = torch.eye(4)
    with ops.backend("triton"):
        out = ops.conv_gru(m, torch.zeros_like(m), weight, bias).double()
    exact = m.double().tanh()
    room = 2**-9 if DEVICE == "cuda" else 1e-6  # tf32 keeps 11 bits of m
    assert ((out - exact) / exact).abs().max() < room


@pytest.mark.parametrize(
    ("kernel", "dtype", "fused"),
    [(1, torch.float16, True), (1, torch.float32, False), (3, torch.float16, False)],
    ids=str,
)
def test_which_kernels_run(kernel: int, dtype: torch.dtype, fused: bool) -> None:
    x = torch.empty(2, 8, 3, 3, device="meta", dtype=dtype)
    weight, bias = (torch.empty(*size, device="meta", dtype=dtype) for size in ((24, 16, kernel, kernel), (24,)))
    with launcher.record() as started:
        out, *gates = starts.conv_gru(x, x, weight, bias, True)
        starts.conv_gru_backward(out, x, x, weight, bias, *gates)
    names = [launch.kernel.__name__ for launch in started]
    expected = ["gates", "candidate", "update_slopes", "reset_gradient"]
    products = ["gates_of_products", "blend", "update_slopes", "reset_slopes", "join_gradients"]
    assert names == (expected if fused else products)
