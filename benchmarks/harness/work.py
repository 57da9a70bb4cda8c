"""What an operation has to compute and to move, by formula: the two numbers that give its floor.

Floating-point operations count a multiplication and an addition as two, and matrix products and convolutions alone: the
exponentials and sums around them are an order less. Backward passes count the products of a recomputing pass (scores
again, then one product for each gradient), as is usual for attention. Bytes count each input read once and each
output written once, whatever a kernel reads again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness.sizes import Size

STATISTIC = 4  # bytes of a float32 row statistic


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of device memory."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: int) -> Work:
        """The same work `count` times."""
        return Work(self.flops * count, self.bytes * count)


def attention(size: Size, item: int, backward: bool) -> Work:
    """Forward q k^T and P v; backward q k^T, dO v^T, P^T dO, dS k and dS^T q, for each of the B K nodes."""
    n, c, d = size.positions, size.channels, size.rank
    products = 3 * d + 2 * c if backward else d + c
    columns = 4 * d + 4 * c if backward else 2 * d + 2 * c
    return Work(size.images * 2.0 * n * n * products, size.rows * (item * columns + STATISTIC))


def co_attention(size: Size, item: int, backward: bool) -> Work:
    """As attention for each of the B K (K - 1) directed edges; nodes are read and messages written once a node."""
    n, c, d = size.positions, size.channels, size.rank
    edges = size.images * (size.nodes - 1)
    products = 3 * d + 2 * c if backward else d + c
    columns = 4 * d + 4 * c if backward else 2 * d + 2 * c
    return Work(edges * 2.0 * n * n * products, size.rows * (item * columns + STATISTIC * size.nodes))


def graph_dropout(size: Size, item: int, backward: bool) -> Work:
    """Forward reads g and writes the product; backward reads g and a gradient and writes one. Two operations a value
    and direction."""
    values = size.rows * size.channels
    return Work((4.0 if backward else 2.0) * values, (3 if backward else 2) * item * values)


def conv_gru(size: Size, item: int, backward: bool, kernel: int = 1) -> Work:
    """One convolution 2C -> 3C; backward two (inputs and weights), the gates' recomputation not counted."""
    c = size.channels
    weights = 6 * c * c * kernel**2
    forward = 2.0 * size.rows * weights
    if backward:
        return Work(2 * forward, item * (5.0 * size.rows * c + 2 * weights))
    return Work(forward, item * (3.0 * size.rows * c + weights))


def edge_readout(size: Size, item: int, backward: bool) -> Work:
    """By the two identities: K Gram matrices N x N, the K (K + 1) / 2 blocks C x C, and matrix-vector products.

    Backward makes both again, and has a product with each Gram matrix's gradient (N x N) and with those of all K^2
    blocks (C x C).
    """
    n, c, k = size.positions, size.channels, size.nodes
    gram, blocks = k * 2.0 * n * n * c, k * (k + 1) / 2 * 2.0 * n * c * c
    vectors = k * k * (2.0 * n * 2 * c + 2.0 * 4 * c * c)
    read = size.rows * c * item
    means = size.groups * k * k * 4 * c * item
    if backward:
        return Work(size.groups * (2 * gram + blocks + k * k * 2.0 * n * c * c + vectors), 2 * read + means)
    return Work(size.groups * (gram + blocks + vectors), read + means)


def projections(size: Size, item: int, backward: bool) -> Work:
    """The 1x1 convolutions of a step: P, Q, f and k (C -> D) and h (C -> C)."""
    c, d = size.channels, size.rank
    weights = 4 * c * d + c * c
    factor = 2 if backward else 1
    columns = c + 4 * d + c
    return Work(factor * 2.0 * size.rows * weights, factor * item * (size.rows * columns + weights))


def group_step(size: Size, item: int, backward: bool) -> Work:
    """T steps of projections, both attentions and the update, graph dropout between them, then the edge readout."""
    one = [part(size, item, backward) for part in (projections, co_attention, attention, conv_gru)]
    step = one[0] + one[1] + one[2] + one[3]
    dropout = graph_dropout(size, item, backward).times(size.steps - 1)
    return step.times(size.steps) + dropout + edge_readout(size, item, backward)


FORMULAS: dict[str, Callable[..., Work]] = {
    "attention": attention,
    "co_attention": co_attention,
    "graph_dropout": graph_dropout,
    "conv_gru": conv_gru,
    "edge_readout": edge_readout,
    "group_step": group_step,
}
