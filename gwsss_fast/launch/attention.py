"""Starts the kernels of self-attention. Everything is deterministic: no kernel adds atomically."""

import torch
from torch import Tensor

from gwsss_fast.kernels import attention as kernels
from gwsss_fast.launch.edges import Edges, factor_rows, rows_of
from gwsss_fast.launch.launcher import Tiles, blocks, launch


def attention(
    q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None, message: Tensor | None, message_scale: float
) -> tuple[Tensor, Tensor]:
    """As `reference.attention`: the output (..., N, C), residual and message added, and row log-sum-exps (..., N)."""
    out = torch.empty(v.shape, device=v.device, dtype=v.dtype)
    row_lse = torch.empty(q.shape[:-1], device=q.device, dtype=torch.float32)
    edges = Edges("attention", q, v, q.shape[:-2].numel())
    (left, right), values = factor_rows(q, k), rows_of(v)
    # A kernel takes no "nothing": what is not there is `values`, and a constant says that it is not read.
    extras = [values if x is None else rows_of(x) for x in (residual, message)]
    strides = (left.stride(0), values.stride(0), *(x.stride(0) for x in extras))

    def run(tiles: Tiles) -> None:
        launch(
            kernels.attend,
            (edges.parts(tiles), edges.shares(tiles)),
            *(left, right, values, *extras, row_lse, out, message_scale, *edges.sizes, *strides),
            tiles=tiles,
            HAS_RESIDUAL=residual is not None,
            HAS_MESSAGE=message is not None,
            POWER=edges.power,
            **edges.constants(tiles),
        )

    edges.start_weighted("attend", run, forward=True, addends=residual is not None or message is not None)
    return out, row_lse


def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.attention_backward`: the gradients of q, k and v, in three starts."""
    grads = [torch.empty(x.shape, device=x.device, dtype=x.dtype) for x in (q, k, v)]
    edges = Edges("attention", q, v, q.shape[:-2].numel())
    (left, right), values, slopes = factor_rows(q, k), rows_of(v), rows_of(grad)
    delta = torch.empty_like(row_lse)
    strides = (slopes.stride(0), left.stride(0), values.stride(0))
    inputs = (slopes, left, right, values, row_lse, delta)

    def of_values(tiles: Tiles) -> None:
        launch(
            kernels.value_gradient,
            (edges.parts(tiles), edges.shares(tiles)),
            *(slopes, left, right, row_lse, grads[2], *edges.sizes, *strides[:2]),
            tiles=tiles,
            POWER=edges.power,
            **edges.constants(tiles),
        )

    def of_queries(tiles: Tiles) -> None:
        columns = blocks(edges.rank, tiles.blocks["BLOCK_G"])
        arguments = (*inputs, grads[0], *edges.sizes, *strides)
        launch(kernels.query_gradient, (edges.parts(tiles), columns), *arguments, tiles=tiles, **edges.constants(tiles))

    def of_keys(tiles: Tiles) -> None:
        arguments = (*inputs, grads[1], *edges.sizes, *strides)
        launch(kernels.key_gradient, (edges.parts(tiles),), *arguments, tiles=tiles, **edges.constants(tiles))

    edges.start_weighted("value_gradient", of_values)
    edges.start_receivers("query_gradient", of_queries)
    edges.start_senders("key_gradient", of_keys)
    return grads[0], grads[1], grads[2]
