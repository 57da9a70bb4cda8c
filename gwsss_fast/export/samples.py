"""The images that an export is compared on and calibrated with, and the inputs that a network wants of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gwsss_fast.data.images import images_below, read_image, read_mask
from gwsss_fast.errors import GwsssError
from gwsss_fast.export.metadata import Metadata
from gwsss_fast.export.runtimes import prepare

MOST_PIXELS = 2**20
"""Larger images are reduced to so many: eager float32 sees them whole."""


@dataclass(frozen=True)
class Sample:
    """An image, and the mask (h, w) that it is scored against, if there is one."""

    name: str
    image: Image.Image
    mask: NDArray[np.uint8] | None = None


def read_sample(name: str, image: Path, mask: Path | None, num_classes: int) -> Sample:
    """Of files. Raises GwsssError for one that cannot be read."""
    found = read_image(image)
    share = (MOST_PIXELS / (found.width * found.height)) ** 0.5
    if share < 1:
        found.thumbnail((max(1, int(found.width * share)), max(1, int(found.height * share))))
    return Sample(name, found, None if mask is None else read_mask(mask, num_classes))


def samples_below(
    folder: str | Path, option: str, most: int, masks: str | Path | None = None, num_classes: int = 0
) -> list[Sample]:
    """The first `most` images in a folder and its sub-folders, each with its mask where `masks` has a PNG of its name.

    Raises GwsssError where there is no image, where none of them has a mask, and for files that cannot be read.
    """
    folder = Path(folder)
    files = {file.relative_to(folder).with_suffix(""): file for file in sorted(images_below(folder))}
    if not files:
        raise GwsssError(f"{option} {folder}: no image there")
    chosen = list(files)[:most]
    found: dict[Path, Path] = {}
    if masks is not None:
        paths = {name: Path(masks) / f"{name}.png" for name in chosen}
        found = {name: path for name, path in paths.items() if path.is_file()}
        if not found:
            raise GwsssError(f"--masks {masks}: none of the images has a mask there, such as {paths[chosen[0]]}")
    return [read_sample(name.as_posix(), files[name], found.get(name), num_classes) for name in chosen]


def network_inputs(
    samples: Sequence[Sample], metadata: Metadata
) -> Iterator[tuple[Tensor, list[NDArray[np.uint8] | None]]]:
    """Inputs of as many images as the network takes at least, one after another, and the masks at their size.

    One sample each, repeated where the network takes no single image; groups of the samples in turn, at the size of the
    first, the last group filled up from the beginning.
    """
    least = metadata.batch[0]
    if metadata.group_size is not None:
        height, width = metadata.fixed_size or samples[0].image.size[::-1]
        count = least * metadata.group_size
        for start in range(0, len(samples), count):
            chosen = [samples[number % len(samples)].image for number in range(start, start + count)]
            images = torch.cat([prepare(image.resize((width, height)), metadata) for image in chosen])
            yield images.unflatten(0, (least, metadata.group_size)), []
        return
    for sample in samples:
        images = prepare(sample.image, metadata)
        height, width = images.shape[-2:]
        mask = sample.mask
        if mask is not None and mask.shape != (height, width):
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        yield images.repeat(least, 1, 1, 1), [mask]
