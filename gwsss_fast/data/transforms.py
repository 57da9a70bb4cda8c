"""From decoded images to network input, on torchvision's transforms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from gwsss_fast.data.images import IGNORE
from gwsss_fast.errors import GwsssError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1
STD = (0.229, 0.224, 0.225)

_MEAN_COLOUR = [round(255 * value) for value in MEAN]


def normalise(image: np.ndarray | Image.Image | Tensor) -> Tensor:
    """Network input (3, H, W) float32 from a PIL image, an array (H, W, 3) uint8 or a tensor (3, H, W) uint8."""
    if isinstance(image, np.ndarray):
        image = torch.tensor(image).permute(2, 0, 1)  # a copy: arrays of PIL images are read-only
    tensor = image if isinstance(image, Tensor) else functional.to_image(image)
    return functional.normalize(functional.to_dtype(tensor.as_subclass(Tensor), scale=True), [*MEAN], [*STD])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Draw torch's CPU random numbers from `key` inside the block, and leave the generator as it was.

    Transforms have no generator argument, and `torch.manual_seed` would seed GPUs as well.
    """
    generator = torch.default_generator
    state = generator.get_state()
    try:
        generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        yield
    finally:
        generator.set_state(state)


class ClassifierTransform:
    """A PIL image to a normalised training input (3, size, size).

    `crop` takes a random part of the image, `scale` of its area, and resizes it; `squash` resizes the whole image.
    Then a horizontal flip with probability one half and, when above 0, jitter of brightness, contrast and saturation.
    Raises GwsssError for a size below 1 or a scale outside of 0 < low <= high <= 1.
    """

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.5, 1.0),
        flip: bool = True,
        color_jitter: float = 0.0,
        mode: Literal["crop", "squash"] = "crop",
    ) -> None:
        _check_size(size)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise GwsssError(
                f"scale must be 0 < low <= high <= 1, the share of the image that a crop keeps; got {scale}"
            )
        steps: list[torch.nn.Module] = []
        if mode == "crop":
            steps.append(v2.RandomResizedCrop(size, scale=scale, antialias=True))
        elif mode == "squash":
            steps.append(v2.Resize((size, size), antialias=True))
        else:
            raise GwsssError(f"unknown mode {mode!r} of the classifier's transform; choose crop or squash")
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if color_jitter > 0:
            steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        self._steps = v2.Compose(steps)

    def __call__(self, image: Image.Image) -> Tensor:
        return normalise(self._steps(image))


class SquareTransform:
    """A PIL image to a normalised input (3, size, size) for evaluation: the whole image, resized, nothing random."""

    def __init__(self, size: int = 224) -> None:
        _check_size(size)
        self._resize = v2.Resize((size, size), antialias=True)

    def __call__(self, image: Image.Image) -> Tensor:
        return normalise(self._resize(image))


class SegmenterTransform:
    """A PIL image and its mask (H, W) uint8 to a training pair (3, crop, crop) float32 and (crop, crop) int64.

    Both are resized by a factor drawn from `scales`, cropped at random and flipped with probability one half; the
    image's brightness, contrast and saturation are jittered where `color_jitter` is above 0. Where the image is too
    small it is padded with the mean colour, and the mask with 255.
    Raises GwsssError for a crop below 1, scales that are not 0 < low <= high, or a mask of another size.
    """

    def __init__(
        self,
        crop: int = 321,
        scales: tuple[float, float] = (0.5, 1.5),
        flip: bool = True,
        color_jitter: float = 0.0,
    ) -> None:
        _check_size(crop)
        if not 0 < scales[0] <= scales[1]:
            raise GwsssError(f"scales must be 0 < low <= high, got {scales}")
        self._scales = scales
        fill = {tv_tensors.Image: _MEAN_COLOUR, tv_tensors.Mask: IGNORE}
        steps: list[torch.nn.Module] = [v2.RandomCrop(crop, pad_if_needed=True, fill=fill)]
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if color_jitter > 0:
            steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        self._steps = v2.Compose(steps)

    def __call__(self, image: Image.Image, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        if mask.shape != image.size[::-1]:
            raise GwsssError(f"a mask of {mask.shape[1]}x{mask.shape[0]} does not fit its image of {_size(image)}")
        low, high = self._scales
        factor = low + (high - low) * torch.rand(()).item()
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        if size != image.size:
            # Pillow on both: torchvision's nearest neighbour for masks is half a pixel off from its bilinear images.
            image = image.resize(size, Image.Resampling.BILINEAR)
            mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        pixels, labels = self._steps(functional.to_image(image), tv_tensors.Mask(torch.from_numpy(mask.copy())))
        return normalise(pixels), labels.as_subclass(Tensor).long()


def _check_size(size: int) -> None:
    if size < 1:
        raise GwsssError(f"the size of network input must be positive, got {size}")


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
