"""Starts the kernels of co-attention. Everything is deterministic: no kernel adds atomically."""

from typing import Any

import torch
from torch import Tensor

from gwsss_fast.kernels import co_attention as kernels
from gwsss_fast.launch.edges import Edges, factor_rows, rows_of
from gwsss_fast.launch.launcher import Tiles, blocks, launch


def co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str) -> tuple[Tensor, Tensor]:
    """As `reference.co_attention`: messages (B, K, N, C) and row log-sum-exps (B, K, K, N), in one start."""
    groups, count, positions, _ = g.shape
    out = torch.empty(g.shape, device=g.device, dtype=g.dtype)
    row_lse = torch.empty((groups, count, count, positions), device=g.device, dtype=torch.float32)
    if count == 1:
        return out.zero_(), row_lse.zero_()
    edges = Edges("co_attention", p, g, groups * count)
    (left, right), nodes = factor_rows(p, q), rows_of(g)

    def run(tiles: Tiles) -> None:
        launch(
            kernels.messages,
            (edges.parts(tiles), edges.shares(tiles)),
            *(left, right, nodes, row_lse, out, count, *edges.sizes, left.stride(0), nodes.stride(0)),
            tiles=tiles,
            DIRECTED=reverse == "directed",
            POWER=edges.power,
            **edges.constants(tiles),
        )

    edges.start_weighted("messages", run, forward=True)
    return out, row_lse


def co_attention_backward(
    grad: Tensor, p: Tensor, q: Tensor, g: Tensor, row_lse: Tensor, reverse: str
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.co_attention_backward`: the gradients of p, q and g, in three starts.

    "transpose" gives p and q gradients from edges in both roles: the receivers' come first, in float32, and the
    senders' are added to them. Without atomics that costs this buffer, (2, B, K, N, D), and delta, (B, K, K, N).
    """
    grads = [torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (p, q, g)]
    groups, count, _, _ = g.shape
    if count == 1:
        return grads[0].zero_(), grads[1].zero_(), grads[2].zero_()
    edges = Edges("co_attention", p, g, groups * count)
    directed = reverse == "directed"
    (left, right), nodes, slopes = factor_rows(p, q), rows_of(g), rows_of(grad)
    delta = torch.empty_like(row_lse)
    partial = grads[:2] if directed else [torch.empty(p.shape, device=p.device, dtype=torch.float32) for _ in range(2)]
    strides = (slopes.stride(0), left.stride(0), nodes.stride(0))
    roles = 1 if directed else 2
    inputs = (slopes, left, right, nodes, row_lse, delta)
    constants: dict[str, Any] = {"DIRECTED": directed}

    def values(tiles: Tiles) -> None:
        launch(
            kernels.value_gradient,
            (edges.parts(tiles), edges.shares(tiles)),
            *(slopes, left, right, row_lse, grads[2], count, *edges.sizes, *strides[:2]),
            tiles=tiles,
            POWER=edges.power,
            **constants,
            **edges.constants(tiles),
        )

    def receivers(tiles: Tiles) -> None:
        columns = blocks(edges.rank, tiles.blocks["BLOCK_G"])
        launch(
            kernels.receiver_gradient,
            (edges.parts(tiles), roles, columns),
            *(*inputs, *partial, count, *edges.sizes, *strides),
            tiles=tiles,
            **constants,
            **edges.constants(tiles),
        )

    def senders(tiles: Tiles) -> None:
        launch(
            kernels.sender_gradient,
            (edges.parts(tiles), roles),
            *(*inputs, *partial, *grads[:2], count, *edges.sizes, *strides),
            tiles=tiles,
            **constants,
            **edges.constants(tiles),
        )

    edges.start_weighted("value_gradient", values)
    edges.start_receivers("receiver_gradient", receivers)
    edges.start_senders("sender_gradient", senders)
    return grads[0], grads[1], grads[2]
