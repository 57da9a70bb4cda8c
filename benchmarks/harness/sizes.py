"""The work sizes that are measured and compiled for: the paper's, a large one, and odd ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Size:
    """B groups of K nodes of height x width positions and C channels; score projections of D channels; T steps."""

    name: str
    groups: int
    nodes: int
    height: int
    width: int
    channels: int
    rank: int
    steps: int = 3
    classes: int = 20

    @property
    def positions(self) -> int:
        """N."""
        return self.height * self.width

    @property
    def images(self) -> int:
        """B K."""
        return self.groups * self.nodes

    @property
    def rows(self) -> int:
        """B K N."""
        return self.images * self.positions

    def __str__(self) -> str:
        return (
            f"{self.name} (B={self.groups}, K={self.nodes}, N={self.positions}, C={self.channels}, D={self.rank}, "
            f"T={self.steps})"
        )


PAPER = Size("paper", 1, 4, 28, 28, 512, 128)
PAPER_8 = Size("paper-8", 8, 4, 28, 28, 512, 128)
LARGE = Size("large", 1, 8, 56, 56, 512, 128)
SMALL = Size("small", 1, 3, 8, 8, 64, 16, steps=2)
ODD = (
    Size("odd-37", 2, 3, 37, 1, 20, 5, steps=2),
    Size("odd-785", 1, 2, 157, 5, 512, 128, steps=2),
    Size("one-position", 1, 2, 1, 1, 20, 5, steps=1),
    Size("one-node", 3, 1, 6, 7, 36, 9, steps=2),
    Size("wide", 1, 2, 9, 11, 1024, 256, steps=1),
)
SIZES = {size.name: size for size in (PAPER, PAPER_8, LARGE, SMALL, *ODD)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ARITHMETICS = {**DTYPES, "tf32": torch.float32}
"""What kernels are compiled for: the dtypes, and float32 where the user has allowed tf32, which starts others."""
