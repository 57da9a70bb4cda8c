"""Class activation maps in files that other projects read and write.

- IRN and SEAM: `ID.npy`, see `gwsss_fast.data.map_files`. The maps of a run are IRN's dictionary with more entries.
- OAA: `ID_CLASS.png`, one grey picture a class, 0..255.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gwsss_fast.data.images import read_saliency
from gwsss_fast.data.map_files import read_map_file, strided
from gwsss_fast.errors import GwsssError
from gwsss_fast.files import atomic_path
from gwsss_fast.labels.maps import CamSet

LAYOUTS = ("irn", "seam")
READOUTS = ("ensemble", "graph", "initial")


def save_maps(
    path: str | Path, cams: CamSet, layout: str = "irn", *, readout: str = "ensemble", high_res: bool = True
) -> None:
    """Write OUTPUT/cams/ID.npy: IRN's dictionary with both readouts, or SEAM's of one readout, atomically.

    high_res: IRN's maps at the image's size too; everything else in that dictionary is at stride 4.

    Raises GwsssError for an unknown layout or readout, or when the file cannot be written.
    """
    maps = _readout(cams, readout)
    content: dict[Any, Any]
    if layout == "irn":
        content = {
            "keys": cams.keys.astype(np.int64),
            "size": np.array(maps.shape[1:], dtype=np.int64),
            "cam": strided(maps).astype(np.float16),
            "initial": strided(cams.initial).astype(np.float16),
            "graph": strided(cams.graph).astype(np.float16),
        }
        if high_res:
            content["high_res"] = maps.astype(np.float16)
    elif layout == "seam":
        content = {int(key): plane.astype(np.float32) for key, plane in zip(cams.keys, maps, strict=True)}
    else:
        raise GwsssError(f"layout is {layout!r}; use one of {', '.join(LAYOUTS)}")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(content, dtype=object), allow_pickle=True)


def load_maps(path: str | Path) -> CamSet:
    """Read maps of IRN's or SEAM's layout as float32 at the image's size; only arrays and plain values are unpickled.

    A file of another project, without `initial` and `graph`, gives its maps for all three. Raises GwsssError
    naming the file when it is missing or not of either layout.
    """
    stored = read_map_file(path)
    ensemble = stored.maps["ensemble"]
    initial, graph = (stored.maps.get(name, ensemble) for name in ("initial", "graph"))
    return CamSet(stored.keys, initial, graph, ensemble)


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
