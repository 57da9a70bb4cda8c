"""Splits as torch datasets.

What position p of epoch e holds depends on (seed, e, p) alone: not on the number of workers, on what was drawn
before, or on whether a run was resumed. `set_epoch` may be called while persistent workers live; they see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from gwsss_fast.data.bad_images import AS_DRAWN, REPLACED, substitutes
from gwsss_fast.data.encoded import UNMADE, Encoded, EncodedFiles, Unmade
from gwsss_fast.data.image_cache import ImageCache
from gwsss_fast.data.images import ImageFolder, read_mask
from gwsss_fast.data.records import Split
from gwsss_fast.data.samplers import GroupSampler, PhasedSampler
from gwsss_fast.data.transforms import SegmenterTransform, seeded
from gwsss_fast.errors import GwsssError

_GROUP, _SEGMENTATION, _SUBSTITUTE = 0, 2, 3  # keeps the random streams of the data sets apart
Content = TypeVar("Content")


class GroupDataset(Dataset[dict[str, Tensor]]):
    """Groups of K images, drawn anew each epoch: dict of

    images (K, 3, S, S) float32, labels (K, L) float32, indices (K,) int64 into the split, replaced (K,) int64, see
    `bad_images`. The first image of a group is its anchor. The default collate makes batches (B, K, ...) of them.

    An image that cannot be read is a GwsssError, unless `bad_limit` says how many may be: then another one, not yet
    in the group, takes its place, drawn by (seed, epoch, position) alone.

    With EncodedFiles as its `cache` it has Unmade images, under UNMADE, for DeviceImages to complete.
    """

    def __init__(
        self,
        split: Split,
        sampler: GroupSampler | PhasedSampler,
        transform: Callable[[Image.Image], Tensor],
        seed: int = 0,
        cache: ImageCache | EncodedFiles | None = None,
        bad_limit: int | None = None,
    ) -> None:
        if len(sampler) != len(split):
            raise GwsssError(f"the sampler was made for {len(sampler)} images, but {split.name} has {len(split)}")
        self._split, self._sampler, self.transform, self._seed = split, sampler, transform, seed
        self._cache, self._bad_limit = cache or ImageCache(), bad_limit
        self._labels = torch.from_numpy(split.labels).float()
        # Shared memory, so that living workers see the groups of a new epoch.
        self._groups = torch.from_numpy(sampler.epoch(0)).share_memory_()
        self._epoch = _shared_number()
        self._ahead: tuple[int, Future[np.ndarray]] | None = None

    def __len__(self) -> int:
        """Groups in an epoch."""
        return len(self._groups)

    def set_epoch(self, epoch: int) -> None:
        """Draw the groups of another epoch, or take them when `prepare_epoch` has."""
        if epoch == int(self._epoch):
            return
        ahead, self._ahead = self._ahead, None
        drawn = ahead[1].result() if ahead is not None else None  # always: a sampler serves one thread at a time
        groups = drawn if drawn is not None and ahead is not None and ahead[0] == epoch else self._sampler.epoch(epoch)
        self._groups.copy_(torch.from_numpy(groups))
        self._epoch.fill_(epoch)

    def prepare_epoch(self, epoch: int) -> None:
        """Draw the groups of an epoch in a thread, while another one is worked on.

        Call it when worker processes have started: they are not to be forked beside a thread at work.
        """
        if self._ahead is None:
            pool = ThreadPoolExecutor(1, "groups")
            self._ahead = epoch, pool.submit(self._sampler.epoch, epoch)
            pool.shutdown(wait=False)  # the thread ends with its work

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self._item(position, self._cache)

    def decoded(self, position: int) -> dict[str, Tensor]:
        """The item with its images decoded and transformed here."""
        return self._item(position, ImageCache())

    def _item(self, position: int, source: ImageCache | EncodedFiles) -> dict[str, Any]:
        def read(index: int) -> Image.Image | Encoded:
            return source.read(self._split.records[index])

        indices = self._groups[position].clone()
        images, replaced = [], torch.full_like(indices, AS_DRAWN)
        for place, index in enumerate(indices.tolist()):
            key = (self._seed, _SUBSTITUTE, int(self._epoch), position, place)
            used, image = _readable(self._split, read, index, set(indices.tolist()), key, self._bad_limit)
            images.append(image)
            if used != index:
                indices[place], replaced[place] = used, index
        encoded = [image for image in images if isinstance(image, Encoded)]
        made: dict[str, Any]
        with seeded(self._seed, _GROUP, int(self._epoch), position):
            if encoded:
                drawn = [self.transform.draw(image.size) for image in encoded]  # type: ignore[attr-defined]
                made = {UNMADE: Unmade(position, encoded, drawn, group=True)}
            else:
                made = {"images": torch.stack([self.transform(image) for image in images])}  # type: ignore[arg-type]
        return {**made, "labels": self._labels[indices], "indices": indices, REPLACED: replaced}


class SegmentationDataset(Dataset[dict[str, Tensor]]):
    """Images with masks: dict of image (3, S, S) float32, mask (S, S) int64 with 255 = ignore, index () int64,
    replaced () int64, see `bad_images`.

    `mask_paths` are the masks to learn from: a folder of ID.png, a mapping from id to file, None for the split's own.
    Raises GwsssError when one is missing; when reading, if one holds illegal values or another size than its image.
    `bad_limit`: as in GroupDataset, for an image or mask that cannot be used. `cache`: as there, too.
    """

    def __init__(
        self,
        split: Split,
        transform: SegmenterTransform,
        seed: int = 0,
        mask_paths: Mapping[str, str | Path] | str | Path | None = None,
        cache: ImageCache | EncodedFiles | None = None,
        bad_limit: int | None = None,
    ) -> None:
        self._split, self.transform, self._seed = split, transform, seed
        self._masks = _find_masks(split, mask_paths)
        self._cache, self._bad_limit = cache or ImageCache(), bad_limit
        self._epoch = _shared_number()

    def __len__(self) -> int:
        return len(self._split)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that augmentations are drawn for."""
        self._epoch.fill_(epoch)

    def prepare_epoch(self, epoch: int) -> None:
        """Nothing is drawn ahead."""

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self._item(position, self._cache)

    def decoded(self, position: int) -> dict[str, Tensor]:
        """The item with its image decoded and transformed here."""
        return self._item(position, ImageCache())

    def _item(self, position: int, source: ImageCache | EncodedFiles) -> dict[str, Any]:
        key = (self._seed, _SUBSTITUTE, int(self._epoch), position)
        read = partial(self._read, source)
        index, (image, mask) = _readable(self._split, read, position, {position}, key, self._bad_limit)
        made: dict[str, Any]
        with seeded(self._seed, _SEGMENTATION, int(self._epoch), position):
            if isinstance(image, Encoded):
                drawn = self.transform.draw(image.size)
                made = {UNMADE: Unmade(position, [image], [drawn], group=False)}
                made["mask"] = self.transform.cut_mask(mask, drawn)
            else:
                made = dict(zip(("image", "mask"), self.transform(image, mask), strict=True))
        replaced = torch.tensor(AS_DRAWN if index == position else position)
        return {**made, "index": torch.tensor(index), REPLACED: replaced}

    def _read(self, source: ImageCache | EncodedFiles, index: int) -> tuple[Image.Image | Encoded, np.ndarray]:
        record, path = self._split.records[index], self._masks[index]
        image = source.read(record)
        with record.located():
            mask = read_mask(path, len(self._split.classes))
            if mask.shape != image.size[::-1]:
                raise GwsssError(
                    f"mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels, but its image {record.image} has "
                    f"{image.size[0]}x{image.size[1]}"
                )
        return image, mask


def _readable(
    split: Split, read: Callable[[int], Content], index: int, taken: set[int], key: tuple[int, ...], limit: int | None
) -> tuple[int, Content]:
    """read(index), or of the first substitute that can be read and is not `taken`; with its index.

    Raises the GwsssError of `read` when the limit is None, and one when more images than that cannot be read.
    """
    try:
        return index, read(index)
    except GwsssError as error:
        if limit is None:
            raise
        last, failed = error, 1
    for other in substitutes(split.labels, index, key):
        if other in taken:
            continue
        if failed > limit:
            break
        try:
            found = read(other)
        except GwsssError as error:
            last, failed = error, failed + 1
            continue
        return other, found
    raise GwsssError(f"no usable image: none of {failed} drawn for one place can be read; {last}")


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
