"""Starts the kernels of the edge readout.

Kept for the backward pass: the statistics of both softmaxes by edge, 3 (N + C) numbers each. Gram matrices and channel
blocks, K (N^2 + K C^2) float32 numbers a group, are made again; their gradients are as many numbers in the nodes'
dtype. In 16 bits every product runs in our kernels, with the scores in float32. One rounding of their gradients to 16
bits costs less than that of the result: they multiply the nodes, which are many, and the roundings average out. In
float32 PyTorch makes the products: no tensor core serves them.
Deterministic: no atomics, and sums over tiles are added in a fixed order.
"""

from typing import Any

import torch
from torch import Tensor

from gwsss_fast.kernels import edge_readout as kernels
from gwsss_fast.kernels import edge_readout_gradient as gradient_kernels
from gwsss_fast.launch.launcher import Tiles, blocks, launch, power_of_two
from gwsss_fast.launch.tuning import dtype_name, tiles_for

TOP = 2.0**15  # half of float16's range, the largest value that a gradient of the scores may take


def _even(g: Tensor) -> Tensor:
    """Nodes at one distance and unit stride in the channels; a copy for any other layout."""
    even = g.stride(3) == 1 and g.stride(0) == g.shape[1] * g.stride(1)
    # Not g.contiguous(): that leaves a dimension of size 1 the stride it has, which here is the nodes' distance.
    return g if even else g.clone(memory_format=torch.contiguous_format)


def _precision(g: Tensor) -> str:
    """How the products take their operands: the interpreter has none for bfloat16."""
    return "upcast" if g.dtype == torch.bfloat16 and g.device.type == "cpu" else "ieee"


def _like_scores(shape: tuple[int, ...], g: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for scores or their gradients. Where our kernels make the products, rows are at a distance that 16 divides:
    loads of 16 bytes for any number of positions. In float32 they are as PyTorch's products leave them."""
    *outer, width = shape
    step = width if g.dtype == torch.float32 else -(-width // 16) * 16
    return torch.empty((*outer, step), device=g.device, dtype=dtype)[..., :width]


def _start_gram(g: Tensor, out: Tensor, channels_first: bool) -> None:
    groups, nodes, positions, channels = g.shape
    size, depth = (channels, positions) if channels_first else (positions, channels)
    steps = (1, g.stride(2)) if channels_first else (g.stride(2), 1)
    count = nodes if channels_first else 1
    matrices = groups if channels_first else groups * nodes
    # Where rows do not begin at multiples of 16 values, each has an address of its own, and registers run out.
    block = min(power_of_two(size), 128 if channels % 16 == size % 16 == 0 else 64)
    deep = min(power_of_two(depth), 64 if channels % 16 == 0 else 32)
    heuristic = Tiles({"BLOCK": block, "BLOCK_K": deep}, num_warps=8 if block == 128 else 4, num_stages=3)

    def run(tiles: Tiles) -> None:
        grid = ((count * blocks(size, tiles.blocks["BLOCK"])) ** 2, matrices)
        strides = (g.stride(1), *steps, out.stride(0), out.stride(1))
        launch(kernels.gram, grid, g, out, size, depth, count, *strides, tiles=tiles, PRECISION=_precision(g))

    candidates = [
        Tiles({"BLOCK": b, "BLOCK_K": deep}, num_warps=warps, num_stages=stages)
        for b, warps in ((128, 8), (128, 4), (64, 4))
        for stages in (3, 4)
        if b <= block
    ]
    key = {"size": size, "depth": depth, "across": channels_first, "dtype": dtype_name(g)}
    run(tiles_for("edge_readout.gram", g, key, heuristic, candidates, run))


def _grams(g: Tensor) -> Tensor:
    """g g^T of every node in float32, (B K, N, N)."""
    groups, nodes, positions, _ = g.shape
    if g.dtype == torch.float32:
        flat = g.flatten(0, 1)
        return _mirrored(flat @ flat.mT)
    out = _like_scores((groups * nodes, positions, positions), g, torch.float32)
    _start_gram(g, out, channels_first=False)
    return out


def _channel_blocks(g: Tensor) -> Tensor:
    """g_a^T g_b of all nodes of a group in float32, (B, K C, K C)."""
    groups, nodes, _, channels = g.shape
    if g.dtype == torch.float32:
        flat = _side_by_side(g)
        return _mirrored(flat.mT @ flat)
    width = nodes * channels
    out = _like_scores((groups, width, width), g, torch.float32)
    _start_gram(g, out, channels_first=True)
    return out


def _mirrored(matrices: Tensor) -> Tensor:
    """The same matrices, (matrices, size, size), made symmetric: a product need not be so in its last bit."""
    count, size, _ = matrices.shape
    tiles = Tiles({"BLOCK": min(power_of_two(size), 64)}, num_warps=8)
    grid = (blocks(size, tiles.blocks["BLOCK"]) ** 2, count)
    launch(kernels.mirror, grid, matrices, size, matrices.stride(0), matrices.stride(1), tiles=tiles)
    return matrices


def _side_by_side(g: Tensor) -> Tensor:
    """(B, K, N, C) as (B, N, K C)."""
    return g.transpose(1, 2).flatten(2)


def _start_by_edge(kernel: Any, size: int, across: int, edges: int, *arguments: Any, **constants: Any) -> None:
    """One program for some of the `size` rows of each edge, 4,096 values at a time over the `across` it reads.

    Whole rows up to 1,024: then the reductions stay in a warp and happen once. Fewer values where rows do not begin at
    multiples of 16 bytes, as with all tiles here: each value then has an address of its own, and registers run out.
    """
    wide = min(power_of_two(across), 1024)
    values = 4096 if across % 16 == 0 else 2048
    tiles = Tiles({"BLOCK_R": min(values // wide, power_of_two(size)), "BLOCK_C": wide}, num_warps=4, num_stages=2)
    launch(kernel, (blocks(size, tiles.blocks["BLOCK_R"]), edges), *arguments, tiles=tiles, **constants)


def edge_readout(g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """mean(p) and mean(c), each (B, K, K, 2C), and the statistics of the softmaxes in float32.

    Of the positions, (B, K, K, 3, N): each row's maximum, inverse sum of exponentials and weight. Of the channels, (B,
    K, K, 3, C): each row's maximum, inverse sum and mean of mean(x).
    """
    g = _even(g)
    groups, nodes, positions, channels = g.shape
    edges = groups * nodes * nodes
    shape = (groups, nodes, nodes)
    of_positions = torch.empty((*shape, 3, positions), device=g.device, dtype=torch.float32)
    of_channels = torch.empty((*shape, 3, channels), device=g.device, dtype=torch.float32)
    position, channel = (torch.empty((*shape, 2 * channels), device=g.device, dtype=g.dtype) for _ in range(2))

    grams = _grams(g)
    for kernel in (kernels.position_statistics, kernels.position_weights):
        sizes = (positions, nodes, grams.stride(1))
        _start_by_edge(kernel, positions, positions, edges, grams, of_positions, *sizes)
    del grams
    wide = min(power_of_two(channels), 64)
    launch(
        kernels.position_readout,
        (blocks(channels, wide), edges),
        *(g, of_positions, position, positions, channels, nodes, g.stride(1), g.stride(2)),
        tiles=Tiles({"BLOCK_R": 32, "BLOCK_C": wide}),
    )

    a, mean = _channel_blocks(g), g.mean(2, dtype=torch.float32)
    arguments = (a, mean, of_channels, channel, channels, nodes, a.stride(0), a.stride(1))
    _start_by_edge(kernels.channel_readout, channels, channels, edges, *arguments)
    return position, channel, of_positions, of_channels


def _both_orders(grad: Tensor) -> Tensor:
    """(B, K, K, 2C) to (B, K, K, C): what node i's half of the edge (i, j) receives from both orders of the pair."""
    first, second = grad.float().chunk(2, -1)
    return (first + second.transpose(1, 2)).contiguous()


def edge_readout_backward(
    grad_position: Tensor, grad_channel: Tensor, g: Tensor, of_positions: Tensor, of_channels: Tensor
) -> Tensor:
    """Gradient of g, (B, K, N, C)."""
    g = _even(g)
    positions = g.shape[2]
    grad_p, grad_c = _both_orders(grad_position), _both_orders(grad_channel)
    mean = g.mean(2, dtype=torch.float32)
    slopes = _slopes(g, grad_p)
    scale = _scale(slopes, grad_c, mean) if g.dtype != torch.float32 else g.new_ones(len(g))
    matrices = _position_gradient(g, of_positions, slopes, scale)
    block_matrices, through_blocks = _channel_gradient(g, of_channels, mean, grad_c, scale)
    grad_mean = (grad_c.sum(2) + through_blocks.sum(2)) / positions
    if g.dtype == torch.float32:
        return _node_gradient_of_products(g, matrices, block_matrices, of_positions[:, :, :, 2], grad_p, grad_mean)
    return _node_gradient(g, matrices, block_matrices, scale, of_positions, grad_p, grad_mean)


def _slopes(g: Tensor, grad: Tensor) -> Tensor:
    """What the column means of an edge's position weights receive, (B, K, K, N), the same for both orders."""
    groups, nodes, positions, channels = g.shape
    slopes = torch.empty((groups, nodes, nodes, positions), device=g.device, dtype=torch.float32)
    sizes = (positions, channels, nodes, g.stride(1), g.stride(2))
    edges = groups * nodes * nodes
    _start_by_edge(gradient_kernels.weight_slopes, positions, channels, edges, g, grad, slopes, *sizes)
    slopes = slopes + slopes.transpose(1, 2)
    slopes.diagonal(dim1=1, dim2=2).mul_(0.5)
    return slopes


def _scale(slopes: Tensor, grad: Tensor, mean: Tensor) -> Tensor:
    """A power of two a group, (B,), that brings the gradients of the scores below `TOP`, so float16 can hold them.

    An entry of one edge is a weight of at most 1 times the difference of two values; with its transpose four values.
    """
    nodes = slopes.shape[1]
    positions = 4 * (nodes + 1) * slopes.abs().amax((1, 2, 3))
    channels = 4 * nodes * grad.abs().amax((1, 2, 3)) * mean.abs().amax((1, 2))
    bound = torch.maximum(positions, channels).clamp(min=1e-30)
    return TOP * torch.exp2(-torch.ceil(torch.log2(bound)))


def _position_gradient(g: Tensor, of_positions: Tensor, slopes: Tensor, scale: Tensor) -> Tensor:
    """What multiplies each node from its Gram matrix, (B K, N, N)."""
    groups, nodes, positions, _ = g.shape
    grams, means = _grams(g), torch.empty_like(slopes)
    edges, sizes = groups * nodes * nodes, (positions, nodes, grams.stride(1))
    arguments = (grams, of_positions, slopes, means)
    _start_by_edge(gradient_kernels.mean_slopes, positions, positions, edges, *arguments, *sizes)
    out = _like_scores((groups * nodes, positions, positions), g, g.dtype)
    tiles = Tiles({"BLOCK": min(power_of_two(positions), 64)}, num_warps=8)
    launch(
        gradient_kernels.position_gradient,
        (blocks(positions, tiles.blocks["BLOCK"]) ** 2, groups * nodes),
        *(*arguments, scale, out, *sizes, out.stride(1)),
        tiles=tiles,
    )
    return out


def _channel_gradient(
    g: Tensor, of_channels: Tensor, mean: Tensor, grad: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """What multiplies all nodes from the channel blocks, (B, K C, K C), and parts of the means' gradient."""
    groups, nodes, _, channels = g.shape
    width = nodes * channels
    a = _channel_blocks(g)
    out = _like_scores((groups, width, width), g, g.dtype)
    parts = torch.empty((groups, nodes, nodes, channels), device=g.device, dtype=torch.float32)
    height, wide, registers = (16, 128, None) if channels % 16 == 0 else (8, 64, 255)
    tiles = Tiles({"BLOCK_R": height, "BLOCK_C": min(power_of_two(channels), wide)}, registers=registers)
    launch(
        gradient_kernels.channel_gradient,
        (blocks(channels, tiles.blocks["BLOCK_R"]), groups * nodes * nodes),
        *(a, mean, of_channels, grad, scale, out, parts),
        *(channels, nodes, a.stride(0), a.stride(1)),
        tiles=tiles,
    )
    return out, parts


def _node_gradient(
    g: Tensor,
    matrices: Tensor,
    block_matrices: Tensor,
    scale: Tensor,
    of_positions: Tensor,
    grad: Tensor,
    grad_mean: Tensor,
) -> Tensor:
    """The gradient of g in 16 bits: both products and all vectors in one kernel."""
    groups, nodes, positions, channels = g.shape
    out = torch.empty(g.shape, device=g.device, dtype=g.dtype)
    wide = min(power_of_two(channels), 128)
    deep = 64 if channels % 16 == 0 else 32
    heuristic = Tiles({"BLOCK_M": 128, "BLOCK_N": wide, "BLOCK_K": deep}, 8 if wide == 128 else 4, 3)
    sizes = (positions, channels, nodes, g.stride(1), g.stride(2), matrices.stride(1))
    strides = (block_matrices.stride(0), block_matrices.stride(1))

    def run(tiles: Tiles) -> None:
        launch(
            gradient_kernels.node_gradient,
            (blocks(positions, tiles.blocks["BLOCK_M"]) * blocks(channels, tiles.blocks["BLOCK_N"]), groups * nodes),
            *(g, matrices, block_matrices, scale, of_positions, grad, grad_mean, out, *sizes, *strides),
            tiles=tiles,
            PRECISION=_precision(g),
        )

    candidates = [
        Tiles({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=3)
        for m, n, warps in ((128, 128, 8), (128, 64, 4), (64, 128, 4))
        for k in (32, 64)
        if n <= wide
    ]
    key = {"N": positions, "C": channels, "K": nodes, "dtype": dtype_name(g)}
    run(tiles_for("edge_readout.node_gradient", g, key, heuristic, candidates, run))
    return out


def _node_gradient_of_products(
    g: Tensor, matrix: Tensor, block_matrix: Tensor, weights: Tensor, grad: Tensor, grad_mean: Tensor
) -> Tensor:
    """The gradient of g in float32."""
    groups, nodes, positions, channels = g.shape
    flat = torch.baddbmm(grad_mean.view(-1, 1, channels), weights.flatten(0, 1).mT, grad.flatten(0, 1)).baddbmm_(
        matrix, g.flatten(0, 1)
    )
    through_blocks = (_side_by_side(g) @ block_matrix).view(groups, positions, nodes, channels)
    return flat.view(g.shape).add_(through_blocks.transpose(1, 2))
