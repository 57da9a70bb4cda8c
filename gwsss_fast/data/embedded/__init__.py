"""The embedded data set: small invented scenes in VOC layout, drawn once into a cache folder.

Eight classes of things made of a telling part and a larger remainder that takes a comparison of images to recognise
(see `shapes`). Everything follows from the seed; train and val share no thing and no background.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from gwsss_fast.data.embedded.painting import render
from gwsss_fast.data.embedded.planning import plan_split
from gwsss_fast.data.embedded.scenes import Scene
from gwsss_fast.data.embedded.shapes import THINGS
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.errors import GwsssError
from gwsss_fast.files import cache_folder

VERSION = 2
"""Part of the folder's name: raise it whenever the pictures change."""

CLASSES = tuple(thing.name for thing in THINGS)
"""Foreground classes in the order of their numbers."""

_FOLDERS = ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "Saliency", "ImageSets/Segmentation")
_RECORD = "embedded.json"  # written last: a folder without it is not a finished data set


def build_embedded(
    cache: Path | None = None, *, seed: int = 0, train: int = 400, val: int = 120, size: int = 128
) -> Path:
    """Folder of the embedded data set in VOC layout; generated on the first call, in about 15 s.

    `train` and `val` are numbers of images, `size` is the typical side in pixels. The work is done in a temporary
    folder that is renamed at the end: a failure leaves nothing, and two processes may build the same set at once.
    Raises GwsssError on impossible parameters or when the cache cannot be written.
    """
    if seed < 0 or train < 1 or val < 1 or not 64 <= size <= 512:
        raise GwsssError(
            f"embedded data set: seed={seed}, train={train}, val={val}, size={size} will not do; "
            "use seed >= 0, train and val >= 1, 64 <= size <= 512"
        )
    cache = cache_folder() if cache is None else Path(cache)
    parameters = {"version": VERSION, "seed": seed, "train": train, "val": val, "size": size}
    root = cache / f"embedded-v{VERSION}-seed{seed}-train{train}-val{val}-size{size}"
    if (root / _RECORD).is_file():
        return root
    if root.exists():
        raise GwsssError(f"{root} is not a complete embedded data set; delete the folder and run again")
    temporary: Path | None = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=cache))
        content = temporary / root.name  # mkdtemp's folder is private, the one within has the user's usual permissions
        _write(content, parameters)
        _publish(content, root)
    except OSError as error:
        reason = error.strerror or str(error)
        raise GwsssError(
            f"cannot write the embedded data set to {cache}: {reason}; free space or set GWSSS_CACHE"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return root


def _publish(content: Path, root: Path) -> None:
    """Rename into place. Losing the race to another builder is fine: it wrote the same files."""
    try:
        os.rename(content, root)
    except OSError:
        if not (root / _RECORD).is_file():
            raise


def _write(root: Path, parameters: dict[str, int]) -> None:
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True)
    labels: dict[str, np.ndarray] = {}
    for split in ("train", "val"):
        scenes = plan_split(split, parameters[split], parameters["seed"], parameters["size"])
        names = [f"{split}_{number:05d}" for number in range(1, len(scenes) + 1)]
        for name, scene in zip(names, scenes, strict=True):
            labels[name] = _write_scene(root, name, scene)
        lists = root / "ImageSets" / "Segmentation"
        bare = "".join(f"{name}\n" for name in names)
        for list_name in ("train", "train_aug") if split == "train" else ("val",):
            (lists / f"{list_name}.txt").write_text(bare, encoding="utf-8")
        rows = (" ".join([name, *map(str, np.flatnonzero(labels[name]))]) for name in names)
        (lists / f"{split}_cls.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    (root / "classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n", encoding="utf-8")
    np.save(root / "cls_labels.npy", np.array(labels, dtype=object), allow_pickle=True)
    (root / _RECORD).write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")


def _write_scene(root: Path, name: str, scene: Scene) -> np.ndarray:
    """Write the image, its masks and its saliency map; give its label vector."""
    image, mask, saliency = render(scene)
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=92, subsampling=0)
    palette = Image.fromarray(mask)
    palette.putpalette(voc_palette().tobytes())  # turns the grey picture into a palette one
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        palette.save(root / folder / f"{name}.png")
    Image.fromarray(saliency).save(root / "Saliency" / f"{name}.png")
    vector = np.zeros(len(CLASSES), np.float32)
    vector[[value - 1 for value in np.unique(mask) if 0 < value < 255]] = 1
    return vector
