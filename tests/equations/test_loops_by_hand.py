"""The loop versions themselves, against numbers small enough to work out by hand."""

import math

import numpy as np
import pytest
from loops import (
    attention,
    channel_attention,
    co_attention,
    conv2d,
    conv_gru,
    dropout_mask,
    edge_readout,
    graph_dropout,
    group_loss,
    linear,
    normalised_maps,
    position_attention,
    softmax_rows,
)
from module_loops import root_mean_square, to_maps, to_positions, unit_rows

LN2, LN3 = math.log(2), math.log(3)


def test_softmax_is_over_the_columns_of_each_row() -> None:
    np.testing.assert_allclose(softmax_rows([[0.0, LN3], [LN2 + 700, 700.0]]), [[0.25, 0.75], [2 / 3, 1 / 3]])


def test_attention_weights_the_values_of_the_key_positions() -> None:
    # Scores of the first query: 0 and ln 3, so weights 1/4 and 3/4; of the second: equal.
    out = attention(np.array([[1.0], [0.0]]), np.array([[0.0], [LN3]]), np.array([[4.0, 0.0], [8.0, 100.0]]))
    np.testing.assert_allclose(out, [[7.0, 75.0], [6.0, 50.0]])


def test_co_attention_of_two_nodes() -> None:
    p = np.array([[[[LN2], [0.0]], [[50.0], [70.0]]]])
    q = np.array([[[[20.0], [30.0]], [[1.0], [0.0]]]])
    g = np.array([[[[3.0], [6.0]], [[9.0], [12.0]]]])
    # E_01 = p_0 q_1^T = [[ln 2, 0], [0, 0]], and E_10 is its transpose, which here is E_01 itself.
    np.testing.assert_allclose(co_attention(p, q, g)[0, :, :, 0], [[10.0, 10.5], [4.0, 4.5]])
    # Directed: E_10 = p_1 q_0^T = [[1000, 1500], [1400, 2100]]: everything from the second position.
    np.testing.assert_allclose(co_attention(p, q, g, "directed")[0, :, :, 0], [[10.0, 10.5], [6.0, 6.0]])


def test_co_attention_transposes_the_scores_before_the_softmax() -> None:
    p = np.array([[[[LN3], [0.0]], [[0.0], [0.0]]]])
    q = np.array([[[[0.0], [0.0]], [[1.0], [1.0]]]])
    g = np.array([[[[4.0], [8.0]], [[0.0], [0.0]]]])
    # E_01 = [[ln 3, ln 3], [0, 0]]; E_10 = [[ln 3, 0], [ln 3, 0]]: 3/4 of 4 and 1/4 of 8.
    np.testing.assert_allclose(co_attention(p, q, g)[0, 1, :, 0], [5.0, 5.0])


def test_one_node_receives_nothing_from_neighbours() -> None:
    assert not co_attention(np.ones((1, 1, 2, 1)), np.ones((1, 1, 2, 1)), np.ones((1, 1, 2, 3))).any()


def test_convolution_pads_with_zeros_and_does_not_flip() -> None:
    x = np.array([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]])
    weight = np.zeros((1, 1, 3, 3))
    weight[0, 0, 1, 2] = 1.0  # the right neighbour
    weight[0, 0, 0, 1] = 10.0  # the upper neighbour
    np.testing.assert_array_equal(conv2d(x, weight, np.array([0.5])), [[[[2.5, 3.5, 0.5], [15.5, 26.5, 30.5]]]])


def test_conv_gru_of_one_number() -> None:
    m, h = np.full((1, 1, 1, 1), 2.0), np.full((1, 1, 1, 1), 4.0)
    weight = np.zeros((3, 2, 1, 1))
    weight[0, 0] = LN3 / 2  # z = sigmoid(ln 3) = 3/4
    weight[1, 1] = -LN3 / 4  # r = sigmoid(-ln 3) = 1/4, so r h = 1
    weight[2] = [[[0.25]], [[-1.0]]]  # c = tanh(0.25 * 2 - 1 + 0.6) = tanh(0.1)
    out = conv_gru(m, h, weight, np.array([0.0, 0.0, 0.6]))
    np.testing.assert_allclose(out, 0.25 * 4 + 0.75 * math.tanh(0.1))


def test_dropout_branches() -> None:
    o = [1.0, 0.0, -2.0, 0.69]
    np.testing.assert_allclose(dropout_mask(o, 0.79, 0.8, 0.7)[1], 0.5)
    assert dropout_mask(o, 0.8, 0.8, 0.7) == [0.0, 0.0, -2.0, 0.69]  # r = delta_r is the dropping branch
    assert dropout_mask([-1.0, -3.0], 0.9, 0.8, 0.7) == [-1.0, -3.0]  # max * 0.7 = -0.7: nothing reaches it
    assert dropout_mask([2.0, 2.0], 0.9, 0.8, 0.7) == [0.0, 0.0]
    g = np.array([[[[1.0, 3.0], [0.0, 2.0]]]])  # means 2 and 1, limit 1.4
    np.testing.assert_allclose(graph_dropout(g, np.array([0.9]), 0.8, 0.7), [[[[0.0, 0.0], [0.0, 2.0]]]])


def test_edge_of_one_position() -> None:
    # N = 1: u = 1, so p = 2 x. One channel each: x = [1, 2], x^T x = [[1, 2], [2, 4]].
    position, channel = edge_readout(np.array([[[[1.0]], [[2.0]]]]))
    np.testing.assert_allclose(position[0, 0, 1], [2.0, 4.0])
    first, second = 1 / (1 + math.e), 1 / (1 + math.e**2)
    expected = [first * 1 + (1 - first) * 2 + 1, second * 1 + (1 - second) * 2 + 2]
    np.testing.assert_allclose(channel[0, 0, 1], expected)
    np.testing.assert_allclose(channel[0, 1, 0], expected[::-1])


def test_edge_of_two_positions() -> None:
    root = math.sqrt(LN3)
    x = [[root, 0.0], [0.0, 0.0]]
    u, p = position_attention(x)  # x x^T = [[ln 3, 0], [0, 0]]
    np.testing.assert_allclose(u, [[0.75, 0.25], [0.5, 0.5]])
    np.testing.assert_allclose(p, [[1.75 * root, 0.0], [0.5 * root, 0.0]])
    v, c = channel_attention(x)  # x^T x is the same matrix; output channel b is sum_a v[b, a] x[:, a]
    np.testing.assert_allclose(v, [[0.75, 0.25], [0.5, 0.5]])
    np.testing.assert_allclose(c, [[1.75 * root, 0.5 * root], [0.0, 0.0]])


def test_loss_of_zero_logits_is_the_logarithm_of_two() -> None:
    labels = np.array([[[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])
    zero = np.zeros((1, 3, 2))
    edges = np.zeros((1, 3, 3, 2))
    assert group_loss(zero, zero, edges, labels, (0.7, 0.1, 0.2)) == pytest.approx(LN2)
    assert group_loss(zero, zero, edges, labels, (0.7, 0.1, 0.2), "sum") == pytest.approx(LN2 * (4.8 + 3.6))
    assert group_loss(zero, zero, None, labels, (0.7, 0.1, 0.2)) == pytest.approx(0.8 * LN2)


def test_loss_targets_of_edges_are_the_shared_classes() -> None:
    labels = np.array([[[1.0, 0.0], [1.0, 1.0]]])
    zero = np.zeros((1, 2, 2))
    edges = np.zeros((1, 2, 2, 2))
    edges[0, 0, 1] = [LN3, LN3]  # targets 1 and 0: -ln(3/4) and -ln(1/4)
    expected = (6 * LN2 + math.log(4 / 3) + math.log(4)) / 8
    assert group_loss(zero, zero, edges, labels, (0.0, 0.0, 1.0)) == pytest.approx(expected)


def test_maps_are_normalised_by_their_own_maximum() -> None:
    maps = np.array([[[-1.0, 2.0], [4.0, 1.0]], [[-1.0, -2.0], [-3.0, -0.5]]])
    expected = [[[0.0, 0.5], [1.0, 0.25]], [[0.0, 0.0], [0.0, 0.0]]]
    np.testing.assert_allclose(normalised_maps(maps), expected)


def test_linear_and_unit_rows() -> None:
    out = linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0.0, 10.0, 0.0]))
    np.testing.assert_allclose(out, [[11.0, 12.0, 1.0]])
    np.testing.assert_allclose(unit_rows(np.array([[3.0, 4.0]])), [[0.6, 0.8]])


def test_positions_run_row_by_row() -> None:
    x = np.arange(12.0).reshape(1, 1, 2, 2, 3)
    positions = to_positions(x)
    np.testing.assert_array_equal(positions[0, 0, :, 0], [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(to_maps(positions, 2, 3), x)


def test_root_mean_square_of_a_node() -> None:
    assert root_mean_square(np.array([[3.0, 4.0], [0.0, 5.0]])) == pytest.approx(math.sqrt(12.5))
