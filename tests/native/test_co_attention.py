"""Co-attention of the native library: values and gradients, memory, layouts, instruction sets, and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.harness.cases import Operation, operation
from benchmarks.harness.sizes import Size
from gwsss_fast import GwsssError, ops
from tests.native.edges import DTYPES, SIZES, check, loose, need_library, printed, run

TRANSPOSE, DIRECTED = operation("co_attention transpose"), operation("co_attention directed")
BOTH = pytest.mark.parametrize("row", [TRANSPOSE, DIRECTED], ids=lambda row: row.option)
ODD, BLOCKS = SIZES[1], SIZES[3]


@pytest.fixture(autouse=True)
def _library() -> None:
    need_library()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
@DTYPES
@BOTH
def test_agrees_with_float64(row: Operation, dtype: torch.dtype, size: Size) -> None:
    check(row, row.inputs(size, dtype, "cpu", 0))


@DTYPES
def test_without_neighbours_there_is_nothing(dtype: torch.dtype) -> None:
    values = run(TRANSPOSE, TRANSPOSE.inputs(Size("one node", 3, 1, 6, 7, 36, 9), dtype, "cpu", 0))
    assert [x.dtype for x in values] == [dtype] * 4
    assert not any(x.any() for x in values)


def test_gradients_in_bfloat16_are_summed_in_float32() -> None:
    """Rounded once a block of rows, sums of positive values such as these would be half again as far off."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 1344, width).mul(0.5).bfloat16() for width in (4, 4, 8)]

    def gradient(backend: str, dtype: torch.dtype) -> Tensor:
        tensors = [x.to(dtype).requires_grad_() for x in inputs]
        with ops.backend(backend):
            ops.co_attention(*tensors).sum().backward()
        assert tensors[2].grad is not None
        return tensors[2].grad.double()

    exact = gradient("reference", torch.float64)
    ours, rounded = gradient("cpp", torch.bfloat16), exact.bfloat16().double()
    assert (ours - exact).norm() <= 1.25 * (rounded - exact).norm()


def test_without_groups_or_positions() -> None:
    for groups, height in ((0, 5), (2, 0)):
        tensors = TRANSPOSE.inputs(Size("empty", groups, 3, height, 4, 8, 2), torch.float32, "cpu", 0)
        assert [x.shape for x in run(TRANSPOSE, tensors)[1:]] == [x.shape for x in tensors]


@DTYPES
def test_layout_does_not_matter(dtype: torch.dtype) -> None:
    tensors = TRANSPOSE.inputs(ODD, dtype, "cpu", 1)
    for one, other in zip(run(TRANSPOSE, [loose(x) for x in tensors]), run(TRANSPOSE, tensors), strict=True):
        assert torch.equal(one, other)


@DTYPES
@BOTH
def test_deterministic_and_free_of_what_memory_held(row: Operation, dtype: torch.dtype) -> None:
    """Between two equal calls, one that fills all kept memory with NaN."""
    tensors = row.inputs(BLOCKS, dtype, "cpu", 2)
    first = run(row, tensors)
    assert run(row, [torch.full_like(x, float("nan")) for x in tensors])[0].isnan().all()
    assert all(torch.equal(one, other) for one, other in zip(run(row, tensors), first, strict=True))


def test_threads_change_the_last_bits_at_most() -> None:
    """One thread works on edge after edge, three share each edge's products."""
    tensors = TRANSPOSE.inputs(Size("three", 1, 2, 20, 20, 36, 9), torch.float32, "cpu", 3)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(TRANSPOSE, tensors))
    finally:
        torch.set_num_threads(before)
    for values in results[1:]:
        for one, other in zip(values, results[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows_where_the_reference_shows_it(value: float) -> None:
    p, q, g = TRANSPOSE.inputs(ODD, torch.float32, "cpu", 4)
    p[0, 1, 3, 2] = value
    with ops.backend("cpp"):
        found = ops.co_attention(p, q, g)
    with ops.backend("reference"):
        wanted = ops.co_attention(p, q, g)
    # A score of minus infinity is a weight of zero, and the only one that may hide.
    assert torch.equal(found.isfinite(), wanted.isfinite())


def test_large_scores_do_not_overflow() -> None:
    p, q, g = (60 * x for x in TRANSPOSE.inputs(ODD, torch.float32, "cpu", 5))
    check(TRANSPOSE, [p, q, g])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    tensors = TRANSPOSE.inputs(ODD, dtype, "cpu", 0)
    with ops.backend("cpp"), pytest.raises(GwsssError, match="float32 and bfloat16, not"):
        ops.co_attention(*tensors)
    assert ops.co_attention(*tensors).dtype == dtype  # "auto" takes another backend


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_the_choice_and_takes_any_size(strict: bool) -> None:
    class Module(torch.nn.Module):
        def forward(self, p: Tensor, q: Tensor, g: Tensor) -> Tensor:
            return ops.co_attention(p, q, g)

    free = {axis: torch.export.Dim.DYNAMIC for axis in (0, 2)}
    tensors = tuple(TRANSPOSE.inputs(ODD, torch.float32, "cpu", 6))
    program = torch.export.export(Module(), tensors, dynamic_shapes=(free, free, free), strict=strict)
    assert "'cpp'" in program.graph_module.print_readable(print_output=False)
    others = TRANSPOSE.inputs(Size("other", 3, 3, 5, 3, 20, 5), torch.float32, "cpu", 6)
    assert torch.equal(program.module()(*others), ops.co_attention(*others))


@pytest.mark.parametrize("mixed", [False, True])
def test_compiled_without_a_graph_break(mixed: bool) -> None:
    def total(p: Tensor, q: Tensor, g: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            return ops.co_attention(p, q, g).float().square().sum()

    tensors = [x.requires_grad_() for x in TRANSPOSE.inputs(ODD, torch.float32, "cpu", 7)]
    torch.compiler.reset()
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*tensors), tensors)
    with ops.backend("cpp"):
        wanted = torch.autograd.grad(total(*tensors), tensors)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


CODE = """
from gwsss_fast.native import library
from tests.native.test_co_attention import sums
assert library.prepare() is None
print(f"in use: {library.information()['instruction set in use']}")
for name, numbers in sums().items():
    print(f"{name}: {numbers}")
print("alive")
"""


def sums() -> dict[str, list[float]]:
    """Sums of squares of values and gradients that agree with float64."""
    found = {}
    for row in (TRANSPOSE, operation("attention with sums")):
        for size in (Size("odd", 1, 2, 43, 1, 23, 5), BLOCKS):
            for dtype in (torch.float32, torch.bfloat16):
                values = check(row, row.inputs(size, dtype, "cpu", 0))
                found[f"{row.name} {size.name} {dtype}"] = [float(x.double().square().sum()) for x in values]
    return found


@pytest.mark.parametrize("name", ["baseline", "avx2"])
def test_instruction_sets_agree(name: str) -> None:
    """And the libraries that multiply: with AVX-512 another one may be faster."""
    told = printed(CODE, GWSSS_CPU=name)
    assert told.pop("in use") in ("baseline", name)  # what the processor has
    for key, numbers in sums().items():
        found = torch.tensor([float(x) for x in told[key][1:-1].split(",")])
        torch.testing.assert_close(found, torch.tensor(numbers), rtol=1e-5 if "float32" in key else 1e-2, atol=0)
