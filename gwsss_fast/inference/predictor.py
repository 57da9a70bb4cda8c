"""`gwsss_fast.Predictor`: images in, masks and objects out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gwsss_fast.data.images import read_upright
from gwsss_fast.errors import GwsssError
from gwsss_fast.inference.results import Prediction, Tally
from gwsss_fast.inference.segmenters import Segmenter, from_module, open_segmenter
from gwsss_fast.inference.tiles import blended
from gwsss_fast.labels.crf import crf_preset, refine_images
from gwsss_fast.training.precision import choose_device, set_threads

Picture: TypeAlias = "str | Path | Image.Image | NDArray[np.uint8]"

WHOLE_PIXELS = 2**21
"""Larger images are looked at in windows, if nothing else is asked for."""
TILE, SMALLEST_TILE = 1024, 32
GPU_BATCH = 8
VALUES_HELD = 2**26
"""Probabilities that may wait for the CRF, which works on several images side by side: 256 MiB."""


class Predictor:
    """Segments images with a trained network.

    Args:
        model: a file: a checkpoint of a run's stage 2 (RUN/segmenter/last.pt), or a segmenter exported to ONNX, to a
            program of torch.export or AOTInductor, or to an engine of TensorRT. Or a DeepLabV2 or another module from
            normalised images to logits, with `classes`.
        device: auto, cpu, cuda or cuda:1.
        precision: auto, fp32, bf16 or fp16; auto is bf16 where the processor has it, and on a CPU only if it gives
            99.5 % of the pixels of the first four images the label that fp32 gives them. An exported file has its own.
        scales: sizes at which an image is seen, probabilities are averaged; None = as the run was evaluated, or 1.
        flip: see the mirror image too; None = as the run was evaluated, or not.
        crf: dense CRF preset that refines the probabilities (of each window, where there are several).
        tile: side of the windows through which larger images are seen; 0 = never; None = 1024 for images of more than
            2 megapixels.
        batch: images of one size that go through the network together; None = 8 on a GPU, 1 on a CPU.
        threads: CPU threads of the whole process; 0 = leave them.
        classes: names for a module, without the background.

    `predictor(images)` gives one Prediction for each image. Attributes: classes, device, precision, scales, flip, crf.
    Raises GwsssError for a file that holds no segmenter and for bad options.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        *,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        crf: str | None = None,
        tile: int | None = None,
        batch: int | None = None,
        threads: int = 0,
        classes: Sequence[str] | None = None,
    ) -> None:
        if scales is not None and not (scales and min(scales) > 0):
            raise GwsssError(f"scales {tuple(scales)}: give at least one, each above 0")
        if tile is not None and tile != 0 and tile < SMALLEST_TILE:
            raise GwsssError(f"tile {tile}: give at least {SMALLEST_TILE} pixels, or 0 for none")
        if batch is not None and batch < 1:
            raise GwsssError(f"batch {batch}: give at least 1")
        if crf is not None:
            crf_preset(crf)
        set_threads(threads)
        if isinstance(model, torch.nn.Module):
            if classes is None:
                raise GwsssError("a module does not know its classes; pass classes=[...], without the background")
            self.segmenter: Segmenter = from_module(model, classes, choose_device(device), precision)
        else:
            self.segmenter = open_segmenter(model, device, precision)
        self.classes, self.device = self.segmenter.classes, self.segmenter.device
        self.scales = self.segmenter.scales if scales is None else tuple(scales)
        self.flip = self.segmenter.flip if flip is None else flip
        self.crf, self.tile = crf, tile
        if crf is not None and not self.segmenter.scored:
            raise GwsssError(f"crf {crf}: {model} gives labels alone; export it without the argmax")
        self.batch = batch or (GPU_BATCH if self.device.type == "cuda" else 1)

    @property
    def precision(self) -> str:
        """Of the next call: fp32, bf16, fp16 or int8."""
        return str(getattr(self.segmenter.run, "precision", self.segmenter.precision))

    def __call__(self, images: Sequence[Picture], probabilities: bool = False) -> list[Prediction]:
        """One Prediction for each image, in order: paths, PIL images, or arrays (H, W, 3) uint8 of any sizes.

        A file is turned as its EXIF tag says, as viewers show it. Images of one size share a pass through the network;
        all are in memory together, so give many a few at a time. probabilities: give those too; they need 4 (L + 1)
        bytes a pixel. Raises GwsssError for what is no image.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            raise GwsssError("a predictor takes several images: predictor([image])")
        pixels = [pixels_of(image) for image in images]
        found: dict[int, Prediction] = {}
        held: dict[int, NDArray[np.float32]] = {}
        for numbers in self._batches(pixels):
            window = self._window(pixels[numbers[0]])
            if window is not None:
                found |= {number: self._tiled(pixels[number], window, probabilities) for number in numbers}
                continue
            values = self._probabilities(np.stack([pixels[number] for number in numbers])).cpu().numpy()
            held |= dict(zip(numbers, values, strict=True))
            if self.crf is None or sum(x.size for x in held.values()) >= VALUES_HELD:
                found |= self._finished(held, pixels, probabilities)
                held = {}
        found |= self._finished(held, pixels, probabilities)
        return [found[number] for number in range(len(pixels))]

    def _batches(self, pixels: Sequence[NDArray[np.uint8]]) -> Iterator[list[int]]:
        """Numbers of images of one size, at most `batch` of them."""
        sizes: dict[tuple[int, ...], list[int]] = {}
        for number, image in enumerate(pixels):
            sizes.setdefault(image.shape, []).append(number)
        for numbers in sizes.values():
            for start in range(0, len(numbers), self.batch):
                yield numbers[start : start + self.batch]

    def _window(self, image: NDArray[np.uint8]) -> tuple[int, int] | None:
        """Height and width of the windows through which an image is seen; None = seen whole."""
        height, width = image.shape[:2]
        if self.tile is not None:
            return (self.tile, self.tile) if self.tile and max(height, width) > self.tile else None
        if height * width * max(1.0, *self.scales) ** 2 <= WHOLE_PIXELS:
            return None
        return self.segmenter.fit(TILE, TILE)

    def _finished(
        self, held: dict[int, NDArray[np.float32]], pixels: Sequence[NDArray[np.uint8]], keep: bool
    ) -> dict[int, Prediction]:
        """Predictions of images that were seen whole, refined by the CRF where one was asked for."""
        values = list(held.values())
        if self.crf is not None and values:
            values = refine_images(values, [pixels[number] for number in held], self.crf)
        found = {}
        for number, each in zip(held, values, strict=True):
            tally = self._tally(each.shape[1], each.shape[2])
            tally.add(0, 0, *_labels(each))
            found[number] = self._prediction(tally, each if keep else None)
        return found

    def _tiled(self, image: NDArray[np.uint8], window: tuple[int, int], keep: bool) -> Prediction:
        """The prediction of an image that is seen through windows."""
        height, width = image.shape[:2]
        tally = self._tally(height, width)
        kept = np.empty((len(self.classes) + 1, height, width), np.float32) if keep else None

        def predict(rows: slice, columns: slice) -> Tensor:
            values = self._probabilities(np.array(image[None, rows, columns]))[0].cpu()
            if self.crf is None:
                return values.clone()  # an ordinary tensor, which can be written to outside of inference mode
            return torch.from_numpy(refine_images([values.cpu().numpy()], [image[rows, columns]], self.crf)[0])

        for top, left, piece in blended(height, width, window, predict):
            values = piece.cpu().numpy()
            tally.add(top, left, *_labels(values))
            if kept is not None:
                kept[:, top : top + values.shape[1], left : left + values.shape[2]] = values
        return self._prediction(tally, kept)

    def _tally(self, height: int, width: int) -> Tally:
        return Tally(height, width, len(self.classes) + 1)

    def _prediction(self, tally: Tally, values: NDArray[np.float32] | None) -> Prediction:
        return Prediction(tally.mask, self.classes, tally.objects(self.classes, self.segmenter.scored), values)

    @torch.inference_mode()
    def _probabilities(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Mean over scales and mirror images of the class probabilities: (B, H, W, 3) uint8 -> (B, L + 1, H, W)."""
        segmenter = self.segmenter
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        if segmenter.mean is not None:
            mean, std = (torch.tensor(x, device=self.device)[:, None, None] for x in (segmenter.mean, segmenter.std))
            images = (images / 255 - mean) / std
        size = images.shape[-2:]
        total: Tensor | None = None
        for scale in self.scales:
            scaled = segmenter.fit(*(max(1, side * scale) for side in size))
            seen = images if scaled == tuple(size) else _resized(images, scaled)
            for mirrored in (False, True)[: 1 + self.flip]:
                output = segmenter(seen.flip(-1) if mirrored else seen)
                output = output.flip(-1) if mirrored else output
                values = _as_probabilities(output, len(self.classes) + 1, size)
                total = values if total is None else total.add_(values)
        assert total is not None
        return total.div_(len(self.scales) * (1 + self.flip))


def pixels_of(image: Picture) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a file, a PIL image or such an array. Raises GwsssError for anything else."""
    if isinstance(image, (str, Path)):
        image = read_upright(image)
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise GwsssError(f"an image is a file, a PIL image or an array (H, W, 3) uint8, not {what}")
    if not image.size:
        raise GwsssError(f"an image of shape {image.shape} has no pixels")
    return np.ascontiguousarray(image)


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)


def _as_probabilities(output: Tensor, classes: int, size: Sequence[int]) -> Tensor:
    """(B, L + 1, H, W) float32 of logits at any size, or of labels, which are taken as certain."""
    if output.ndim == 4:
        return _resized(output.float().contiguous(), size).softmax(1)
    if output.shape[-2:] != tuple(size):
        output = F.interpolate(output[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0]
    values = torch.zeros((len(output), classes, *size), device=output.device)
    return values.scatter_(1, output.long()[:, None], 1.0)


def _labels(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The most probable label of each pixel and its probability, of probabilities (L + 1, h, w)."""
    certainty, labels = torch.from_numpy(values).max(0)
    return labels.to(torch.uint8).numpy(), certainty.numpy()
