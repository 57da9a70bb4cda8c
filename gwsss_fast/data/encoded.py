"""Images that loader processes only read, and that are decoded and transformed where the network trains.

An item of a data set that reads so holds, under `UNMADE`, its images' bytes and what was drawn for them; `DeviceImages`
makes tensors of a batch of such items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from gwsss_fast.data.images import open_image, read_image, unreadable
from gwsss_fast.data.records import Record
from gwsss_fast.data.transforms import Drawn, normalise
from gwsss_fast.errors import GwsssError, first_line

UNMADE = "unmade"
_END = b"\xff\xd9"  # of a JPEG file; decoders on GPUs may fill up what was cut off


@dataclass(frozen=True)
class Encoded:
    """An image of `size` (width, height): the bytes of a JPEG file, or pixels (H, W, 3) uint8 of any other."""

    content: bytearray | np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class Unmade:
    """The images of the item at `position` of a data set, and what was drawn for each. group: K images, or one."""

    position: int
    images: list[Encoded]
    drawn: list[Drawn]
    group: bool


class EncodedFiles:
    """Reads images as ImageCache does, but leaves to others to decode them where these can."""

    def read(self, record: Record) -> Encoded:
        """The image of `record`. Raises GwsssError as `read_image` does, with list and line, but not for a JPEG file
        that is damaged within."""
        with record.located():
            return read_encoded(record.image)


def read_encoded(path: str | Path) -> Encoded:
    """The image at `path`: encoded when all decoders agree on what it shows, a whole JPEG file in YCbCr; else decoded.

    Raises GwsssError as `read_image` does; its header alone is looked at.
    """
    with open_image(path, "image") as image:
        size, usual = image.size, _in_ycbcr(image)
    try:
        content = bytearray(Path(path).read_bytes()) if usual else bytearray()
    except OSError as error:
        raise unreadable(path, "image", error) from error
    if content.endswith(_END):
        return Encoded(content, size)
    decoded = read_image(path)
    return Encoded(np.asarray(decoded), decoded.size)


def _in_ycbcr(image: Image.Image) -> bool:
    """Whether it is a JPEG of the three components that colour JPEGs have; some hold RGB or the inks of a printer."""
    if image.format != "JPEG" or image.mode != "RGB" or image.info.get("adobe_transform", 1) != 1:
        return False
    return [component[0] for component in getattr(image, "layer", ())] != list(b"RGB")


class _EncodedDataset(Protocol):
    transform: Any  # with a method `cut`

    def decoded(self, position: int) -> dict[str, Tensor]: ...


class DeviceImages:
    """Completes batches of `dataset` on `device`: as the loader would have made them, but for a few grey levels.

    What the device's decoder refuses is made as loader processes do, in this process. So it is Pillow that says which
    image is bad, and the data set which one takes its place. Raises GwsssError when torchvision cannot decode there.
    """

    def __init__(self, dataset: _EncodedDataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        sample = BytesIO()
        Image.new("RGB", (16, 16)).save(sample, "JPEG")
        try:
            _decode([bytearray(sample.getvalue())], device)
        except (RuntimeError, AttributeError) as error:
            raise GwsssError(
                f"data.decode device: torchvision cannot decode JPEG files on {device} ({first_line(error)}); use "
                "--data.decode workers"
            ) from error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with `images` (B, K, 3, S, S), or `image` (B, 3, S, S), on the device instead of UNMADE. Raises
        GwsssError for an image that cannot be decoded, where those are not replaced."""
        batch = dict(batch)
        unmade: list[Unmade] = batch.pop(UNMADE)
        name = "images" if unmade[0].group else "image"
        found = iter(decode([image for one in unmade for image in one.images], self.device))
        made = []
        for row, one in enumerate(unmade):
            decoded = [next(found) for _ in one.images]
            cuts = [
                self.dataset.transform.cut(pixels, drawn)
                for pixels, drawn in zip(decoded, one.drawn, strict=True)
                if pixels is not None
            ]
            if len(cuts) == len(decoded):
                made.append(normalise(torch.stack(cuts) if one.group else cuts[0]))
                continue
            item = self.dataset.decoded(one.position)
            made.append(item[name].to(self.device))
            for other, values in batch.items():
                values[row] = item[other]
        return {name: torch.stack(made), **batch}


def decode(images: Sequence[Encoded], device: torch.device) -> list[Tensor | None]:
    """The pixels of each, (3, H, W) uint8 on the device; None where its decoder refuses."""
    files = {number: image.content for number, image in enumerate(images) if isinstance(image.content, bytearray)}
    pixels = dict(zip(files, _decode_each(list(files.values()), device), strict=True))
    found: list[Tensor | None] = []
    for number, image in enumerate(images):
        if isinstance(image.content, np.ndarray):
            found.append(torch.tensor(image.content).permute(2, 0, 1).to(device))
        else:
            own = pixels[number]
            found.append(own if own is not None and own.shape == (3, *image.size[::-1]) else None)
    return found


def _decode_each(files: list[bytearray], device: torch.device) -> list[Tensor | None]:
    if not files:
        return []
    try:
        return [*_decode(files, device)]
    except RuntimeError:
        if device.type == "cuda":  # what is left of the batch may still be written
            torch.cuda.synchronize(device)
        return [None] if len(files) == 1 else [_decode_each([file], device)[0] for file in files]


def _decode(files: list[bytearray], device: torch.device) -> list[Tensor]:
    if device.type == "cuda":
        # torchvision decodes on a stream of its own, into memory that kernels of this one may not be done with.
        torch.cuda.current_stream(device).synchronize()
    encoded = [torch.frombuffer(file, dtype=torch.uint8) for file in files]
    return decode_jpeg(encoded, ImageReadMode.RGB, device)  # type: ignore[return-value]
