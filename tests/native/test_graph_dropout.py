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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"g": torch.zeros(3, 4)}, "g must be"),
        ({"g": torch.zeros(2, 3, 4, 5, dtype=torch.float64)}, "g must be float32 or bfloat16"),
        ({"g": torch.zeros(2, 3, 5, 4).transpose(2, 3)}, "g must be contiguous"),
        ({"keep_salient": torch.zeros(2, 3)}, "keep_salient must"),
        ({"keep_salient": torch.zeros(2, 4, dtype=torch.bool)}, "keep_salient must have the shape"),
        ({"out": torch.zeros(2, 3, 4, 6)}, "out must have the shape"),
        ({"out": torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16)}, "out must be Float"),
        ({"o": torch.zeros(2, 3, 5)}, "o must have the shape"),
    ],
)
def test_hostile_arguments_are_named(changed: dict[str, Tensor], message: str) -> None:
    fine = {
        "g": torch.zeros(2, 3, 4, 5),
        "keep_salient": torch.zeros(2, 3, dtype=torch.bool),
        "drop_threshold": 0.7,
        "out": torch.zeros(2, 3, 4, 5),
        "o": torch.zeros(2, 3, 4),
    }
    RAW.graph_dropout(**fine)
    with pytest.raises(RuntimeError, match=f"graph_dropout: {message}"):
        RAW.graph_dropout(**{**fine, **changed})


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
