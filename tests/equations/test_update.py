"""Eq. 2 (ConvGRU) and Eq. 11, 12 (graph dropout)."""

import numpy as np
import pytest
import torch
from loop_agreement import assert_same
from loops import conv_gru, graph_dropout

from gwsss_fast import ops

RATE, THRESHOLD = 0.8, 0.7


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(2, 3), (3, 2), (1, 1)])
def test_conv_gru(kernel: int, height: int, width: int) -> None:
    channels = 4 if kernel == 1 else 2
    rng = np.random.default_rng(10 * kernel + height)
    m, h = (rng.normal(size=(2, channels, height, width)) for _ in range(2))
    weight = 0.5 * rng.normal(size=(3 * channels, 2 * channels, kernel, kernel))
    assert_same(ops.conv_gru, conv_gru, (m, h, weight, rng.normal(size=3 * channels)))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_conv_gru_update_gate(sign: float) -> None:
    """A closed gate keeps the state, an open one takes the candidate: z multiplies the candidate, not the state."""
    rng = np.random.default_rng(2)
    m, h = (torch.from_numpy(rng.normal(size=(2, 2, 2, 3))) for _ in range(2))
    weight, bias = torch.zeros(6, 4, 1, 1, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    bias[:2], bias[4:] = 50 * sign, 0.3
    with ops.backend("reference"):
        out = ops.conv_gru(m, h, weight, bias)
    expected = h if sign < 0 else torch.full_like(h, 0.3).tanh()
    torch.testing.assert_close(out, expected)


def check_dropout(g: np.ndarray, r: list[float], rate: float = RATE, threshold: float = THRESHOLD) -> None:
    """r is a draw, not a weight: it takes no gradient. Finite differences hold the indicator constant by themselves."""
    draws = np.array(r)
    assert_same(
        lambda x: ops.graph_dropout(x, torch.from_numpy(draws), rate, threshold),
        lambda x: graph_dropout(x, draws, rate, threshold),
        (g,),
    )


@pytest.mark.parametrize("shape", [(2, 3, 6, 4), (2, 1, 4, 4), (2, 3, 1, 4)], ids=str)
@pytest.mark.parametrize("r", [[0.1, 0.9], [0.9, 0.1], [0.95, 0.85], [0.0, 0.7]], ids=str)
def test_graph_dropout(shape: tuple[int, ...], r: list[float]) -> None:
    check_dropout(np.random.default_rng(21).normal(size=shape) + 0.5, r)


@pytest.mark.parametrize(("rate", "threshold"), [(0.0, 0.3), (1.0, 0.3), (0.5, 0.0), (0.5, 1.0)])
def test_graph_dropout_at_the_ends_of_its_rates(rate: float, threshold: float) -> None:
    check_dropout(np.random.default_rng(22).normal(size=(2, 3, 6, 4)), [0.2, 0.6], rate, threshold)


def test_both_branches_are_chosen_by_strict_comparison() -> None:
    """r < delta_r is the importance branch, so r = delta_r drops."""
    check_dropout(np.random.default_rng(23).normal(size=(1, 2, 6, 4)), [RATE])


def test_graph_dropout_with_a_negative_mean_everywhere() -> None:
    """max * 0.7 lies above every mean: nothing is dropped and the features are multiplied by negative means."""
    g = -np.abs(np.random.default_rng(24).normal(size=(1, 3, 6, 4))) - 0.1
    check_dropout(g, [0.9])
    with ops.backend("reference"):
        out = ops.graph_dropout(torch.from_numpy(g), torch.tensor([0.9], dtype=torch.float64), RATE, THRESHOLD)
    assert (out > 0).all()


def test_graph_dropout_of_a_whole_map() -> None:
    """All means above max * 0.7: everything is dropped, and outputs and gradients are zero, not nan."""
    g = 1 + 0.02 * np.random.default_rng(25).normal(size=(1, 2, 6, 4))
    check_dropout(g, [0.9])
    with ops.backend("reference"):
        out = ops.graph_dropout(torch.from_numpy(g), torch.tensor([0.9], dtype=torch.float64), RATE, THRESHOLD)
    assert not out.any()


def test_the_maximum_is_taken_over_each_map_alone() -> None:
    """A bright image must not decide what is dropped from a dim one of the same group."""
    g = np.abs(np.random.default_rng(26).normal(size=(2, 3, 6, 4)))
    g[:, 1] *= 100
    check_dropout(g, [0.9, 0.9])
