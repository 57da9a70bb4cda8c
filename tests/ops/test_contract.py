"""What every operation promises on every backend: values, gradients, layouts, dtypes, compilation, messages."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from gwsss_fast import GwsssError, ops
from tests.ops.cases import CASES, SHAPES, Case, case_id, dense, gradients, outputs, strided, usable

TINY = 1e-6  # absolute room for values that are zero by cancellation
every_case = pytest.mark.parametrize("case", CASES, ids=case_id)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def plain(case: Case, tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Values and gradients of the reference at `dtype`."""
    with ops.backend("reference"):
        cast = [x.to(dtype) for x in tensors]
        return [*outputs(case, cast), *gradients(case, cast)]


@every_shape
@every_case
def test_backends_agree_with_float64(case: Case, shape: tuple[int, ...]) -> None:
    tensors = case.tensors(strided, shape, torch.float32, seed=3)
    exact, single = plain(case, tensors, torch.float64), plain(case, tensors, torch.float32)
    for name in usable(case):
        with ops.backend(name):
            ours = [*outputs(case, tensors), *gradients(case, tensors)]
        for value, truth, eager in zip(ours, exact, single, strict=True):
            allowed = 3 * (eager.double() - truth).abs().max() + TINY * truth.abs().max() + 1e-12
            assert (value.double() - truth).abs().max() <= allowed, name


@every_case
def test_layout_does_not_matter(case: Case) -> None:
    loose = case.tensors(strided, SHAPES[0], torch.float32, seed=4)
    assert any(not x.is_contiguous() for x in loose)
    packed = [x.contiguous() for x in loose]
    for a, b in zip(outputs(case, loose), outputs(case, packed), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(gradients(case, loose), gradients(case, packed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_case
def test_sixteen_bits(case: Case, dtype: torch.dtype) -> None:
    """No further from float64 than rounding the inputs and outputs to 16 bits explains."""
    tensors = case.tensors(dense, SHAPES[3], dtype, seed=5)
    epsilon = torch.finfo(dtype).eps
    exact = plain(case, tensors, torch.float64)
    for name in usable(case, dtype):
        with ops.backend(name):
            ours = outputs(case, tensors)
        for value, truth in zip(ours, exact, strict=False):
            assert value.dtype == dtype
            assert (value.double() - truth).abs().max() <= 8 * epsilon * truth.abs().max(), name


def test_fp16_scores_beyond_its_range_stay_right() -> None:
    """x x^T of unnormalised features exceeds 65504: a plain fp16 product overflows, the operators do not."""
    generator = torch.Generator().manual_seed(0)
    g = (torch.randn(1, 2, 9, 64, generator=generator) * 60).half()
    scores = g[0, 0] @ g[0, 0].T
    assert scores.isinf().any()
    for value in (ops.attention(g, g, g), ops.co_attention(g, g, g), *ops.edge_readout(g)):
        assert value.isfinite().all()
    exact = ops.attention(g.double(), g.double(), g.double())
    assert (ops.attention(g, g, g).double() - exact).abs().max() <= 2e-3 * exact.abs().max()


@every_case
def test_opcheck(case: Case) -> None:
    for name in usable(case):
        tensors = case.tensors(strided, SHAPES[0], torch.float32, seed=6)
        for i, x in enumerate(tensors):
            x.requires_grad_(case.name != "graph_dropout" or i == 0)
        opcheck(case.operator(), (*tensors, *case.options, name))


@every_case
def test_gradcheck_of_the_reference(case: Case) -> None:
    tensors = [0.5 * x for x in case.tensors(dense, SHAPES[0], torch.float64, seed=7)]
    for i, x in enumerate(tensors):
        x.requires_grad_(case.name != "graph_dropout" or i == 0)
    for name in usable(case, torch.float64):
        with ops.backend(name):
            assert torch.autograd.gradcheck(case.call, tensors)


@every_case
def test_autocast_casts_and_then_switches_itself_off(case: Case) -> None:
    tensors = case.tensors(dense, SHAPES[0], torch.float32, seed=8)
    half = [x if case.name == "graph_dropout" and i else x.bfloat16() for i, x in enumerate(tensors)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = outputs(case, tensors)
    for a, b in zip(mixed, outputs(case, half), strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_results_do_not_hang_on_what_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unwritten outputs would show: fresh memory is filled with NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        for case in CASES:
            tensors = case.tensors(strided, SHAPES[3], torch.float32, seed=9)
            assert all(x.isfinite().all() for x in [*outputs(case, tensors), *gradients(case, tensors)]), case.name
    finally:
        torch.use_deterministic_algorithms(False)


def test_available_names_every_operation_and_backend() -> None:
    states = ops.available()
    operations = {"attention", "co_attention", "conv_gru", "dense_crf", "edge_readout", "graph_dropout"}
    assert set(states) == operations
    for backends in states.values():
        assert set(backends) == {"reference", "aten", "triton", "cpp", "cuda"}
        assert backends["reference"].usable
        assert all(state.usable or state.reasons for state in backends.values())


def test_backend_names_are_checked() -> None:
    with pytest.raises(GwsssError, match="unknown backend 'tritn'"), ops.backend("tritn"):
        pass
    missing = [n for n in ("triton", "cpp", "cuda") if not any(state[n] for state in ops.available().values())]
    for name in missing:
        with pytest.raises(GwsssError, match="not usable here"), ops.backend(name):
            pass


def test_a_forced_backend_that_cannot_take_the_inputs_says_why() -> None:
    x, weight = torch.zeros(1, 2, 3, 3), torch.zeros(6, 4, 3, 3)
    with ops.backend("aten"), pytest.raises(GwsssError, match="kernel 1, not 3"):
        ops.conv_gru(x, x, weight, torch.zeros(6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.attention(x, x[..., :-1], x), "attention: k"),
        (lambda x: ops.co_attention(x, x, x, reverse="sideways"), "reverse is 'sideways'"),
        (lambda x: ops.co_attention(x, x, x.double()), "g is torch.float64 but p is torch.float32"),
        (lambda x: ops.co_attention(x[:, :1], x[:, :1], x), "in B, K and N"),
        (lambda x: ops.graph_dropout(x, torch.zeros(5)), "r must be"),
        (lambda x: ops.graph_dropout(x, torch.zeros(2), drop_rate=3.0), "drop_rate is 3.0"),
        (lambda x: ops.conv_gru(x, x, torch.zeros(3, 2, 1, 1), torch.zeros(3)), "weight must be"),
        (lambda x: ops.edge_readout(x[0]), "edge_readout: g must be"),
        (lambda x: ops.edge_readout(x.long()), "edge_readout: g must be"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(GwsssError, match=message):
        call(torch.zeros(2, 3, 4, 4))
