"""The ConvGRU of the native library against float64, in poisoned memory, on every layout; hostile arguments."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gwsss_fast import GwsssError, ops
from gwsss_fast.native import convolutions, library
from gwsss_fast.ops import dispatch
from tests.ops.cases import dense, strided
from tests.ops.golden import assert_as_good_as_plain, poisoned_memory, run

if library.prepare() is not None:
    pytest.skip(str(library.prepare()), allow_module_level=True)

RAW = torch.ops.gwsss_fast_native
SHAPES = [(9, 1, 1, 1), (4, 20, 37, 1), (1, 20, 157, 5), (2, 65, 1, 1), (3, 33, 4, 5)]  # (M, C, H, W)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def inputs(
    shape: tuple[int, ...], kernel: int, dtype: torch.dtype, make: Callable[..., Tensor] = dense
) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    channels = shape[1]
    weight = dense((3 * channels, 2 * channels, kernel, kernel), dtype, generator) / (channels**0.5 * kernel)
    tensors = [make(shape, dtype, generator), make(shape, dtype, generator)]
    return [*tensors, weight, dense((3 * channels,), dtype, generator)], [dense(shape, torch.float64, generator)]


@DTYPES
@pytest.mark.parametrize("make", [dense, strided])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_plain_pytorch(
    shape: tuple[int, ...], kernel: int, make: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    assert_as_good_as_plain("cpp", ops.conv_gru, *inputs(shape, kernel, dtype, make))


@DTYPES
def test_wide_states_in_channels_last(dtype: torch.dtype) -> None:
    """The layout and the channels of the paper."""
    (m, h, weight, bias), grads = inputs((2, 512, 5, 7), 1, dtype)
    m, h = (x.contiguous(memory_format=torch.channels_last) for x in (m, h))
    assert_as_good_as_plain("cpp", ops.conv_gru, [m, h, weight, bias], grads)


def test_gates_that_are_wide_open_or_shut() -> None:
    """Far beyond where exp overflows: the state is kept, or replaced by the candidate."""
    channels = 17
    weight = torch.zeros(3 * channels, 2 * channels, 1, 1)
    h = dense((1, channels, 2, 3), torch.float32, torch.Generator())
    for update, candidate, expected in (
        (-1e4, 1e4, h),
        (1e4, 1e4, torch.ones_like(h)),
        (1e4, -1e4, -torch.ones_like(h)),
    ):
        bias = torch.tensor([update, 0.0, candidate]).repeat_interleave(channels)
        values, slopes = run("cpp", ops.conv_gru, [h, h, weight, bias], [h])
        torch.testing.assert_close(values[0], expected)
        assert all(slope.isfinite().all() for slope in slopes)


def test_nan_comes_through_as_in_the_reference() -> None:
    (m, h, weight, bias), grads = inputs((1, 18, 2, 2), 1, torch.float32)
    m[0, 0, 0, 0] = float("nan")
    theirs, ours = (run(name, ops.conv_gru, [m, h, weight, bias], grads)[0][0] for name in ("reference", "cpp"))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert ours[..., 0, 0].isnan().all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_empty_batch_and_repetition(kernel: int) -> None:
    tensors, grads = inputs((0, 4, 3, 3), kernel, torch.float32)
    values, slopes = run("cpp", ops.conv_gru, tensors, grads)
    assert values[0].shape == (0, 4, 3, 3)
    assert [x.shape for x in slopes] == [x.shape for x in tensors]
    tensors, grads = inputs((2, 40, 9, 9), kernel, torch.float32)
    (first, slopes), (second, others) = (run("cpp", ops.conv_gru, tensors, grads) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip([*first, *slopes], [*second, *others], strict=True))


@DTYPES
@pytest.mark.parametrize("wide", [1, 10**9])
@pytest.mark.parametrize("kernel", [1, 3])
def test_without_gradients_no_gates_are_kept(
    kernel: int, wide: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is the same, in memory that is no input's; by Winograd's way too."""
    monkeypatch.setattr(convolutions, "_WIDE", wide)
    monkeypatch.setattr(convolutions, "_MANY", 1)
    tensors, _ = inputs((2, 20, 3, 5), kernel, dtype, strided)
    before = [x.clone() for x in tensors]
    forward = dispatch.kernel("conv_gru", "cpp").forward
    with poisoned_memory():
        out, *gates = forward(*tensors, False)
        kept, *others = forward(*tensors, True)
    assert out.isfinite().all()
    assert torch.equal(out, kept)
    assert [x.numel() for x in gates] == [0, 0, 0]
    assert all(x.isfinite().all() and x.shape == out.shape for x in others)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_it_is_what_auto_takes_and_other_dtypes_are_refused() -> None:
    tensors, _ = inputs((1, 2, 2, 2), 1, torch.float32)
    assert dispatch.choose("conv_gru", *tensors) == "cpp"
    assert dispatch.choose("conv_gru", *(x.double() for x in tensors)) == "aten"
    with ops.backend("cpp"), pytest.raises(GwsssError, match=r"float32 and bfloat16, not torch\.float64"):
        ops.conv_gru(*(x.double() for x in tensors))


ROWS, DOUBLE = (4, 6), (4, 12)
SIGNATURES = {
    "conv_gru_gates": {"opened": DOUBLE, "h": ROWS, "z": ROWS, "r": ROWS, "reset": ROWS},
    "conv_gru_blend": {"c": ROWS, "h": ROWS, "z": ROWS, "out": ROWS},
    "conv_gru_slopes": {"grad": ROWS, "h": ROWS, "z": ROWS, "c": ROWS, "slope_z": ROWS, "slope_c": ROWS},
    "conv_gru_reset": {"grad_reset": ROWS, "h": ROWS, "r": ROWS, "slope_r": ROWS, "reset": ROWS},
    "conv_gru_join": {
        **{"grad": ROWS, "back": DOUBLE, "from_gates": DOUBLE},
        **{"z": ROWS, "r": ROWS, "grad_m": ROWS, "grad_h": ROWS},
    },
}


@pytest.mark.parametrize(("operation", "argument"), [(name, x) for name, shapes in SIGNATURES.items() for x in shapes])
def test_hostile_arguments_are_named(operation: str, argument: str) -> None:
    call = getattr(RAW, operation)
    fine = {name: torch.zeros(shape) for name, shape in SIGNATURES[operation].items()}
    call(**fine)
    rows, columns = fine[argument].shape
    first = "grad" if operation == "conv_gru_join" else "h"  # whose shape and type the others must have
    hostile = [torch.zeros(rows, columns, dtype=torch.float64)]
    hostile += [torch.zeros(columns, rows).T, torch.zeros(rows, columns, 1)]
    if argument != first:
        hostile += [
            torch.zeros(rows + 1, columns),
            torch.zeros(rows, columns + 1),
            torch.zeros(rows, columns).bfloat16(),
        ]
    for tensor in hostile:
        with pytest.raises(RuntimeError, match=f"{operation}: {argument} must"):
            call(**{**fine, argument: tensor})
