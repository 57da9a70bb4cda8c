"""The formulas against PyTorch's own counter and against numbers by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import work
from benchmarks.harness.cases import OPERATIONS, Operation, as_tuple, operation
from benchmarks.harness.sizes import PAPER, SIZES, Size
from gwsss_fast import ops

TINY = Size("tiny", 2, 3, 2, 3, 8, 4)


def counted(row: Operation, size: Size, backward: bool) -> int:
    """Operations of the plain version, as PyTorch counts them."""
    tensors = row.inputs(size, torch.float32, "cpu", 0)
    leaves = [x.requires_grad_(number < row.differentiable) for number, x in enumerate(tensors)]
    with FlopCounterMode(display=False) as forward:
        results = as_tuple(row.plain(*leaves))
    if not backward:
        return forward.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(results, leaves[: row.differentiable], [torch.ones_like(x) for x in results])
    return counter.get_total_flops()


@pytest.mark.parametrize("label", ["attention", "co_attention transpose", "conv_gru kernel 1", "conv_gru kernel 3"])
def test_products_are_those_of_plain_pytorch(label: str) -> None:
    row = operation(label)
    assert row.work(TINY, torch.float32, False).flops == counted(row, TINY, False)
    backward = row.work(TINY, torch.float32, True).flops
    if label.startswith("conv_gru"):
        assert backward == counted(row, TINY, True)
    else:  # ours make the scores again
        scores = 2 * TINY.rows * TINY.positions * TINY.rank * (2 if label.startswith("co") else 1)
        assert backward == counted(row, TINY, True) + scores


def test_edge_readout_counts_less_than_the_long_way() -> None:
    row = operation("edge_readout")
    for backward in (False, True):
        assert 0 < row.work(PAPER, torch.float32, backward).flops < 0.6 * _long_way(backward)


def _long_way(backward: bool) -> float:
    n, width, edges = PAPER.positions, 2 * PAPER.channels, PAPER.nodes**2
    forward = edges * 2.0 * (2 * n * n * width + 2 * n * width * width)
    return forward * (2 if backward else 1)


def test_bytes_by_hand() -> None:
    """2 groups of 3 nodes of 6 positions, C = 8, D = 4, two bytes a value."""
    rows = 36
    assert work.graph_dropout(TINY, 2, False).bytes == 2 * 2 * rows * 8
    assert work.graph_dropout(TINY, 2, True).bytes == 3 * 2 * rows * 8
    assert work.attention(TINY, 2, False).bytes == rows * (2 * (4 + 4 + 8 + 8) + 4)
    assert work.co_attention(TINY, 2, False).bytes == rows * (2 * (4 + 4 + 8 + 8) + 3 * 4)
    assert work.conv_gru(TINY, 2, False).bytes == 2 * (3 * rows * 8 + 6 * 64)
    assert work.edge_readout(TINY, 2, False).bytes == 2 * rows * 8 + 2 * 2 * 9 * 4 * 8


def test_a_step_is_the_sum_of_its_parts() -> None:
    one, two = (Size("x", 1, 2, 3, 3, 8, 4, steps=steps) for steps in (1, 2))
    parts = [work.FORMULAS[name](one, 4, True) for name in ("co_attention", "attention", "conv_gru", "graph_dropout")]
    difference = work.group_step(two, 4, True).flops - work.group_step(one, 4, True).flops
    assert difference == sum(part.flops for part in parts) + work.projections(one, 4, True).flops


def test_every_operation_has_a_formula_and_a_case() -> None:
    """Whoever adds a Triton kernel to another operation is told here to add its case."""
    named = {row.name for row in OPERATIONS}
    assert named <= set(work.FORMULAS)
    built = {name for name, states in ops.available().items() if "no kernel" not in str(states["triton"])}
    assert built <= named


def test_sizes_are_the_stated_ones() -> None:
    assert (SIZES["paper"].positions, SIZES["large"].positions, SIZES["odd-785"].positions) == (784, 3136, 785)
    assert (SIZES["paper"].nodes, SIZES["paper"].channels, SIZES["paper"].rank, SIZES["paper"].steps) == (
        4,
        512,
        128,
        3,
    )
    assert {size.nodes for size in SIZES.values()} >= {1, 2, 3, 4, 8}
    assert {1, 37} <= {size.positions for size in SIZES.values()}
    assert str(SIZES["paper"]) == "paper (B=1, K=4, N=784, C=512, D=128, T=3)"
