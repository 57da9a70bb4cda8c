"""Class activation maps as they lie in `ID.npy`: a run's own, IRN's and SEAM's.

- IRN: a dictionary with `keys` (n,) 0-based foreground classes, `high_res` (n, H, W), and `cam`, the same at stride 4.
- A run: IRN's dictionary of the ensembled maps in 16-bit floats, with `initial` and `graph` at stride 4 and `size`
  (H, W) besides; `high_res` may be left out. The maps come from features at stride 8, so stride 4 loses little.
- SEAM: a dictionary {class: map (H, W)}.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from gwsss_fast.data.images import pixel_limit
from gwsss_fast.data.label_files import as_numbers, load_pickled_dict
from gwsss_fast.errors import GwsssError

STRIDE = 4


@dataclass(frozen=True)
class StoredMaps:
    """Maps of the 0-based foreground classes `keys` (n,), each (n, H, W) float32 at the image's size.

    `maps` holds those of `ensemble`, `initial` and `graph` that the file has; the only maps of a file of another
    project are its `ensemble`.
    """

    keys: NDArray[np.int64]
    maps: dict[str, NDArray[np.float32]]


def read_map_file(path: str | Path) -> StoredMaps:
    """Read a file of any of the three layouts, maps at stride 4 enlarged; only arrays and plain values are unpickled.

    Raises GwsssError naming the file when it is missing or of no such layout.
    """
    content = load_pickled_dict(path)
    if "keys" in content and ("high_res" in content or {"cam", "size"} <= content.keys()):
        keys = _integers(content["keys"], path)
        small = {"ensemble": "cam", "initial": "initial", "graph": "graph"}
        maps = {name: _planes(content[key], keys, path) for name, key in small.items() if key in content}
        if "high_res" in content:
            maps["ensemble"] = _planes(content["high_res"], keys, path)
        height, width = _size(content["size"], path) if "size" in content else maps["ensemble"].shape[1:]
        maps = {name: enlarged(planes, (height, width)) for name, planes in maps.items()}
    elif content and all(isinstance(key, (int, np.integer)) for key in content):
        numbers = sorted(content)
        keys = _integers(numbers, path)
        parts = [as_numbers(content[number]) for number in numbers]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or len({part.shape for part in known}) > 1:
            raise GwsssError(f"{path}: the maps of its classes differ in shape, or are none")
        maps = {"ensemble": _planes(np.stack(known), keys, path)}
        if len(keys) > 1 and keys[0] == 0 and np.allclose(maps["ensemble"].sum(0), 1, atol=1e-3):
            raise GwsssError(
                f"{path} holds probabilities after a CRF, whose class 0 is background; name the maps' folder"
            )
    else:
        raise GwsssError(f"{path} holds neither IRN's entries keys and high_res nor SEAM's maps by class number")
    return StoredMaps(keys, maps)


def strided(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps (n, H, W) at stride 4: (n, ceil(H / 4), ceil(W / 4))."""
    return _resized(maps, strided_shape((maps.shape[1], maps.shape[2])))


def strided_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """(H, W) at stride 4."""
    return (shape[0] - 1) // STRIDE + 1, (shape[1] - 1) // STRIDE + 1


def enlarged(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Maps (n, h, w) at the size (H, W); as they are when they have it."""
    return maps if maps.shape[1:] == tuple(size) else _resized(maps, size)


def enlarged_bands(
    maps: NDArray[np.float32], size: tuple[int, int], pixels: int = 2**20
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """What `enlarged` gives, some rows of at most `pixels` positions at a time, with the rows they are.

    Equal up to rounding; exactly `maps` in one piece when they have the size.
    """
    height, width = size
    if maps.shape[1:] == tuple(size) or not len(maps):
        yield slice(0, height), enlarged(maps, size)
        return
    rows = max(pixels // width, 1)
    at = np.clip((np.arange(height) + 0.5) * (maps.shape[1] / height) - 0.5, 0, maps.shape[1] - 1)
    above = at.astype(np.int64)
    below, weight = np.minimum(above + 1, maps.shape[1] - 1), (at - above).astype(np.float32)[:, None]
    for start in range(0, height, rows):
        band = slice(start, min(start + rows, height))
        part = maps[:, above[band]] * (1 - weight[band]) + maps[:, below[band]] * weight[band]
        yield band, _resized(part, (band.stop - band.start, width))


def _resized(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    if not len(maps):
        return np.zeros((0, *size), np.float32)
    planes = torch.as_tensor(np.array(maps, dtype=np.float32))  # a copy: the caller may hold a read-only view
    return interpolate(planes[None], size, mode="bilinear", align_corners=False)[0].numpy()


def _planes(value: Any, keys: NDArray[np.int64], path: str | Path) -> NDArray[np.float32]:
    planes = as_numbers(value)
    if planes is None or planes.ndim != 3 or len(planes) != len(keys) or (len(keys) and not planes.size):
        shape = "no numbers" if planes is None else f"shape {planes.shape}"
        raise GwsssError(f"{path}: maps of {shape} do not fit its {len(keys)} classes")
    return np.asarray(planes, dtype=np.float32)


def _size(value: Any, path: str | Path) -> tuple[int, int]:
    values = _integers(value, path).tolist()
    if len(values) != 2 or min(values) < 1 or values[0] * values[1] > pixel_limit():
        raise GwsssError(f"{path}: its size {values[:5]} is not a height and a width, or more than max_megapixels")
    return values[0], values[1]


def _integers(value: Any, path: str | Path) -> NDArray[np.int64]:
    """Whole numbers of any shape as (n,) int64."""
    numbers = as_numbers(value)
    if numbers is None or (numbers.size and numbers.dtype.kind not in "iu"):
        raise GwsssError(f"{path}: its keys or its size are no whole numbers")
    return numbers.reshape(-1).astype(np.int64)
