"""Self-attention of the native library, with and without what is added to it."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import checking
from benchmarks.harness.cases import Operation, operation
from benchmarks.harness.sizes import Size
from gwsss_fast import GwsssError, ops
from tests.native.edges import DTYPES, SIZES, check, loose, need_library, run

PLAIN, SUMS = operation("attention"), operation("attention with sums")
BOTH = pytest.mark.parametrize("row", [PLAIN, SUMS], ids=lambda row: row.label)
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
@pytest.mark.parametrize("names", [("residual",), ("message",)], ids=str)
def test_one_addend_alone(names: tuple[str, ...], dtype: torch.dtype) -> None:
    q, k, v, *addends = SUMS.inputs(ODD, dtype, "cpu", 1)
    given = dict(zip(names, addends, strict=False))
    with ops.backend("cpp"):
        found = ops.attention(q, k, v, **given, message_scale=1e-9)
    wide = {name: x.double() for name, x in given.items()}
    with ops.backend("reference"):
        plain = ops.attention(q, k, v, **given, message_scale=1e-9)
        exact = ops.attention(q.double(), k.double(), v.double(), **wide, message_scale=1e-9)
    verdicts = checking.compare([found], [exact], [plain.to(dtype)], 1)
    assert all(verdict.passed for verdict in verdicts), verdicts


def test_any_number_of_axes() -> None:
    q, k, v = PLAIN.inputs(ODD, torch.float32, "cpu", 2)
    whole = run(PLAIN, [q, k, v])
    flat = run(PLAIN, [x[1, 2] for x in (q, k, v)])
    assert flat[0].shape == v.shape[2:]
    torch.testing.assert_close(flat[0], whole[0][1, 2])
    empty = run(PLAIN, [x[:0] for x in (q, k, v)])
    assert [x.shape for x in empty] == [(0, *x.shape[1:]) for x in (v, q, k, v)]


@DTYPES
def test_layout_does_not_matter(dtype: torch.dtype) -> None:
    tensors = SUMS.inputs(ODD, dtype, "cpu", 3)
    for one, other in zip(run(SUMS, [loose(x) for x in tensors]), run(SUMS, tensors), strict=True):
        assert torch.equal(one, other)


@DTYPES
def test_deterministic_and_free_of_what_memory_held(dtype: torch.dtype) -> None:
    tensors = PLAIN.inputs(BLOCKS, dtype, "cpu", 4)
    first = run(PLAIN, tensors)
    assert all(x.isnan().all() for x in run(PLAIN, [torch.full_like(x, float("nan")) for x in tensors]))
    assert all(torch.equal(one, other) for one, other in zip(run(PLAIN, tensors), first, strict=True))


def test_other_types_are_refused() -> None:
    for dtype in (torch.float16, torch.float64):
        tensors = PLAIN.inputs(ODD, dtype, "cpu", 0)
        with ops.backend("cpp"), pytest.raises(GwsssError, match="float32 and bfloat16, not"):
            ops.attention(*tensors)


def test_rows_of_one_score_take_its_value() -> None:
    """One position: the softmax is 1, so the result is v and the scores have no gradient."""
    q, k, v = PLAIN.inputs(Size("one", 1, 2, 1, 1, 7, 3), torch.float32, "cpu", 5)
    out, grad_q, grad_k, grad_v = run(PLAIN, [q, k, v])
    assert torch.equal(out, v)
    assert not grad_q.any()
    assert not grad_k.any()
    assert torch.equal(grad_v, checking.cotangents([out])[0])
