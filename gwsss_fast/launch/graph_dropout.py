"""Starts the kernels of graph dropout."""

from collections.abc import Callable

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


def _sized(channels: int, values: int, num_warps: int) -> Tiles:
    """Tiles of about so many values, whole rows when they fit."""
    width = min(power_of_two(channels), 1024)
    return Tiles({"BLOCK_N": max(1, values // width), "BLOCK_C": width}, num_warps=num_warps, num_stages=2)


def _tiles(name: str, g: Tensor, start: Callable[[Tiles], None]) -> Tiles:
    """About 4,096 values a program: wide enough to keep the memory busy. An eighth of it where rows do not begin at
    multiples of 16 bytes: each value then has an address of its own, and registers run out."""
    channels = g.shape[-1]
    heuristic = _sized(channels, 4096 if channels % 16 == 0 else 512, num_warps=4)
    candidates = [_sized(channels, values, warps) for values in (1024, 2048, 4096, 8192) for warps in (4, 8)]
    return tiles_for(name, g, {"C": channels, "dtype": dtype_name(g)}, heuristic, candidates, start)


def graph_dropout(g: Tensor, r: Tensor, drop_rate: float, drop_threshold: float) -> tuple[Tensor, Tensor]:
    """As `reference.graph_dropout`: g * s (B, K, N, C) and the channel means (B, K, N)."""
    groups, nodes, positions, channels = g.shape
    g, step = _rows(g)
    o = torch.empty((groups, nodes, positions), device=g.device, dtype=torch.float32)
    out = torch.empty(g.shape, device=g.device, dtype=g.dtype)
    draws, rows = r.contiguous().float(), groups * nodes * positions

    def start(tiles: Tiles) -> None:
        height = tiles.blocks["BLOCK_N"]
        launch(kernels.channel_mean, (blocks(rows, height),), g, o, rows, channels, step, tiles=tiles)
        launch(
            kernels.scale,
            (blocks(positions, height), groups * nodes),
            *(g, o, draws, out, positions, channels, nodes, step, drop_rate, drop_threshold),
            tiles=tiles,
            PER_NODE=r.dim() == 2,
            BLOCK_O=min(power_of_two(positions), 1024),
        )

    start(_tiles("graph_dropout.forward", g, start))
    return out, o


def graph_dropout_backward(
    grad: Tensor, g: Tensor, o: Tensor, r: Tensor, drop_rate: float, drop_threshold: float
) -> Tensor:
    """As `reference.graph_dropout_backward`: the gradient of g."""
    groups, nodes, positions, channels = g.shape
    (g, step), (grad, step_grad) = _rows(g), _rows(grad)
    grad_g = torch.empty(g.shape, device=g.device, dtype=g.dtype)
    draws = r.contiguous().float()

    def start(tiles: Tiles) -> None:
        launch(
            kernels.scale_backward,
            (blocks(positions, tiles.blocks["BLOCK_N"]), groups * nodes),
            *(grad, g, o, draws, grad_g, positions, channels, nodes, step_grad, step, drop_rate, drop_threshold),
            tiles=tiles,
            PER_NODE=r.dim() == 2,
            BLOCK_O=min(power_of_two(positions), 1024),
        )

    start(_tiles("graph_dropout.backward", g, start))
    return grad_g
