"""Class activation maps in files that other projects read and write.

- IRN: `ID.npy`, a dictionary with `keys` (n,) 0-based foreground classes, `high_res` (n, H, W) and `cam`, the same at
  a quarter of the size. The maps of a run are this dictionary of the ensemble, in 16-bit floats, with the two readouts
  as further entries `initial` and `graph`.
- SEAM: `ID.npy`, a dictionary {class: map (H, W)}.
- OAA: `ID_CLASS.png`, one grey picture a class, 0..255.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from gwsss_fast.data.images import read_saliency
from gwsss_fast.data.label_files import load_pickled_dict
from gwsss_fast.errors import GwsssError
from gwsss_fast.files import atomic_path
from gwsss_fast.labels.maps import CamSet

LAYOUTS = ("irn", "seam")
READOUTS = ("ensemble", "graph", "initial")


def save_maps(path: str | Path, cams: CamSet, layout: str = "irn", *, readout: str = "ensemble") -> None:
    """Write OUTPUT/cams/ID.npy: IRN's dictionary with both readouts, or SEAM's of one readout, atomically.

    Raises GwsssError for an unknown layout or readout, or when the file cannot be written.
    """
    maps = _readout(cams, readout)
    content: dict[Any, Any]
    if layout == "irn":
        content = {
            "keys": cams.keys.astype(np.int64),
            "cam": _quarter(maps).astype(np.float16),
            "high_res": maps.astype(np.float16),
            "initial": cams.initial.astype(np.float16),
            "graph": cams.graph.astype(np.float16),
        }
    elif layout == "seam":
        content = {int(key): plane.astype(np.float32) for key, plane in zip(cams.keys, maps, strict=True)}
    else:
        raise GwsssError(f"layout is {layout!r}; use one of {', '.join(LAYOUTS)}")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(content, dtype=object), allow_pickle=True)


def load_maps(path: str | Path) -> CamSet:
    """Read maps of IRN's or SEAM's layout as float32; only arrays and plain values are unpickled.

    A file of another project, without `initial` and `graph`, gives its maps for all three. Raises GwsssError
    naming the file when it is missing or not of either layout.
    """
    content = load_pickled_dict(path)
    if "keys" in content and "high_res" in content:
        keys = np.asarray(content["keys"], dtype=np.int64).reshape(-1)
        maps = _planes(content["high_res"])
        initial, graph = (_planes(content[name]) if name in content else maps for name in ("initial", "graph"))
    elif content and all(isinstance(key, (int, np.integer)) for key in content):
        keys = np.array(sorted(content), dtype=np.int64)
        try:
            maps = _planes(np.stack([np.asarray(content[key]) for key in keys]))
        except ValueError as error:
            raise GwsssError(f"{path}: the maps of its classes differ in shape") from error
        initial = graph = maps
    else:
        raise GwsssError(f"{path} holds neither IRN's entries keys and high_res nor SEAM's maps by class number")
    if any(plane.ndim != 3 or len(plane) != len(keys) for plane in (maps, initial, graph)):
        raise GwsssError(f"{path}: maps of shape {maps.shape} do not fit its {len(keys)} classes")
    return CamSet(keys, initial, graph, maps)


def save_oaa(folder: str | Path, name: str, cams: CamSet, *, readout: str = "ensemble") -> list[Path]:
    """Write one grey PNG a class, folder/NAME_CLASS.png, and give their paths."""
    paths = []
    for key, plane in zip(cams.keys, _readout(cams, readout), strict=True):
        paths.append(Path(folder) / f"{name}_{key}.png")
        grey = Image.fromarray((plane.astype(np.float32).clip(0, 1) * 255).round().astype(np.uint8))
        with atomic_path(paths[-1]) as temporary:
            grey.save(temporary, format="PNG")
    return paths


def load_oaa(folder: str | Path, name: str) -> CamSet:
    """Read folder/NAME_CLASS.png, the one set of maps for all three readouts.

    Raises GwsssError when there is none, when one cannot be read, or when they differ in size.
    """
    prefix = f"{name}_"
    folder = Path(folder)
    found = {
        int(path.stem[len(prefix) :]): path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix == ".png" and path.stem.startswith(prefix) and path.stem[len(prefix) :].isdecimal()
    }
    if not found:
        raise GwsssError(f"{folder} holds no maps {prefix}CLASS.png")
    keys = np.array(sorted(found), dtype=np.int64)
    planes = [read_saliency(found[int(key)]) for key in keys]
    if len({plane.shape for plane in planes}) > 1:
        raise GwsssError(f"the maps {prefix}*.png in {folder} differ in size")
    maps = np.stack(planes)
    return CamSet(keys, maps, maps, maps)


def _readout(cams: CamSet, readout: str) -> NDArray[np.float32]:
    if readout not in READOUTS:
        raise GwsssError(f"readout is {readout!r}; use one of {', '.join(READOUTS)}")
    return getattr(cams, readout)


def _planes(value: Any) -> NDArray[np.float32]:
    return np.asarray(value, dtype=np.float32)


def _quarter(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps (n, H, W) at stride 4: (n, ceil(H / 4), ceil(W / 4))."""
    height, width = maps.shape[1:]
    size = ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    if not len(maps):
        return np.zeros((0, *size), np.float32)
    planes = torch.as_tensor(np.array(maps, dtype=np.float32))  # a copy: the caller may hold a read-only view
    return interpolate(planes[None], size, mode="bilinear", align_corners=False)[0].numpy()
