"""What the launchers of attention and co-attention share: layouts, arithmetic, and the tiles of their kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gwsss_fast.launch import edge_tiles
from gwsss_fast.launch.launcher import Tiles, blocks
from gwsss_fast.launch.tuning import card_of, dtype_name, tiles_for

LARGEST_RANK, MOST_CHANNELS = 256, 1024
_MULTIPROCESSORS = 128  # about what a large card has; fewer programs than this leave some idle


def refuse(factor: Tensor, values: Tensor) -> str | None:
    """Why the kernels cannot take factors (..., N, D) and values (..., N, C), or None."""
    if 0 in (factor.shape[-1], values.shape[-1]):
        return "it needs at least one channel"
    if factor.shape[-1] > LARGEST_RANK:
        return f"its tiles hold factors of up to {LARGEST_RANK} channels, not {factor.shape[-1]}"
    if values.shape[-1] > MOST_CHANNELS:
        return f"it takes values of up to {MOST_CHANNELS} channels, not {values.shape[-1]}"
    return None


def rows_of(x: Tensor) -> Tensor:
    """(..., N, W) as (rows, W) with unit stride inside; a copy unless rows follow each other evenly."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def factor_rows(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of both factors with one stride."""
    left, right = rows_of(left), rows_of(right)
    if left.stride(0) != right.stride(0):
        left, right = left.contiguous(), right.contiguous()
    return left, right


def precision(x: Tensor) -> str:
    """How products take their operands: full float32 unless tf32 is allowed; the interpreter has none for bfloat16."""
    if x.dtype == torch.float32:
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    return "upcast" if x.dtype == torch.bfloat16 and x.device.type == "cpu" else "ieee"


class Edges:
    """Sizes and arithmetic of one call over `nodes` nodes of N positions, and the tiles that follow from them."""

    def __init__(self, operation: str, factor: Tensor, values: Tensor, nodes: int) -> None:
        self.operation, self.values, self.nodes = operation, values, nodes
        self.positions, self.rank, self.channels = values.shape[-2], factor.shape[-1], values.shape[-1]
        self.sizes = (self.positions, self.rank, self.channels)
        self.precision = precision(values)
        # Weights are multiplied by 2^power before they are rounded: float16 loses digits below 2^-14, where a nearly
        # uniform softmax over many positions lies. The sum is divided by it again, in float32.
        self.power = 12 if values.dtype == torch.float16 else 0

    def parts(self, tiles: Tiles) -> int:
        """Programs over the positions of all nodes."""
        return self.nodes * blocks(self.positions, tiles.blocks["BLOCK_M"])

    def shares(self, tiles: Tiles) -> int:
        """Among how many programs the blocks of C are shared out: one walks over all of them and finds the statistics
        once, but where that leaves multiprocessors idle each block gets its own."""
        return 1 if self.parts(tiles) >= _MULTIPROCESSORS else blocks(self.channels, tiles.blocks["BLOCK_C"])

    def constants(self, tiles: Tiles) -> dict[str, Any]:
        """The kernels' compile-time arguments that are no tile sizes."""
        size = tiles.blocks
        return {
            "PRECISION": self.precision,
            "FULL_D": self.rank == size["BLOCK_D"],
            "FULL_C": self.channels % size["BLOCK_C"] == 0,
        }

    def start(self, name: str, heuristic: Tiles, run: Callable[[Tiles], None], **more: Any) -> None:
        """Run a kernel with its tiles. more: what they hang on besides the sizes."""
        key: dict[str, Any] = {"D": self.rank, "C": self.channels, "N": self.positions, "nodes": self.nodes}
        key |= {"dtype": dtype_name(self.values), "precision": self.precision, **more}
        candidates = edge_tiles.candidates(heuristic)
        run(tiles_for(f"{self.operation}.{name}", self.values, key, heuristic, candidates, run))

    def start_weighted(
        self, name: str, run: Callable[[Tiles], None], forward: bool = False, addends: bool = False
    ) -> None:
        """Run a kernel that sums weighted values. forward: with statistics; addends: others are added to the sum."""
        few = self.nodes * blocks(self.positions, 128) < _MULTIPROCESSORS
        self.start(name, edge_tiles.weighted(*self._choice(), few, forward, addends), run, addends=addends)

    def start_receivers(self, name: str, run: Callable[[Tiles], None]) -> None:
        """Run a kernel that makes the gradient of the receivers' factors."""
        self.start(name, edge_tiles.receivers(*self._choice()), run)

    def start_senders(self, name: str, run: Callable[[Tiles], None]) -> None:
        """Run a kernel that makes the gradient of the senders' factors."""
        self.start(name, edge_tiles.senders(*self._choice()), run)

    def _choice(self) -> tuple[int, int, str, str]:
        arithmetic = self.precision if self.values.dtype == torch.float32 else "16-bit"
        return self.rank, self.channels, arithmetic, card_of(self.values)
