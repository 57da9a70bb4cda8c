"""Splits as torch datasets.

What position p of epoch e holds depends on (seed, e, p) alone: not on the number of workers, on what was drawn
before, or on whether a run was resumed. `set_epoch` may be called while persistent workers live; they see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gwsss_fast.data.images import ImageFolder, read_image, read_mask
from gwsss_fast.data.records import Record, Split
from gwsss_fast.data.samplers import GroupSampler, PhasedSampler
from gwsss_fast.data.transforms import seeded
from gwsss_fast.errors import GwsssError

_GROUP, _IMAGE, _SEGMENTATION = range(3)  # keeps the random streams of the three data sets apart


class ImageCache:
    """Decoded images, kept until `megabytes` are used up; what no longer fits is decoded each time.

    Each worker process has its own, unless `preload` filled it before they started. 0 megabytes keep nothing.
    """

    def __init__(self, megabytes: float = 0) -> None:
        self._left = int(megabytes * 2**20)
        self._pixels: dict[Path, np.ndarray] = {}

    def read(self, record: Record) -> Image.Image:
        """The image of `record` as RGB. Raises GwsssError as `read_image` does, with list and line."""
        pixels = self._pixels.get(record.image)
        if pixels is not None:
            return Image.fromarray(pixels)
        with record.located():
            image = read_image(record.image)
        if 3 * image.width * image.height <= self._left:
            pixels = self._pixels[record.image] = np.asarray(image)
            self._left -= pixels.nbytes
        return image

    def preload(self, records: Sequence[Record]) -> int:
        """Decode images until the cache is full. Returns how many of `records` are in it."""
        for record in records:
            if self._left <= 0:
                break
            self.read(record)
        return sum(record.image in self._pixels for record in records)


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Single images: (3, S, S) float32 and labels (L,) float32, each image once an epoch."""

    def __init__(
        self, split: Split, transform: Callable[[Image.Image], Tensor], seed: int = 0, cache: ImageCache | None = None
    ) -> None:
        self._split, self._transform, self._seed = split, transform, seed
        self._cache = cache or ImageCache()
        self._labels = torch.from_numpy(split.labels).float()
        self._epoch = _shared_number()

    def __len__(self) -> int:
        return len(self._split)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that augmentations are drawn for."""
        self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        image = self._cache.read(self._split.records[position])
        with seeded(self._seed, _IMAGE, int(self._epoch), position):
            return self._transform(image), self._labels[position]


class GroupDataset(Dataset[dict[str, Tensor]]):
    """Groups of K images, drawn anew each epoch: dict of

    images (K, 3, S, S) float32, labels (K, L) float32, indices (K,) int64 into the split. The first image of a group
    is its anchor. The default collate makes batches (B, K, ...) of them.
    """

    def __init__(
        self,
        split: Split,
        sampler: GroupSampler | PhasedSampler,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        cache: ImageCache | None = None,
    ) -> None:
        if len(sampler) != len(split):
            raise GwsssError(f"the sampler was made for {len(sampler)} images, but {split.name} has {len(split)}")
        self._split, self._sampler, self._transform, self._seed = split, sampler, transform, seed
        self._cache = cache or ImageCache()
        self._labels = torch.from_numpy(split.labels).float()
        # Shared memory, so that living workers see the groups of a new epoch.
        self._groups = torch.from_numpy(sampler.epoch(0)).share_memory_()
        self._epoch = _shared_number()

    def __len__(self) -> int:
        """Groups in an epoch."""
        return len(self._groups)

    def set_epoch(self, epoch: int) -> None:
        """Draw the groups of another epoch."""
        if epoch != int(self._epoch):
            self._groups.copy_(torch.from_numpy(self._sampler.epoch(epoch)))
            self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        indices = self._groups[position].clone()
        images = [self._cache.read(self._split.records[index]) for index in indices.tolist()]
        with seeded(self._seed, _GROUP, int(self._epoch), position):
            pixels = torch.stack([self._transform(image) for image in images])
        return {"images": pixels, "labels": self._labels[indices], "indices": indices}


class SegmentationDataset(Dataset[dict[str, Tensor]]):
    """Images with masks: dict of image (3, S, S) float32, mask (S, S) int64 with 255 = ignore, index () int64.

    `mask_paths` are the masks to learn from: a folder of ID.png, a mapping from id to file, None for the split's own.
    Raises GwsssError when one is missing; when reading, if one holds illegal values or another size than its image.
    """

    def __init__(
        self,
        split: Split,
        transform: Callable[[Image.Image, np.ndarray], tuple[Tensor, Tensor]],
        seed: int = 0,
        mask_paths: Mapping[str, str | Path] | str | Path | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        self._split, self._transform, self._seed = split, transform, seed
        self._masks = _find_masks(split, mask_paths)
        self._cache = cache or ImageCache()
        self._epoch = _shared_number()

    def __len__(self) -> int:
        return len(self._split)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that augmentations are drawn for."""
        self._epoch.fill_(epoch)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        record, path = self._split.records[position], self._masks[position]
        image = self._cache.read(record)
        with record.located():
            mask = read_mask(path, len(self._split.classes))
            if mask.shape != image.size[::-1]:
                raise GwsssError(
                    f"mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels, but its image {record.image} has "
                    f"{image.width}x{image.height}"
                )
        with seeded(self._seed, _SEGMENTATION, int(self._epoch), position):
            pixels, target = self._transform(image, mask)
        return {"image": pixels, "mask": target, "index": torch.tensor(position)}


def _find_masks(split: Split, source: Mapping[str, str | Path] | str | Path | None) -> list[Path]:
    if isinstance(source, (str, Path)):
        folder = ImageFolder(Path(source), (".png",))
        found = [folder.find(record.id) for record in split.records]
        where = f"in {source}"
    elif source is None:
        found = [record.mask for record in split.records]
        where = "of its own"
    else:
        found = [Path(source[record.id]) if record.id in source else None for record in split.records]
        where = "among those given"
    masks = [mask for mask in found if mask is not None]
    if len(masks) < len(found):
        lacking = split.records[found.index(None)].id
        raise GwsssError(
            f"image {lacking} of the split {split.name} has no mask {where} ({len(found) - len(masks)} without)"
        )
    return masks


def _shared_number() -> Tensor:
    """An epoch number that worker processes see change."""
    return torch.zeros((), dtype=torch.int64).share_memory_()
