"""The edge readout of the native library against float64, in poisoned memory, on every layout; hostile arguments."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gwsss_fast import GwsssError, ops
from gwsss_fast.native import edge_readout, library
from gwsss_fast.ops import dispatch
from tests.ops.cases import dense, strided
from tests.ops.golden import assert_as_good_as_plain, run

if library.prepare() is not None:
    pytest.skip(str(library.prepare()), allow_module_level=True)

RAW = torch.ops.gwsss_fast_native
SHAPES = [(1, 1, 1, 1), (2, 5, 37, 20), (1, 2, 785, 20), (1, 4, 1, 20), (1, 3, 2, 33), (1, 1, 37, 512), (1, 2, 19, 300)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, make: Callable[..., Tensor] = dense, length: float = 2.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Nodes of this length a position: softmaxes that neither are flat nor pick one position."""
    generator = torch.Generator().manual_seed(1)
    groups, count, _, channels = shape
    g = (make(shape, torch.float64, generator) * length / channels**0.5).to(dtype)
    return [g], [dense((groups, count, count, 2 * channels), torch.float64, generator) for _ in range(2)]


@DTYPES
@pytest.mark.parametrize("make", [dense, strided])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_plain_pytorch(shape: tuple[int, ...], make: Callable[..., Tensor], dtype: torch.dtype) -> None:
    assert_as_good_as_plain("cpp", ops.edge_readout, *inputs(shape, dtype, make))


def test_scores_far_beyond_where_exp_overflows() -> None:
    """Positions of length 40 pick themselves; the reference and these kernels agree with float64."""
    assert_as_good_as_plain("cpp", ops.edge_readout, *inputs((1, 3, 37, 20), torch.float32, length=40.0))


def test_rows_that_pick_one_of_the_two_blocks() -> None:
    """Scores of one node tower over the other's: their shares underflow in the one edge, and count in the other."""
    (g,), grads = inputs((1, 3, 21, 20), torch.float32)
    g[0, 1] *= 8
    assert_as_good_as_plain("cpp", ops.edge_readout, [g], grads)


def test_nan_shows_where_it_does_in_the_reference() -> None:
    (g,), grads = inputs((1, 3, 5, 4), torch.float32)
    g[0, 1, 2, 1] = float("nan")
    theirs, ours = (run(name, ops.edge_readout, [g], grads)[0] for name in ("reference", "cpp"))
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, equal_nan=True)
        assert a.isnan().any()
        assert not a.isnan().all()


def test_no_groups() -> None:
    values, (slope,) = run("cpp", ops.edge_readout, [torch.zeros(0, 3, 5, 4)], [torch.zeros(0, 3, 3, 8)] * 2)
    assert [x.shape for x in values] == [(0, 3, 3, 8)] * 2
    assert slope.shape == (0, 3, 5, 4)


def test_threads_do_not_change_the_softmaxes() -> None:
    generator = torch.Generator().manual_seed(1)
    grams, toward = dense((3, 50, 50), torch.float32, generator), dense((3, 3, 50), torch.float32, generator)
    scores, mean = dense((90, 90), torch.float32, generator), dense((3, 30), torch.float32, generator)
    grad = dense((3, 3, 30), torch.float32, generator)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            changed, other = grams.clone(), scores.clone()
            found = [RAW.edge_readout_positions(grams), RAW.edge_readout_positions_backward(changed, toward), changed]
            found += [RAW.edge_readout_channels(scores, mean), RAW.edge_readout_channels_backward(other, mean, grad)]
            results.append([*found, other])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for found in results[1:] for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("size", [1, 15, 16, 37, 70])
def test_mirrored_matrices(size: int) -> None:
    matrices = dense((2, size, size), torch.float32, torch.Generator().manual_seed(1))
    upper, doubled = matrices.triu(), matrices.clone()
    RAW.edge_readout_mirror(doubled, True)
    assert torch.equal(doubled, matrices + matrices.mT)
    mirrored = matrices.clone()
    RAW.edge_readout_mirror(mirrored, False)
    assert torch.equal(mirrored, upper + upper.triu(1).mT)


@pytest.mark.parametrize("rows", [300, 700])
def test_symmetric_products_in_blocks(rows: int) -> None:
    """More rows than a block; the scores of channels are those of transposed nodes."""
    g = dense((2, rows, 350), torch.float32, torch.Generator().manual_seed(1))
    torch.testing.assert_close(edge_readout._position_scores(g), g @ g.mT, rtol=1e-4, atol=1e-3)
    x = torch.cat([g[0], g[1]], 1)
    torch.testing.assert_close(edge_readout._channel_scores(g), x.T @ x, rtol=1e-4, atol=1e-3)


def test_it_is_what_auto_takes_and_other_dtypes_are_refused() -> None:
    g = torch.zeros(1, 1, 2, 2)
    assert dispatch.choose("edge_readout", g) == dispatch.choose("edge_readout", g.bfloat16()) == "cpp"
    assert dispatch.choose("edge_readout", g.double()) == dispatch.choose("edge_readout", g.half()) == "aten"
    with ops.backend("cpp"), pytest.raises(GwsssError, match=r"float32 and bfloat16, not torch\.float64"):
        ops.edge_readout(g.double())


SIGNATURES = {
    "edge_readout_positions": {"grams": (2, 5, 5)},
    "edge_readout_positions_backward": {"grams": (2, 5, 5), "toward": (2, 2, 5)},
    "edge_readout_channels": {"scores": (6, 6), "mean": (2, 3)},
    "edge_readout_channels_backward": {"scores": (6, 6), "mean": (2, 3), "grad": (2, 2, 3)},
    "edge_readout_mirror": {"matrices": (2, 5, 5)},
}


@pytest.mark.parametrize(("operation", "argument"), [(name, x) for name, shapes in SIGNATURES.items() for x in shapes])
def test_hostile_arguments_are_named(operation: str, argument: str) -> None:
    call = getattr(RAW, operation)
    fine = {name: torch.zeros(shape) for name, shape in SIGNATURES[operation].items()}
    options = {"add": True} if operation.endswith("mirror") else {}
    call(**fine, **options)
    shape = fine[argument].shape
    hostile = [torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(7)]
    hostile += [torch.zeros(*shape[:-1], 9), torch.zeros(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)[..., :-1]]
    hostile += [torch.zeros(*shape[:-1], 2 * shape[-1])[..., ::2]]
    for tensor in hostile:
        gives_sizes = argument == "mean" and tensor.shape != shape
        named = "(mean|scores|grad)" if gives_sizes else argument
        with pytest.raises(RuntimeError, match=f"{operation}: {named} must"):
            call(**{**fine, argument: tensor}, **options)
