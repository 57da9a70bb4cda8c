"""Small folders of VOC layout for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def add_image(root: Path, name: str, size: tuple[int, int] = (8, 6)) -> Path:
    """A plain JPEG, its colour made from its name."""
    path = root / "JPEGImages" / f"{name}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(np.frombuffer(name.encode()[-3:], np.uint8).tolist())
    Image.new("RGB", size, colour).save(path)
    return path


def add_mask(root: Path, name: str, values: list[list[int]], folder: str = "SegmentationClass") -> Path:
    """A palette PNG."""
    path = root / folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.array(values, np.uint8), mode="P")
    mask.putpalette(list(range(256)) * 3)
    mask.save(path)
    return path


def write_list(root: Path, name: str, *lines: str) -> Path:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def make_voc(root: Path, *names: str) -> Path:
    """Images without any list, labels or masks; three classes a, b, c."""
    for name in names:
        add_image(root, name)
    (root / "classes.txt").write_text("background\na\nb\nc\n")
    return root
