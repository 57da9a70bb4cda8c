"""From decoded images to network input, on torchvision's transforms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

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

Drawn = tuple[dict[str, Any] | None, ...]
"""What was drawn for one image: the parameters of each step of a transform, None for a step that is left out."""


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


class _Steps:
    """torchvision's transforms one after the other as in v2.Compose, but what they draw is drawn beforehand."""

    def __init__(self, steps: list[v2.Transform]) -> None:
        self._steps = steps

    def draw(self, size: tuple[int, int]) -> Drawn:
        """What v2.Compose would draw for an image of `size` (width, height), in the same order; the steps after the
        first do not look at the size."""
        blank = [torch.empty((3, size[1], size[0]), device="meta")]
        return tuple(
            None if isinstance(step, v2.RandomHorizontalFlip) and torch.rand(1) >= step.p else step.make_params(blank)
            for step in self._steps
        )

    def apply(self, image: Any, drawn: Drawn) -> Any:
        """`image`, a PIL image, tensor or mask, after all steps."""
        for step, parameters in zip(self._steps, drawn, strict=True):
            image = image if parameters is None else step.transform(image, parameters)
        return image


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
        steps: list[v2.Transform] = []
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
        self._steps = _Steps(steps)

    def __call__(self, image: Image.Image) -> Tensor:
        return normalise(self.cut(image, self.draw(image.size)))

    def draw(self, size: tuple[int, int]) -> Drawn:
        """What is random, for an image of `size` (width, height)."""
        return self._steps.draw(size)

    def cut(self, image: Image.Image | Tensor, drawn: Drawn) -> Tensor:
        """A PIL image or pixels (3, H, W) uint8 on any device, transformed as drawn: (3, size, size) uint8."""
        done = self._steps.apply(image, drawn)
        return done if isinstance(done, Tensor) else functional.to_image(done).as_subclass(Tensor)


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
        steps: list[v2.Transform] = [v2.RandomCrop(crop, pad_if_needed=True, fill=fill)]
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if color_jitter > 0:
            steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        self._steps = _Steps(steps)

    def __call__(self, image: Image.Image, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        if mask.shape != image.size[::-1]:
            raise GwsssError(f"a mask of {mask.shape[1]}x{mask.shape[0]} does not fit its image of {_size(image)}")
        drawn = self.draw(image.size)
        return normalise(self.cut(image, drawn)), self.cut_mask(mask, drawn)

    def draw(self, size: tuple[int, int]) -> Drawn:
        """What is random, for an image of `size` (width, height); first, the size to give it."""
        low, high = self._scales
        factor = low + (high - low) * torch.rand(()).item()
        scaled = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
        return ({"size": scaled}, *self._steps.draw(scaled))

    def cut(self, image: Image.Image | Tensor, drawn: Drawn) -> Tensor:
        """A PIL image or pixels (3, H, W) uint8 on any device, transformed as drawn: (3, crop, crop) uint8."""
        width, height = _scaled(drawn)
        if isinstance(image, Image.Image):
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            image = functional.to_image(image)
        elif image.shape[1:] != (height, width):
            image = functional.resize(image, [height, width], antialias=True)
        return self._steps.apply(tv_tensors.Image(image), drawn[1:]).as_subclass(Tensor)

    def cut_mask(self, mask: np.ndarray, drawn: Drawn) -> Tensor:
        """A mask (H, W) uint8 as its image: (crop, crop) int64."""
        width, height = _scaled(drawn)
        if mask.shape != (height, width):
            # Pillow on both: torchvision's nearest neighbour for masks is half a pixel off from its bilinear images.
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        labels = self._steps.apply(tv_tensors.Mask(torch.from_numpy(mask.copy())), drawn[1:])
        return labels.as_subclass(Tensor).long()


def _scaled(drawn: Drawn) -> tuple[int, int]:
    assert drawn[0] is not None
    return drawn[0]["size"]


def _check_size(size: int) -> None:
    if size < 1:
        raise GwsssError(f"the size of network input must be positive, got {size}")


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
