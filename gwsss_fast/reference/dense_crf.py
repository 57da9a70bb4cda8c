"""Mean field of a fully connected CRF with Gaussian edges (Kraehenbuhl and Koltun, NIPS 2011), in plain PyTorch.

Messages are Gaussian filters over pixel features, taken on the permutohedral lattice (Adams, Baek and Davis, 2010):
each pixel's value is splatted onto the d + 1 corners of the simplex around its feature, the corners are blurred along
the d + 1 lattice directions, and the result is sliced back with the same weights. The lattice is built with float32
arithmetic in the order of Kraehenbuhl's implementation, so that pixels fall into the same simplices there and here.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

SMALLEST_PROBABILITY = 1e-5  # the unary energy of a label is never above -log of this


def dense_crf(
    prob: Tensor,
    image: Tensor,
    *,
    sxy_gaussian: float,
    w_gaussian: float,
    sxy_bilateral: float,
    srgb: float,
    w_bilateral: float,
    iterations: int,
) -> Tensor:
    """Marginals (L, H, W) after `iterations` mean-field updates from label probabilities `prob` (L, H, W) in [0, 1].

    image: (H, W, 3) raw pixels 0..255. The smoothness kernel has position width `sxy_gaussian` (pixels), the
    appearance kernel `sxy_bilateral` (pixels) and `srgb` (grey levels); `w_gaussian` and `w_bilateral` are the Potts
    weights. Each kernel is normalised on both sides by the square root of its row sums. The result has the dtype of
    `prob`. Raises ValueError for shapes that do not agree.
    """
    if prob.dim() != 3 or image.shape != (*prob.shape[1:], 3):
        raise ValueError(
            f"dense_crf wants prob (L, H, W) and image (H, W, 3); got {tuple(prob.shape)} and {tuple(image.shape)}"
        )
    if prob.numel() == 0:
        return prob.clone()
    log_unary = _log_unary(prob)
    kernels = _kernels(image.to(prob.device), sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral)
    return _as_map(_mean_field(log_unary, kernels, iterations)[-1], prob)


def dense_crf_backward(
    grad: Tensor,
    prob: Tensor,
    image: Tensor,
    *,
    sxy_gaussian: float,
    w_gaussian: float,
    sxy_bilateral: float,
    srgb: float,
    w_bilateral: float,
    iterations: int,
) -> Tensor:
    """Gradient of `prob` (L, H, W): back through every update, by the transposed filter. The image gets none."""
    if prob.numel() == 0:
        return torch.zeros_like(prob)
    log_unary = _log_unary(prob)
    kernels = _kernels(image.to(prob.device), sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral)
    marginals = _mean_field(log_unary, kernels, iterations)
    grad_marginals = grad.float().reshape(len(prob), -1).T
    grad_unary = torch.zeros_like(log_unary)
    for step in range(iterations, -1, -1):
        weights = marginals[step]
        grad_score = weights * (grad_marginals - (weights * grad_marginals).sum(1, keepdim=True))
        grad_unary += grad_score
        grad_marginals = _messages(grad_score, kernels, transposed=True)
    kept = ((prob >= SMALLEST_PROBABILITY) & (prob <= 1)).to(prob.dtype)
    return _as_map(grad_unary, prob) * kept / prob.clamp(SMALLEST_PROBABILITY, 1.0)


class Kernel(NamedTuple):
    """A Gaussian edge kernel: its Potts weight, its lattice and the square root normalisation (N, 1)."""

    weight: float
    lattice: "Lattice"
    norm: Tensor


def _kernels(
    image: Tensor, sxy_gaussian: float, w_gaussian: float, sxy_bilateral: float, srgb: float, w_bilateral: float
) -> list[Kernel]:
    position = _positions(image.shape[0], image.shape[1], image.device)
    colour = image.reshape(-1, 3).float()
    features = [
        (w_gaussian, lambda: position / sxy_gaussian),
        (w_bilateral, lambda: torch.cat([position / sxy_bilateral, colour / srgb], 1)),
    ]
    kernels = []
    for weight, scaled in features:
        if weight != 0:
            lattice = build_lattice(scaled())
            kernels.append(Kernel(weight, lattice, _inverse_root_of_row_sums(lattice)))
    return kernels


def _mean_field(log_unary: Tensor, kernels: list[Kernel], iterations: int) -> list[Tensor]:
    """Marginals (N, L) at the start and after each update."""
    marginals = [log_unary.softmax(1)]
    for _ in range(iterations):
        marginals.append((log_unary + _messages(marginals[-1], kernels)).softmax(1))
    return marginals


def _messages(values: Tensor, kernels: list[Kernel], transposed: bool = False) -> Tensor:
    """Sum over the kernels of weight * norm * filter(norm * values), or of its transpose."""
    total = torch.zeros_like(values)
    for weight, lattice, norm in kernels:
        total += weight * norm * gaussian_filter(lattice, norm * values, transposed)
    return total


def _log_unary(prob: Tensor) -> Tensor:
    return prob.float().clamp(SMALLEST_PROBABILITY, 1.0).log().reshape(len(prob), -1).T.contiguous()


def _as_map(values: Tensor, prob: Tensor) -> Tensor:
    return values.T.reshape(prob.shape).to(prob.dtype).contiguous()


class Lattice(NamedTuple):
    """N features of dimension d on a permutohedral lattice of M corners."""

    corners: Tensor  # (N, d + 1) corner indices of each feature's simplex
    weights: Tensor  # (N, d + 1) barycentric coordinates, rows sum to 1
    neighbours: Tensor  # (d + 1, 2, M) corner before and after along each direction; M where the lattice has none
    splat_sources: Tensor  # (N (d + 1),) features sorted by the corner they are splatted onto
    splat_weights: Tensor  # (N (d + 1),) their weights
    splat_starts: Tensor  # (M,) first entry of each corner in the two lists above


def gaussian_filter(lattice: Lattice, values: Tensor, transposed: bool = False) -> Tensor:
    """Filter values (N, L) with a unit Gaussian over the lattice's features.

    Splat and slice are each other's transposes and so is a blur with itself, but the blurs do not commute at the
    lattice's rim: the transposed filter takes them in reverse order.
    """
    dimensions = lattice.corners.shape[1] - 1
    corner_values = embedding_bag(
        lattice.splat_sources, values, lattice.splat_starts, mode="sum", per_sample_weights=lattice.splat_weights
    )
    nothing = corner_values.new_zeros(1, values.shape[1])
    for before, after in lattice.neighbours.flip(0) if transposed else lattice.neighbours:
        padded = torch.cat([corner_values, nothing])
        corner_values = corner_values + 0.5 * (padded[before] + padded[after])
    sliced = embedding_bag(lattice.corners, corner_values, mode="sum", per_sample_weights=lattice.weights)
    return sliced / (1 + 2.0**-dimensions)  # the blur's gain, Adams et al.


def build_lattice(features: Tensor) -> Lattice:
    """Corners, weights and neighbours for features (N, d), float32. Raises ValueError when they spread too widely."""
    count, dimensions = features.shape
    # The published code works on blocks of four features and fills the last block with zeros. The corners around zero
    # then exist, carry no pixel, and yet pass the blur on; without them a pixel nearby can differ by some 0.002.
    padding = features.new_zeros(1 if count % 4 else 0, dimensions)
    corner_keys, weights = _enclosing_simplices(torch.cat([features, padding]))
    weights = weights[:count]
    flat = corner_keys.reshape(-1, dimensions)
    lowest = flat.amin(0) - (dimensions + 1)  # room for neighbours just outside
    extent = flat.amax(0) + (dimensions + 2) - lowest
    if extent.double().prod() >= 2.0**62:
        widths = "sxy_gaussian" if dimensions == 2 else "sxy_bilateral or srgb"
        raise ValueError(f"dense_crf: {widths} is too small for this image; a lattice so fine cannot be indexed")
    strides = torch.cat([extent.new_ones(1), extent.cumprod(0)[:-1]])
    codes, inverse = torch.unique(((flat - lowest) * strides).sum(1), return_inverse=True)

    # Along direction j < d a step adds d to coordinate j and takes 1 from the others; along the last, 1 from all.
    steps = (torch.eye(dimensions + 1, dimensions, dtype=torch.long, device=codes.device) * (dimensions + 1)) - 1
    step_codes = (steps * strides).sum(1)
    wanted = codes + torch.stack([step_codes, -step_codes], 1)[:, :, None]
    place = torch.searchsorted(codes, wanted).clamp_(max=len(codes) - 1)
    neighbours = torch.where(codes[place] == wanted, place, len(codes))

    inverse = inverse[: count * (dimensions + 1)]
    order = inverse.argsort(stable=True)
    counts = torch.bincount(inverse, minlength=len(codes))
    return Lattice(
        corners=inverse.reshape(count, dimensions + 1),
        weights=weights,
        neighbours=neighbours,
        splat_sources=order // (dimensions + 1),
        splat_weights=weights.reshape(-1)[order],
        splat_starts=counts.cumsum(0) - counts,
    )


def _enclosing_simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """Corner coordinates (N, d + 1, d), integers, and barycentric weights (N, d + 1) of the simplex of each feature."""
    count, dimensions = features.shape
    size = dimensions + 1
    elevated = _elevate(features)
    multiple = (elevated * (1.0 / size)).round()
    base = multiple * size  # nearest lattice point of colour 0, off the plane by `excess`
    excess = multiple.sum(1, keepdim=True)
    residual = elevated - base
    # rank: place of each coordinate's residual in descending order; of equal ones the earlier coordinate comes later
    rank = residual.new_zeros(count, size)
    for i in range(dimensions):
        smaller = (residual[:, i : i + 1] < residual[:, i + 1 :]).float()
        rank[:, i] += smaller.sum(1)
        rank[:, i + 1 :] += 1 - smaller
    rank = rank + excess
    back = size * ((rank < 0).float() - (rank >= size).float())  # bring the base point back onto the plane
    rank, base = (rank + back).long(), base + back
    residual = (elevated - base) * (1.0 / size)

    weights = residual.new_zeros(count, size + 1)
    weights.scatter_add_(1, dimensions - rank, residual)
    weights.scatter_add_(1, size - rank, -residual)
    first = weights[:, :1] + 1 + weights[:, -1:]
    weights = torch.cat([first, weights[:, 1:-1]], 1)

    colours = torch.arange(size, device=features.device)
    shift = colours[:, None] - size * (colours[None, :] > dimensions - colours[:, None])  # (colour, rank)
    keys = base[:, None, :dimensions].long() + shift[:, rank[:, :dimensions]].transpose(0, 1)
    return keys, weights


def _elevate(features: Tensor) -> Tensor:
    """Features (N, d) on the plane of coordinate sum 0 in d + 1 dimensions, scaled so that the blur has unit width."""
    dimensions = features.shape[1]
    unit_width = torch.tensor((2.0 / 3.0) ** 0.5 * (dimensions + 1)).item()  # rounded to float32, as published
    columns = []
    total = torch.zeros_like(features[:, 0])
    for j in range(dimensions, 0, -1):
        scaled = features[:, j - 1] * (1.0 / ((j + 1) * j) ** 0.5 * unit_width)
        columns.append(total - j * scaled)
        total = total + scaled
    columns.append(total)
    return torch.stack(columns[::-1], 1)


def _inverse_root_of_row_sums(lattice: Lattice) -> Tensor:
    ones = lattice.weights.new_ones(lattice.weights.shape[0], 1)
    return (gaussian_filter(lattice, ones) + 1e-20).rsqrt()


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """Pixel coordinates (x, y) as (H W, 2), row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).float().to(device)
