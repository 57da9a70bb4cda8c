"""Class activation maps in files that other projects read and write.

- A run, IRN and SEAM: `ID.npy`, see `gwsss_fast.data.map_files`.
- OAA: `ID_CLASS.png`, one grey picture a class, 0..255; before its own last step `INDEX_CLASS.png`, small, where INDEX
  is the number from 0 of the image's line in the list that was trained on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gwsss_fast.data.images import read_saliency, read_size
from gwsss_fast.data.lists import read_list
from gwsss_fast.data.map_files import enlarged, read_map_file, strided
from gwsss_fast.data.records import Record
from gwsss_fast.errors import GwsssError
from gwsss_fast.files import atomic_path
from gwsss_fast.labels.maps import CamSet

LAYOUTS = ("run", "irn", "seam")
READOUTS = ("ensemble", "graph", "initial")


def save_maps(
    path: str | Path, cams: CamSet, layout: str = "run", *, readout: str = "ensemble", high_res: bool = True
) -> None:
    """Write ID.npy atomically: a run's own dictionary with both readouts, or IRN's or SEAM's of one readout.

    high_res: a run's maps at the image's size too, where `cams` have that size; everything else in that dictionary is
    at stride 4. IRN's holds what its own programs write: tensors `keys` and `cam`, and the array `high_res`, in 32-bit
    floats.

    Raises GwsssError for an unknown layout or readout, or when the file cannot be written.
    """
    maps = _readout(cams, readout)
    small = strided if cams.size is None else (lambda planes: planes)
    if layout != "run" and cams.size is not None:
        maps = enlarged(maps, cams.size)
    content: dict[Any, Any]
    if layout == "irn":
        content = {
            "keys": torch.from_numpy(cams.keys.astype(np.int64)),
            "cam": torch.from_numpy(strided(maps)),
            "high_res": maps.astype(np.float32),
        }
    elif layout == "run":
        content = {
            "keys": cams.keys.astype(np.int64),
            "size": np.array(cams.size or maps.shape[1:], dtype=np.int64),
            "cam": small(maps).astype(np.float16),
            "initial": small(cams.initial).astype(np.float16),
            "graph": small(cams.graph).astype(np.float16),
        }
        if high_res and cams.size is None:
            content["high_res"] = maps.astype(np.float16)
    elif layout == "seam":
        content = {int(key): plane.astype(np.float32) for key, plane in zip(cams.keys, maps, strict=True)}
    else:
        raise GwsssError(f"layout is {layout!r}; use one of {', '.join(LAYOUTS)}")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(content, dtype=object), allow_pickle=True)


def open_maps(
    folder: str | Path, records: Sequence[Record], listed: str | Path | None = None
) -> Callable[[Record], CamSet]:
    """A reader of the maps in `folder`: `ID.npy` of a run, IRN or SEAM, or OAA's `ID_CLASS.png`.

    listed: the list whose lines OAA's `INDEX_CLASS.png` counts. OAA writes no picture of a class that it does not find:
    an image without any has no maps. Its pictures may be of any size. Raises GwsssError when the folder holds no maps
    of these records, lacks the `.npy` file of one, or holds pictures that do not go with the list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GwsssError(f"folder of maps {folder} does not exist")
    files = [entry.name for entry in os.scandir(folder)]
    if listed is not None:
        return partial(_oaa_of, _by_line(folder, files, Path(listed), records))
    dictionaries = {name.removesuffix(".npy") for name in files if name.endswith(".npy")}
    missing = [record.id for record in records if record.id not in dictionaries]
    if len(missing) < len(records):
        if missing:
            path = folder / f"{missing[0]}.npy"
            raise GwsssError(f"maps {path} do not exist ({len(missing)} of {len(records)} images)")
        return lambda record: load_maps(folder / f"{record.id}.npy")
    pictures = _pictures(folder, files)
    if not any(record.id in pictures for record in records):
        first = records[0].id if records else "ID"
        hint = ""
        if pictures and all(name.isdecimal() for name in pictures):
            hint = (
                "; for INDEX_CLASS.png, as OAA's training writes them, name the list: --pseudo.maps-list, --cams-list"
            )
        raise GwsssError(f"{folder} holds no maps of these images, neither {first}.npy nor {first}_CLASS.png{hint}")
    return partial(_oaa_of, pictures)


def _by_line(folder: Path, files: Iterable[str], path: Path, records: Sequence[Record]) -> dict[str, dict[int, Path]]:
    """ID -> class -> path, of pictures named by the numbers of lines from 0.

    OAA writes pictures of an image's own classes alone, by which the wrong list, or order, is seen.
    """
    entries, known = {entry.line - 1: entry for entry in read_list(path)}, {record.id: record for record in records}
    found = {}
    for name, planes in _pictures(folder, files).items():
        entry = entries.get(int(name)) if name.isdecimal() else None
        example = next(iter(planes.values()))
        if entry is None:
            raise GwsssError(f"{example} is of no line of {path}; name the list that OAA was trained with")
        labels = entry.labels
        if labels is None and entry.id in known:
            labels = known[entry.id].labels
        if labels and not planes.keys() <= set(labels):
            raise GwsssError(
                f"{path}, line {entry.line}: image {entry.id} has no class {min(planes.keys() - set(labels))}, but "
                f"there is a map of it, {example}; name the list that OAA was trained with, in its order"
            )
        found[entry.id] = planes
    if not any(record.id in found for record in records):
        raise GwsssError(f"{folder} holds no map INDEX_CLASS.png of these images by the lines of {path}")
    return found


def _oaa_of(pictures: dict[str, dict[int, Path]], record: Record) -> CamSet:
    with record.located():
        width, height = read_size(record.image)
    found = pictures.get(record.id, {})
    keys = np.array(sorted(found), dtype=np.int64)
    planes = [enlarged(read_saliency(found[int(key)])[None], (height, width))[0] for key in keys]
    maps = np.stack(planes) if planes else np.zeros((0, height, width), np.float32)
    return CamSet(keys, maps, maps, maps)


def _pictures(folder: Path, files: Iterable[str]) -> dict[str, dict[int, Path]]:
    """ID -> class -> path of OAA's pictures."""
    found: dict[str, dict[int, Path]] = {}
    for name in files:
        stem, _, label = name.removesuffix(".png").rpartition("_")
        if name.endswith(".png") and stem and label.isdecimal():
            found.setdefault(stem, {})[int(label)] = folder / name
    return found


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


def _readout(cams: CamSet, readout: str) -> NDArray[np.float32]:
    if readout not in READOUTS:
        raise GwsssError(f"readout is {readout!r}; use one of {', '.join(READOUTS)}")
    return getattr(cams, readout)
