"""The kernels of an emulated GPU against the reference.

In a process of its own, as the emulated library has the names of the real one.
"""

import itertools
import re

import pytest
import torch
from torch import Tensor

from gwsss_fast import reference
from tests.ops.test_dense_crf import NAMES, photograph

SHAPES = [(1, 1, 1, 1), (2, 1, 37, 20), (1, 2, 131, 64), (1, 2, 9, 17), (1, 1, 70, 700), (3, 1, 8, 36)]
CRF = {
    "both": (3, 3, 50, 5, 10, 2),
    "colours": (3, 0, 20, 3, 4, 2),
    "positions": (3, 3, 20, 3, 0, 1),
    "none": (3, 0, 9, 9, 0, 1),
}


def near(ours: Tensor, truth: Tensor, plain: Tensor, factor: float) -> None:
    """By the tolerance rule, with a quarter of the dtype's rounding step besides."""
    error, allowed = ((x.double() - truth).abs().max() for x in (ours, plain))
    assert error <= factor * allowed + torch.finfo(ours.dtype).eps / 4 * truth.abs().max() + 1e-12, (error, allowed)


def dropout() -> None:
    """Forward and backward in all types, rows of whole vectors and others, fresh memory full of NaN."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([[0.9, 0.1], [0.3, 0.95], [0.9, 0.2]])
    raw = torch.ops.gwsss_fast_native
    for shape, dtype in itertools.product(SHAPES, (torch.float32, torch.float16, torch.bfloat16)):
        g, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        r = draws[: shape[0], : shape[1]]
        out, grad_g = (torch.full_like(g, torch.nan) for _ in range(2))
        o = torch.full(shape[:3], torch.nan)
        keep = (r < 0.8).contiguous()
        raw.graph_dropout(g, keep, 0.7, out, o)
        raw.graph_dropout_backward(grad, g, o, keep, 0.7, grad_g)
        plain, plain_o = reference.graph_dropout(g, r, 0.8, 0.7)
        exact, exact_o = reference.graph_dropout(g.double(), r, 0.8, 0.7)
        near(out, exact, plain, 2)
        near(o, exact_o, plain_o, 2)
        plain = reference.graph_dropout_backward(grad, g, plain_o, r, 0.8, 0.7)
        near(grad_g, reference.graph_dropout_backward(grad.double(), g.double(), exact_o, r, 0.8, 0.7), plain, 3)


def shifted() -> None:
    """Rows that could be whole vectors but do not begin at multiples of 16 bytes give the same as those that do."""
    raw = torch.ops.gwsss_fast_native
    memory = torch.randn(2 * 3 * 10 * 64 + 1, generator=torch.Generator().manual_seed(2))
    keep = torch.tensor([[True, False, True], [False, True, False]])
    for dtype in (torch.float32, torch.bfloat16):
        g = memory.to(dtype)[1:].view(2, 3, 10, 64)
        assert g.data_ptr() % 16
        results = []
        for values in (g, g.clone()):
            out, o = torch.empty_like(values), torch.empty(2, 3, 10)
            raw.graph_dropout(values, keep, 0.7, out, o)
            results.append(out)
        torch.testing.assert_close(*results)


def refusals() -> None:
    """Arguments of graph dropout that make no sense."""
    g, keep = torch.ones(2, 3, 4, 5), torch.ones(2, 3, dtype=torch.bool)
    out, o = torch.empty_like(g), torch.empty(2, 3, 4)
    for message, arguments in (
        ("g must be (B, K, N, C)", (g[0], keep, 0.7, out, o)),
        ("g must be float32", (g.double(), keep, 0.7, out, o)),
        ("g must be contiguous", (g.mT.contiguous().mT, keep, 0.7, out, o)),
        ("out must have the shape", (g, keep, 0.7, out[:1], o)),
        ("out must be Float", (g, keep, 0.7, out.half(), o)),
        ("keep_salient must be Bool", (g, keep.float(), 0.7, out, o)),
        ("keep_salient must have the shape", (g, keep[:1], 0.7, out, o)),
        ("o must be Float", (g, keep, 0.7, out, o.double())),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            torch.ops.gwsss_fast_native.graph_dropout(*arguments)
    empty = torch.empty(2, 3, 0, 5)
    torch.ops.gwsss_fast_native.graph_dropout(empty, keep, 0.7, torch.empty_like(empty), torch.empty(2, 3, 0))


def crf() -> None:
    """Marginals and gradients, with and without each lattice, more labels than lanes."""
    raw = torch.ops.gwsss_fast_native
    for (height, width, labels), values in itertools.product([(11, 15, 3), (1, 1, 1), (6, 5, 41)], CRF.values()):
        prob, image = map(torch.tensor, photograph(height, width, labels, seed=labels))
        grad = torch.randn(prob.shape, generator=torch.Generator().manual_seed(labels))
        options = (*map(float, values[:5]), values[5])
        named = dict(zip(NAMES, options, strict=True))
        ours = raw.dense_crf(prob, image, *options)
        assert (ours - reference.dense_crf(prob, image, **named)).abs().max() <= 1e-5
        expected = reference.dense_crf_backward(grad, prob, image, **named)
        ours = raw.dense_crf_backward(grad, prob, image, *options)
        assert (ours - expected).abs().max() <= 2e-4 * expected.abs().max() + 1e-6


def run(library: str, case: str) -> None:
    """One case by one thread; prints `fine` in the end."""
    torch.ops.load_library(library)
    torch.set_num_threads(1)
    {"dropout": dropout, "shifted": shifted, "refusals": refusals, "crf": crf}[case]()
    print("fine")
