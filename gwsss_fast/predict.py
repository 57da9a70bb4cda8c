"""`python -m gwsss_fast.predict INPUT... --model FILE`: masks of one's own images from a trained segmenter."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

from gwsss_fast import cli, distributed
from gwsss_fast.data.ahead import read_ahead
from gwsss_fast.data.images import MAX_MEGAPIXELS, read_upright, set_pixel_limit
from gwsss_fast.errors import GwsssError
from gwsss_fast.inference.inputs import Inputs, Video, find_inputs, open_video
from gwsss_fast.inference.predictor import Predictor
from gwsss_fast.inference.written import Written
from gwsss_fast.training.logs import Reporter
from gwsss_fast.training.signals import terminating

MOST_READ = 16
"""Images that are read at a time where the processor has so many threads, if batches are not larger."""


@dataclass(frozen=True)
class Arguments:
    """Segment images with a trained DeepLab-V2: OUTPUT/NAME.png, and predictions.json with classes, areas and boxes."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Images, folders of images, patterns such as 'photos/*.jpg', videos, or camera:0."""
    model: str
    """Checkpoint of a run's stage 2 (RUN/segmenter/last.pt), or a segmenter that was exported, in any format."""
    output: str = "predictions"
    """Folder that the results go to: a new one, or any with --resume."""
    resume: bool = False
    """Go on in a folder that holds results: images with a mask are left as they are."""
    scales: tuple[float, ...] | None = None
    """Sizes at which an image is seen; probabilities are averaged. None: as the run was evaluated."""
    flip: bool | None = None
    """See the mirror image too. None: as the run was evaluated."""
    crf: Literal["psa", "irn", "deeplab", "mcis", "toco"] | None = None
    """Dense CRF preset that refines the probabilities."""
    tile: int | None = None
    """Side of the overlapping windows through which larger images are seen; 0: never. None: 1024 above 2 megapixels."""
    batch: int | None = None
    """Images of one size that go through the network together. None: 8 on a GPU, 1 on a CPU."""
    overlay: bool = False
    """Also write NAME_overlay.jpg, the mask's colours over the image."""
    coco: bool = False
    """Also write coco.json: the objects with their masks as run lengths (RLE)."""
    every: int = 1
    """Of a video or camera, take each so-manieth frame."""
    frames: int | None = None
    """Of a video or camera, take so many frames at most."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network. auto: bf16 where the processor has it and the first images come out the same."""
    threads: int = 0
    """CPU threads; 0 = all cores."""
    max_megapixels: float = MAX_MEGAPIXELS
    """Refuse images of more than so many million pixels, before they are decoded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 2 also where some images could not be read, after all others are done."""
    return cli.run(lambda: _command(sys.argv[1:] if arguments is None else arguments))


def _command(arguments: Sequence[str]) -> None:
    options, inputs = distributed.on_main(lambda: read_arguments(arguments))
    set_pixel_limit(options.max_megapixels)
    output = Path(options.output)
    predictor = open_predictor(options)
    written = Written(output, predictor.classes, options.overlay)
    unreadable: list[str] = []
    count = 0
    try:
        with terminating():
            count += predict_images(predictor, inputs, written, unreadable)
            for name in distributed.share([*inputs.videos]):
                count += predict_video(predictor, name, inputs.videos[name], written, unreadable, options)
    finally:  # also when stopped, for --resume
        written.close()
    written.join([*inputs.images])
    count = sum(distributed.gather(count))
    unreadable = [each for found in distributed.gather(unreadable) for each in found]
    if options.coco:
        distributed.on_main(written.write_coco)
    if distributed.is_main():
        print(f"{count} masks in {output}")
    if unreadable:
        for reason in unreadable[1:] if distributed.is_main() else ():
            print(f"not done: {reason}", file=sys.stderr)
        more = f" (and {len(unreadable) - 1} more, see above)" if len(unreadable) > 1 else ""
        raise GwsssError(f"{unreadable[0]}{more}; all other images are done")


def read_arguments(arguments: Sequence[str]) -> tuple[Arguments, Inputs]:
    """The command line and what it names. Raises GwsssError for what cannot be used, and where results lie already."""
    default = Arguments(inputs=tyro.MISSING, model=tyro.MISSING)
    options = cli.parse(Arguments, default, arguments, "gwsss-fast predict", Arguments.__doc__ or "")
    for name in ("every", "frames"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise GwsssError(f"--{name} {value}: give at least 1")
    set_pixel_limit(options.max_megapixels)
    inputs = find_inputs(options.inputs, Path(options.output))
    if not options.resume:
        cli.refuse_existing(Path(options.output))
    return options, inputs


def open_predictor(options: Arguments) -> Predictor:
    """The predictor that the options ask for. Raises GwsssError for a file that holds none and for bad options."""
    if options.scales is not None and not (options.scales and min(options.scales) > 0):
        raise GwsssError(f"--scales {options.scales}: give at least one, each above 0")
    return Predictor(
        options.model,
        device=options.device,
        precision=options.precision,
        scales=options.scales,
        flip=options.flip,
        crf=options.crf,
        tile=options.tile,
        batch=options.batch,
        threads=options.threads,
    )


def at_a_time(predictor: Predictor) -> int:
    """How many images are read, and given to the predictor, together."""
    return max(predictor.batch, min(torch.get_num_threads(), MOST_READ))


def predict_images(predictor: Predictor, inputs: Inputs, written: Written, unreadable: list[str]) -> int:
    """Write the results of this process's images that have none; returns how many of them have one.

    unreadable: gets what could not be read, and why.
    """
    images = {name: inputs.images[name] for name in distributed.share([*inputs.images])}
    missing = [name for name in images if not written.has(name)]
    before = len(unreadable)
    if images:
        start = len(images) - len(missing)
        with Reporter("predict", len(inputs.images), start * distributed.size(), shared=True) as bar:
            for batch in read_ahead(missing, lambda name: _readable(images[name]), at_a_time(predictor)):
                good = [(name, image) for name, image in batch if isinstance(image, Image.Image)]
                unreadable += [str(error) for _, error in batch if not isinstance(error, Image.Image)]
                for (name, image), found in zip(good, predictor([image for _, image in good]), strict=True):
                    written.add(name, {"image": str(images[name])}, image, found)
                bar.advance(by=len(batch))
                distributed.check()
    return len(images) - (len(unreadable) - before)


def predict_video(
    predictor: Predictor,
    name: str,
    source: Path | int,
    written: Written,
    unreadable: list[str],
    options: Arguments,
) -> int:
    """Write NAME/FRAME.png of the frames of a video or camera; returns how many there are."""
    count = 0
    try:
        video = open_video(source)
    except GwsssError as error:
        unreadable.append(str(error))
        return 0
    total = min(-(-video.length // options.every) or sys.maxsize, options.frames or sys.maxsize)
    try:
        with Reporter(name, total if total < sys.maxsize else 0) as bar:
            for batch in _batches(video, at_a_time(predictor), options, unreadable):
                new = [(number, frame) for number, frame in batch if not written.has(_frame_name(name, number))]
                for (number, frame), found in zip(new, predictor([frame for _, frame in new]), strict=True):
                    facts: dict[str, Any] = {"image": str(source), "frame": number}
                    written.add(_frame_name(name, number), facts, frame, found)
                count += len(batch)
                bar.advance(by=len(batch))
                distributed.check()
    finally:
        video.close()
    return count


def _batches(
    video: Video, size: int, options: Arguments, unreadable: list[str]
) -> Iterator[list[tuple[int, NDArray[np.uint8]]]]:
    batch: list[tuple[int, NDArray[np.uint8]]] = []
    try:
        for item in video.frames(options.every, options.frames):
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except GwsssError as error:
        unreadable.append(str(error))
    if batch:
        yield batch


def _frame_name(name: str, number: int) -> str:
    return f"{name}/{number:06d}"


def _readable(path: Path) -> Image.Image | GwsssError:
    try:
        return read_upright(path)
    except GwsssError as error:
        return error


if __name__ == "__main__":
    sys.exit(main())
