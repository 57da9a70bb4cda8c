"""Graph dropout of the native library against float64, in poisoned memory, on every layout; hostile arguments."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gwsss_fast import GwsssError, ops
from gwsss_fast.native import library
from gwsss_fast.ops import dispatch
from tests.ops.cases import dense, strided
from tests.ops.golden import assert_as_good_as_plain, run

if library.prepare() is not None:
    pytest.skip(str(library.prepare()), allow_module_level=True)

RAW = torch.ops.gwsss_fast_native
SHAPES = [(1, 1, 1, 1), (2, 5, 37, 20), (3, 2, 785, 12), (1, 2, 49, 512), (2, 1, 1, 33)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def nodes(shape: tuple[int, ...], dtype: torch.dtype, make: Callable[..., Tensor] = dense) -> Tensor:
    """Means that are mostly positive, so that the drop map both keeps and drops."""
    return make(shape, dtype, torch.Generator().manual_seed(1)) + 0.3


@DTYPES
@pytest.mark.parametrize("make", [dense, strided])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_plain_pytorch(shape: tuple[int, ...], make: Callable[..., Tensor], dtype: torch.dtype) -> None:
    g, grad = nodes(shape, dtype, make), dense(shape, torch.float64, torch.Generator().manual_seed(2))
    draws = (torch.linspace(0.95, 0.1, shape[0]), torch.rand(shape[:2], generator=torch.Generator().manual_seed(3)))
    for r in draws:  # one a group, one a node
        assert_as_good_as_plain("cpp", lambda x, r=r: ops.graph_dropout(x, r, 0.6, 0.7), [g], [grad])


def test_both_maps_by_hand() -> None:
    """Means 1, 2 and 10: under the threshold of 7 the drop map keeps the first two, scaled by their means."""
    g = torch.tensor([[1.0, 1.0], [1.0, 3.0], [10.0, 10.0]]).reshape(1, 1, 3, 2).requires_grad_()
    with ops.backend("cpp"):
        dropped = ops.graph_dropout(g, torch.tensor([0.9]), 0.8, 0.7)
        kept = ops.graph_dropout(g, torch.tensor([0.1]), 0.8, 0.7)
    torch.testing.assert_close(dropped.squeeze(), torch.tensor([[1.0, 1.0], [2.0, 6.0], [0.0, 0.0]]))
    torch.testing.assert_close(kept, g * torch.sigmoid(torch.tensor([1.0, 2.0, 10.0])).reshape(1, 1, 3, 1))
    (grad,) = torch.autograd.grad(dropped.sum(), g)  # s + (sum of g) / C where kept
    torch.testing.assert_close(grad.squeeze(), torch.tensor([[2.0, 2.0], [4.0, 4.0], [0.0, 0.0]]))


def test_nan_stays_in_sight() -> None:
    """As in the reference: no position is below a threshold that is no number, and the one with NaN shows it."""
    g = nodes((1, 1, 4, 3), torch.float32)
    g[0, 0, 2, 1] = float("nan")
    for r in (0.1, 0.9):
        results = [run(name, lambda x: ops.graph_dropout(x, torch.tensor([r])), [g], [g])[0][0] for name in NAMES]  # noqa: B023
        torch.testing.assert_close(*results, equal_nan=True)
        assert results[0].isnan().any()


NAMES = ("reference", "cpp")


def test_empty_nodes() -> None:
    for shape in ((0, 3, 5, 4), (2, 0, 5, 4), (2, 3, 0, 4)):
        g = torch.zeros(shape, requires_grad=True)
        with ops.backend("cpp"):
            out = ops.graph_dropout(g, torch.zeros(shape[0]))
        out.sum().backward()
        assert out.shape == g.grad.shape == shape


def test_threads_do_not_change_the_result() -> None:
    g, r = nodes((2, 3, 300, 64), torch.float32), torch.tensor([0.1, 0.9])
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run("cpp", lambda x: ops.graph_dropout(x, r), [g], [g]))
    finally:
        torch.set_num_threads(before)
    for values, slopes in results[1:]:
        assert torch.equal(values[0], results[0][0][0])
        assert torch.equal(slopes[0], results[0][1][0])


def test_it_is_what_auto_takes_and_other_dtypes_are_refused() -> None:
    g, r = torch.zeros(1, 1, 2, 2), torch.zeros(1)
    assert dispatch.choose("graph_dropout", g, r) == dispatch.choose("graph_dropout", g.bfloat16(), r) == "cpp"
    for other in (g.double(), g.half()):
        assert dispatch.choose("graph_dropout", other, r) == "reference"
    with ops.backend("cpp"), pytest.raises(GwsssError, match=r"float32 and bfloat16, not torch\.float16"):
        ops.graph_dropout(g.half(), r)


@DTYPES
@pytest.mark.parametrize("channels", [1, 20, 48, 64, 512])
def test_past_the_caches_is_written_what_else_goes_to_them(channels: int, dtype: torch.dtype) -> None:
    """Rows of 48 channels and more begin where whole vectors may be written so, the others do not."""
    g, r = nodes((2, 3, 37, channels), dtype), torch.tensor([0.1, 0.9])
    grad = dense(g.shape, dtype, torch.Generator().manual_seed(2))
    cached = RAW.graph_dropout_on_cpu(g, r, 0.8, 0.7, True, False)
    past = RAW.graph_dropout_on_cpu(g, r, 0.8, 0.7, True, True)
    for value, other in zip(past, cached, strict=True):
        assert value.isfinite().all()
        assert torch.equal(value, other)
    slopes = [RAW.graph_dropout_on_cpu_backward(grad, g, past[1], r, 0.8, 0.7, True, way) for way in (False, True)]
    assert slopes[0].isfinite().all()
    assert torch.equal(*slopes)


def test_more_than_the_caches_hold() -> None:
    """Whatever the library chooses by what Linux tells of the caches."""
    g = torch.ones(1, 1, 20000, 512)  # 80 MiB in and out
    out, o = RAW.graph_dropout_on_cpu(g, torch.zeros(1), 0.8, 0.7, False)
    assert torch.equal(o, torch.ones(1, 1, 20000))
    assert (out == torch.sigmoid(torch.ones(()))).all()


def test_draws_of_any_kind_and_layout() -> None:
    g = nodes((2, 3, 7, 5), torch.float32)
    r = torch.rand(3, 4, generator=torch.Generator().manual_seed(4)).T[1:3]  # (2, 3), its rows a value apart
    assert not r.is_contiguous()
    wanted = RAW.graph_dropout_on_cpu(g, r.contiguous(), 0.5, 0.7, True)[0]
    with ops.backend("cpp"):
        for draws in (r, r.double(), r.double().contiguous()):
            assert torch.equal(ops.graph_dropout(g, draws, 0.5, 0.7), wanted)
    assert torch.equal(RAW.graph_dropout_on_cpu(g, r < 0.5, 0.0, 0.7, True)[0], wanted)
    assert not torch.equal(RAW.graph_dropout_on_cpu(g, r >= 0.5, 0.0, 0.7, True)[0], wanted)
    at_the_rate = torch.tensor([0.8, 0.1])  # as PyTorch compares float32 with a number
    results = {}
    for name in NAMES:
        with ops.backend(name):
            results[name] = ops.graph_dropout(g, at_the_rate, 0.8)
    torch.testing.assert_close(results["cpp"], results["reference"])


def test_no_channels_are_no_crash() -> None:
    g, r = torch.zeros(1, 2, 3, 0), torch.tensor([0.9])
    out, o = RAW.graph_dropout_on_cpu(g, r, 0.8, 0.7, True)
    assert out.shape == RAW.graph_dropout_on_cpu_backward(g, g, o, r, 0.8, 0.7, True).shape == g.shape
    with ops.backend("cpp"), pytest.raises(GwsssError, match="at least one channel"):
        ops.graph_dropout(g, r)


def test_more_threads_than_pieces() -> None:
    before = torch.get_num_threads()
    g, r = nodes((1, 2, 3, 4), torch.float32), torch.tensor([0.9])
    try:
        torch.set_num_threads(7)
        many = ops.graph_dropout(g, r)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(many, ops.graph_dropout(g, r))


FINE = {
    "g": torch.zeros(2, 3, 4, 5),
    "r": torch.zeros(2),
    "drop_rate": 0.8,
    "drop_threshold": 0.7,
    "fill": False,
}
OF_BACKWARD = {"grad": torch.zeros(2, 3, 4, 5), "o": torch.zeros(2, 3, 4)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"g": torch.zeros(3, 4)}, "g must be"),
        ({"g": torch.zeros(2, 3, 4, 5, dtype=torch.float64)}, "g must be float32 or bfloat16"),
        ({"g": torch.zeros(2, 3, 5, 4).transpose(2, 3)}, "g must be contiguous"),
        ({"r": torch.zeros(())}, "r must be"),
        ({"r": torch.zeros(3)}, "r must be"),
        ({"r": torch.zeros(2, 4)}, "r must be"),
        ({"r": torch.zeros(2, 3, 1)}, "r must be"),
        ({"r": torch.zeros(2, dtype=torch.float64)}, "r must be float32 or bool"),
        ({"r": torch.zeros(2, device="meta")}, ""),
        ({"grad": torch.zeros(2, 3, 4, 6)}, "grad must have the shape"),
        ({"grad": torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16)}, "grad must be Float"),
        ({"o": torch.zeros(2, 3, 5)}, "o must have the shape"),
        ({"o": torch.zeros(2, 3, 4, dtype=torch.bfloat16)}, "o must be Float"),
    ],
)
def test_hostile_arguments_are_named(changed: dict[str, Tensor], message: str) -> None:
    calls = {"graph_dropout_backward": (RAW.graph_dropout_on_cpu_backward, {**FINE, **OF_BACKWARD})}
    if not changed.keys() & OF_BACKWARD.keys():
        calls["graph_dropout"] = (RAW.graph_dropout_on_cpu, FINE)
    for name, (call, fine) in calls.items():
        call(**fine)
        with pytest.raises((RuntimeError, NotImplementedError), match=f"{name}: {message}" if message else None):
            call(**{**fine, **changed})


def test_the_means_are_float32_whatever_the_default_type_is() -> None:
    g, r = torch.ones(1, 2, 3, 4), torch.tensor([0.5])
    torch.set_default_dtype(torch.float64)
    try:
        with ops.backend("cpp"):
            assert ops.graph_dropout(g, r).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_memory_freed_last_is_taken_first() -> None:
    """It is in the processor's caches, if any is."""
    RAW.dense_crf_forget()
    like = torch.empty(0)
    held = [RAW.new_empty(like, [1 << 18]) for _ in range(3)]
    places = [tensor.data_ptr() for tensor in held]
    for number in (1, 0, 2):
        held[number] = like
    held = [RAW.new_empty(like, [1 << 18]) for _ in range(3)]
    assert [tensor.data_ptr() for tensor in held] == [places[number] for number in (2, 0, 1)]
