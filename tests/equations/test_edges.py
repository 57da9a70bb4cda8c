"""Eq. 14-17: position and channel attention of every ordered pair, and the two identities of the fast path."""

import numpy as np
import pytest
import torch
from loop_agreement import assert_same
from loops import channel_attention, column_means, concatenate, edge_readout, matmul, position_attention, transpose

from gwsss_fast import ops


@pytest.mark.parametrize("shape", [(2, 2, 3, 2), (1, 3, 4, 3), (2, 1, 4, 2), (1, 2, 1, 4), (1, 1, 1, 1)], ids=str)
def test_edge_readout(shape: tuple[int, ...]) -> None:
    assert_same(ops.edge_readout, edge_readout, (np.random.default_rng(sum(shape)).normal(size=shape),))


def test_edge_readout_of_four_channels_and_two_groups() -> None:
    assert_same(ops.edge_readout, edge_readout, (np.random.default_rng(30).normal(size=(2, 3, 6, 4)),), gradients=False)


def test_edge_readout_with_products_in_the_thousands() -> None:
    g = 30 * np.random.default_rng(31).normal(size=(1, 3, 6, 4))
    assert_same(ops.edge_readout, edge_readout, (g,), gradients=False)


def test_reversed_edges_swap_the_halves() -> None:
    """x of (j, i) is x of (i, j) with its halves exchanged, and so are the means of p and c."""
    g = torch.from_numpy(np.random.default_rng(32).normal(size=(2, 3, 6, 4)))
    with ops.backend("reference"):
        for means in ops.edge_readout(g):
            torch.testing.assert_close(means.transpose(1, 2), means.roll(4, dims=-1))


def pair(seed: int, positions: int = 6, channels: int = 4) -> tuple[list[list[float]], list[list[float]]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(positions, channels)).tolist(), rng.normal(size=(positions, channels)).tolist()


@pytest.mark.parametrize("seed", [1, 2])
def test_gram_matrix_of_an_edge_is_the_sum_of_two(seed: int) -> None:
    """Identity 1: x x^T = g_i g_i^T + g_j g_j^T, and x^T x consists of the blocks g_a^T g_b."""
    first, second = pair(seed)
    x = concatenate(first, second)
    grams = np.array(matmul(first, transpose(first))) + np.array(matmul(second, transpose(second)))
    np.testing.assert_allclose(matmul(x, transpose(x)), grams, rtol=1e-13, atol=1e-13)
    blocks = [[np.array(matmul(transpose(a), b)) for b in (first, second)] for a in (first, second)]
    np.testing.assert_allclose(matmul(transpose(x), x), np.block(blocks), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("seed", [3, 4])
def test_means_of_an_edge_need_no_map(seed: int) -> None:
    """Identity 2: mean(p) = (column means of u) x + mean(x), and mean(c) = v mean(x) + mean(x)."""
    x = concatenate(*pair(seed))
    mean = column_means(x)
    u, p = position_attention(x)
    short = np.array(matmul([column_means(u)], x)[0]) + mean
    np.testing.assert_allclose(column_means(p), short, rtol=1e-13, atol=1e-13)
    v, c = channel_attention(x)
    short = np.array(matmul(v, transpose([mean]))).ravel() + mean
    np.testing.assert_allclose(column_means(c), short, rtol=1e-13, atol=1e-13)
    # The weights are not symmetric, so a transposed v (the paper's literal x v) would not pass for it.
    assert np.abs(np.array(v) - np.array(v).T).max() > 1e-2
