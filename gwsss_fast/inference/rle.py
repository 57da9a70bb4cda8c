"""Run lengths of masks as COCO writes them: column by column, in its text form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gwsss_fast.errors import GwsssError

_BITS, _MORE, _SIGN, _FIRST = 5, 0x20, 0x10, 48


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """{"size": [H, W], "counts": text} of a mask (H, W), exactly as pycocotools encodes it."""
    return {"size": [int(side) for side in mask.shape], "counts": _text(run_lengths(mask))}


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn, down each column, the first of zeros (it may be empty)."""
    pixels = np.asarray(mask, bool).ravel(order="F")
    if not pixels.size:
        return []
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate(([0], edges, [pixels.size]))).tolist()
    return [0, *lengths] if pixels[0] else lengths


def _text(counts: list[int]) -> str:
    """Five bits a character, lowest first; from the fourth on the difference to the count two before."""
    characters = []
    for number, count in enumerate(counts):
        value = count - counts[number - 2] if number > 2 else count
        more = True
        while more:
            part = value & (_MORE - 1)
            value >>= _BITS  # keeps the sign
            more = value != -1 if part & _SIGN else value != 0
            characters.append(chr(_FIRST + (part | _MORE if more else part)))
    return "".join(characters)


def decode(encoded: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask (H, W) of what `encode` gives. Raises GwsssError for a text that does not fill its size."""
    height, width = encoded["size"]
    counts: list[int] = []
    value = shift = 0
    for character in encoded["counts"]:
        part = ord(character) - _FIRST
        value |= (part & (_MORE - 1)) << shift
        shift += _BITS
        if not part & _MORE:
            if part & _SIGN:
                value |= -1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise GwsssError(f"run lengths of {sum(counts)} pixels do not fill a mask of {height}x{width}")
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape((height, width), order="F")
