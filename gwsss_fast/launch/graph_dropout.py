"""Starts the kernels of graph dropout."""

import torch
from torch import Tensor

from gwsss_fast.kernels import graph_dropout as kernels
from gwsss_fast.launch.launcher import Tiles, blocks, launch, power_of_two
from gwsss_fast.launch.tuning import dtype_name, tiles_for


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """`x` (B, K, N, C) and the stride between its rows; a copy unless rows follow each other evenly."""
    _, nodes, positions, channels = x.shape
    step = x.stride(2)
    even = x.stride(3) == 1 and step >= channels
    if not (even and x.stride() == (nodes * positions * step, positions * step, step, 1)):
        x = x.contiguous()
        step = channels
    return x, step


def _tiles(g: Tensor) -> Tiles:
    """About 4,096 values a program, whole rows when they fit: wide enough to keep the memory busy."""
    channels = g.shape[-1]
    width = min(power_of_two(channels), 1024)
    heuristic = Tiles({"BLOCK_N": max(1, 4096 // width), "BLOCK_C": width}, num_warps=4, num_stages=2)
    return tiles_for("graph_dropout", g, {"C": channels, "dtype": dtype_name(g)}, heuristic)


def graph_dropout(g: Tensor, r: Tensor, drop_rate: float, drop_threshold: float) -> tuple[Tensor, Tensor]:
    """As `reference.graph_dropout`: g * s (B, K, N, C) and the channel means (B, K, N)."""
    groups, nodes, positions, channels = g.shape
    g, step = _rows(g)
    o = torch.empty((groups, nodes, positions), device=g.device, dtype=torch.float32)
    out = torch.empty(g.shape, device=g.device, dtype=g.dtype)
    tiles, rows = _tiles(g), groups * nodes * positions
    height = tiles.blocks["BLOCK_N"]
    launch(kernels.channel_mean, (blocks(rows, height),), g, o, rows, channels, step, tiles=tiles)
    launch(
        kernels.scale,
        (blocks(positions, height), groups * nodes),
        *(g, o, r.contiguous().float(), out, positions, channels, nodes, step, drop_rate, drop_threshold),
        tiles=tiles,
        PER_NODE=r.dim() == 2,
        BLOCK_O=min(power_of_two(positions), 1024),
    )
    return out, o


def graph_dropout_backward(
    grad: Tensor, g: Tensor, o: Tensor, r: Tensor, drop_rate: float, drop_threshold: float
) -> Tensor:
    """As `reference.graph_dropout_backward`: the gradient of g."""
    groups, nodes, positions, channels = g.shape
    (g, step), (grad, step_grad) = _rows(g), _rows(grad)
    grad_g = torch.empty(g.shape, device=g.device, dtype=g.dtype)
    tiles = _tiles(g)
    launch(
        kernels.scale_backward,
        (blocks(positions, tiles.blocks["BLOCK_N"]), groups * nodes),
        *(grad, g, o, r.contiguous().float(), grad_g, positions, channels, nodes, step_grad, step),
        *(drop_rate, drop_threshold),
        tiles=tiles,
        PER_NODE=r.dim() == 2,
        BLOCK_O=min(power_of_two(positions), 1024),
    )
    return grad_g
