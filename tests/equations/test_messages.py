"""Eq. 4-8: scores between images, self-attention, and the sum of the messages."""

import numpy as np
import pytest
import torch
from loop_agreement import assert_same
from loops import attention, co_attention

from gwsss_fast import ops

# B, K, N, C, D; N = 6 stands for a 2 x 3 map.
SHAPES = [(2, 3, 6, 4, 2), (1, 4, 4, 3, 2), (1, 2, 5, 4, 1), (2, 1, 6, 4, 2), (1, 3, 1, 4, 2), (1, 1, 1, 2, 2)]


def nodes(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    groups, images, positions, channels, reduced = shape
    rng = np.random.default_rng(seed)
    p, q = (scale * rng.normal(size=(groups, images, positions, reduced)) for _ in range(2))
    return p, q, rng.normal(size=(groups, images, positions, channels))


@pytest.mark.parametrize("reverse", ["transpose", "directed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_messages_from_other_nodes(shape: tuple[int, ...], reverse: str) -> None:
    assert_same(
        lambda p, q, g: ops.co_attention(p, q, g, reverse=reverse),
        lambda p, q, g: co_attention(p, q, g, reverse),
        nodes(shape, seed=sum(shape)),
    )


@pytest.mark.parametrize("reverse", ["transpose", "directed"])
def test_messages_with_scores_in_the_thousands(reverse: str) -> None:
    """Without subtracting the maximum, exp would overflow; gradients of a saturated softmax are left out."""
    assert_same(
        lambda p, q, g: ops.co_attention(p, q, g, reverse=reverse),
        lambda p, q, g: co_attention(p, q, g, reverse),
        nodes((2, 3, 6, 4, 2), seed=3, scale=40.0),
        gradients=False,
    )


def test_transpose_is_the_default_and_differs_from_directed() -> None:
    p, q, g = (torch.from_numpy(x) for x in nodes((1, 3, 6, 4, 2), seed=5))
    with ops.backend("reference"):
        default = ops.co_attention(p, q, g)
        assert torch.equal(default, ops.co_attention(p, q, g, reverse="transpose"))
        directed = ops.co_attention(p, q, g, reverse="directed")
    # Node 0 only receives along edges with i < j, which both conventions share; the last node along none of them.
    torch.testing.assert_close(default[:, 0], directed[:, 0])
    assert (default[:, 2] - directed[:, 2]).abs().max() > 1e-2


def test_directed_messages_do_not_depend_on_the_order_of_the_group() -> None:
    order = [2, 0, 1]
    p, q, g = (torch.from_numpy(x) for x in nodes((2, 3, 6, 4, 2), seed=6))
    with ops.backend("reference"):
        straight = ops.co_attention(p, q, g, reverse="directed")[:, order]
        shuffled = ops.co_attention(p[:, order], q[:, order], g[:, order], reverse="directed")
    torch.testing.assert_close(straight, shuffled)


def test_a_single_node_receives_zero() -> None:
    p, q, g = (torch.from_numpy(x) for x in nodes((2, 1, 6, 4, 2), seed=7))
    with ops.backend("reference"):
        assert torch.equal(ops.co_attention(p, q, g), torch.zeros_like(g))


@pytest.mark.parametrize("leading", [(3,), (2, 3), ()], ids=str)
@pytest.mark.parametrize("positions", [6, 1])
def test_self_attention(leading: tuple[int, ...], positions: int) -> None:
    rng = np.random.default_rng(11)
    q, k = (rng.normal(size=(*leading, positions, 2)) for _ in range(2))
    assert_same(ops.attention, attention, (q, k, rng.normal(size=(*leading, positions, 4))))


def test_self_attention_with_scores_in_the_thousands() -> None:
    rng = np.random.default_rng(12)
    q, k = (40.0 * rng.normal(size=(3, 6, 2)) for _ in range(2))
    assert_same(ops.attention, attention, (q, k, rng.normal(size=(3, 6, 4))), gradients=False)
