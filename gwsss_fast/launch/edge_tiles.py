"""The heuristic tiles of attention and co-attention: functions of D, C, arithmetic and card, for lack of a tabled row.

Three kinds of kernels. "weighted" sums weighted values (messages, gradients of values), with a float32 accumulator of
BLOCK_M x BLOCK_C. "receivers" and "senders" make the factors' gradients: their accumulators are BLOCK_M x BLOCK_D wide
(receivers have two, of BLOCK_G columns), and they walk over all C channels for every tile of scores.

A program has at most 255 registers a thread and its card's shared memory; the tiles below fill one of the two without
spilling, as compiled for sm_80, sm_90 and sm_100. None of them has been timed.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from gwsss_fast.launch.launcher import Tiles, blocks, power_of_two

# Cards by the shared memory of one program: 227 KiB, 163 KiB; all others have 99 KiB.
LARGE, MEDIUM = ("none", "sm_90", "sm_100", "sm_103"), ("sm_80", "sm_87")
BLACKWELL = ("sm_100", "sm_103")
DEEP = ("none", "sm_90", *MEDIUM)


def _tiles(warps: int, stages: int, **sizes: int) -> Tiles:
    return Tiles({f"BLOCK_{name}" if name != "HELD" else name: size for name, size in sizes.items()}, warps, stages)


@functools.cache  # every start of a kernel asks, as it does for the functions below
def candidates(heuristic: Tiles) -> tuple[Tiles, ...]:
    """What may be faster than `heuristic` on a card, for tuning: other positions of the partner at a time, warps and
    stages."""
    sizes = [{**heuristic.blocks, "BLOCK_N": height} for height in (16, 32, 64, 128)]
    return tuple(
        replace(heuristic, blocks=x, num_warps=warps, num_stages=n) for x in sizes for warps in (4, 8) for n in (2, 3)
    )


@functools.cache
def weighted(
    rank: int, channels: int, arithmetic: str, card: str, few: bool, forward: bool = False, addends: bool = False
) -> Tiles:
    """arithmetic: "16-bit", "tf32" or "ieee"; few: 128 rows a program would leave multiprocessors idle. forward: with
    statistics, of BLOCK_S positions at a time; addends: with others added to the sum."""
    tiles, statistics = _weighted(power_of_two(rank), power_of_two(channels), arithmetic, card, few, forward, addends)
    more = {"BLOCK_S": statistics} if forward else {}
    return _for_rows(replace(tiles, blocks={**tiles.blocks, **more}), rank, channels, arithmetic, card)


def _for_rows(tiles: Tiles, rank: int, channels: int, arithmetic: str, card: str) -> Tiles:
    """tiles, or what rows need that do not begin at multiples of 16 values: there each has an address of its own.

    Of two stages the copies for the next tile begin where a tile's work ends, and are waited for at once; of three they
    have a whole tile's work to hide behind. On H100- and A100-class cards these fit with up to 128 columns of factors.
    """
    aligned = rank % 16 == 0 and channels % 16 == 0
    if aligned and arithmetic != "tf32":
        deep = card in DEEP and arithmetic == "16-bit" and rank <= 128
        return replace(tiles, num_stages=max(tiles.num_stages, 3)) if deep else tiles
    smaller = {}
    if not aligned and arithmetic == "ieee":
        names = ["BLOCK_N"] if "HELD" in tiles.blocks else ["BLOCK_M", "BLOCK_N"]
        smaller = {name: tiles.blocks[name] // 2 for name in names}
    return replace(tiles, blocks={**tiles.blocks, **smaller}, registers=255)


def _weighted(d: int, c: int, arithmetic: str, card: str, few: bool, forward: bool, addends: bool) -> tuple[Tiles, int]:
    if arithmetic == "ieee":
        # No tensor cores: operands come from registers, so products are cut into pieces of 16 columns.
        return _tiles(8, 2, M=64, N=64, D=d, K=16, C=min(c, 64)), 64
    if arithmetic == "tf32":
        low = d > 128 and card not in LARGE + MEDIUM  # 4 bytes a value: at 32 columns of the partner 104 KiB
        return _tiles(8, 2, M=64, N=16 if low else 32, D=d, K=d, C=min(c, 128 if d <= 128 else 64)), 32
    if card not in LARGE + MEDIUM:
        return _tiles(4, 2, M=64, N=32, D=d, K=d, C=min(c, 128)), 64
    statistics = 64 if d > 128 or card in MEDIUM else 128
    if few:
        high = d <= 128 and card in LARGE and (forward or card not in BLACKWELL)
        return _tiles(8, 2, M=64, N=64 if high else 32, D=d, K=d, C=min(c, 256)), statistics
    # 128 x 256 is half the register file: beside an addend, wide factors or others' statistics, scores are narrower.
    narrow = addends or not forward or d > 128
    height = 16 if card in MEDIUM else 32 if narrow else 64
    return _tiles(8, 2, M=128, N=height, D=d, K=d, C=min(c, 256)), statistics


@functools.cache
def receivers(rank: int, channels: int, arithmetic: str, card: str) -> Tiles:
    """Tiles of the kernels that make the gradients of the receivers' factors."""
    return _for_rows(_factors(rank, channels, arithmetic, card, two=True), rank, channels, arithmetic, card)


@functools.cache
def senders(rank: int, channels: int, arithmetic: str, card: str) -> Tiles:
    """Tiles of the kernels that make the gradients of the senders' factors."""
    return _for_rows(_factors(rank, channels, arithmetic, card, two=False), rank, channels, arithmetic, card)


def _factors(rank: int, channels: int, arithmetic: str, card: str, two: bool) -> Tiles:
    """two: with two accumulators, of at most 128 columns each."""
    d, c = power_of_two(rank), power_of_two(channels)
    more = {"G": min(d, 128)} if two else {}
    if arithmetic == "ieee":
        low = two and d > 128
        return _tiles(8, 2, M=32 if low else 64, N=32, D=d, K=16, C=min(c, 32 if low else 16), HELD=0, **more)
    if arithmetic == "tf32":
        # Before Hopper operands come from registers here too.
        return _tiles(8, 2, M=64, N=32, D=d, K=d if card in LARGE else min(d, 64), C=min(c, 32), HELD=0, **more)
    if card in BLACKWELL:
        return _tiles(8, 2, M=128, N=32, D=d, K=d, C=min(c, 64), HELD=0, **more)
    if card in LARGE and channels <= 512:
        # The own rows' channels stay in shared memory: the L2 cache could not bring them again for every tile.
        c = min(c, 128)
        return _tiles(8 if two else 4, 2, M=64, N=32, D=d, K=d, C=c, HELD=blocks(channels, c), **more)
    return _tiles(8, 2 if d > 128 else 3, M=64, N=32 if d > 128 else 64, D=d, K=d, C=min(c, 32), HELD=0, **more)
