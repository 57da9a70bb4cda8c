"""Class activation maps as they lie in `ID.npy`: a run's own, IRN's and SEAM's.

- IRN: a dictionary with `keys` (n,) 0-based foreground classes, `high_res` (n, H, W), and `cam`, the same at stride 4.
- A run: IRN's dictionary of the ensembled maps in 16-bit floats, with `initial` and `graph` at stride 4 and `size`
  (H, W) besides; `high_res` may be left out. The maps come from features at stride 8, so stride 4 loses little.
- SEAM: a dictionary {class: map (H, W)}.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from gwsss_fast.data.label_files import load_pickled_dict
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
        keys = np.asarray(content["keys"], dtype=np.int64).reshape(-1)
        small = {"ensemble": "cam", "initial": "initial", "graph": "graph"}
        maps = {name: _planes(content[key], keys, path) for name, key in small.items() if key in content}
        if "high_res" in content:
            maps["ensemble"] = _planes(content["high_res"], keys, path)
        height, width = _size(content["size"], path) if "size" in content else maps["ensemble"].shape[1:]
        maps = {name: enlarged(planes, (height, width)) for name, planes in maps.items()}
    elif content and all(isinstance(key, (int, np.integer)) for key in content):
        keys = np.array(sorted(content), dtype=np.int64)
        try:
            maps = {"ensemble": _planes(np.stack([np.asarray(content[key]) for key in keys]), keys, path)}
        except ValueError as error:
            raise GwsssError(f"{path}: the maps of its classes differ in shape") from error
    else:
        raise GwsssError(f"{path} holds neither IRN's entries keys and high_res nor SEAM's maps by class number")
    return StoredMaps(keys, maps)


def strided(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps (n, H, W) at stride 4: (n, ceil(H / 4), ceil(W / 4))."""
    height, width = maps.shape[1:]
    return _resized(maps, ((height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1))


def enlarged(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Maps (n, h, w) at the size (H, W); as they are when they have it."""
    return maps if maps.shape[1:] == tuple(size) else _resized(maps, size)


def _resized(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    if not len(maps):
        return np.zeros((0, *size), np.float32)
    planes = torch.as_tensor(np.array(maps, dtype=np.float32))  # a copy: the caller may hold a read-only view
    return interpolate(planes[None], size, mode="bilinear", align_corners=False)[0].numpy()


def _planes(value: Any, keys: NDArray[np.int64], path: str | Path) -> NDArray[np.float32]:
    planes = np.asarray(value, dtype=np.float32)
    if planes.ndim != 3 or len(planes) != len(keys):
        raise GwsssError(f"{path}: maps of shape {planes.shape} do not fit its {len(keys)} classes")
    return planes


def _size(value: Any, path: str | Path) -> tuple[int, int]:
    values = np.asarray(value).reshape(-1).tolist()
    if len(values) != 2 or min(values) < 1:
        raise GwsssError(f"{path}: its size {values} is not a height and a width")
    return int(values[0]), int(values[1])
