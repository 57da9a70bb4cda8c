"""`python -m gwsss_fast.predict INPUT... --model FILE`: masks of one's own images from a trained segmenter."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from gwsss_fast import cli, files
from gwsss_fast.config import Config, absolute_paths, read_config
from gwsss_fast.data.ahead import read_ahead
from gwsss_fast.data.images import IMAGE_EXTENSIONS, read_image
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.data.transforms import normalise
from gwsss_fast.errors import GwsssError
from gwsss_fast.labels.crf import refine_images
from gwsss_fast.labels.masks import save_mask
from gwsss_fast.models.deeplab import predict_probabilities
from gwsss_fast.models.precision import autocast
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.logs import Reporter
from gwsss_fast.training.precision import check_precision, choose_device, set_threads
from gwsss_fast.training.segmenter import load_segmenter

SUMMARY = "predictions.json"


@dataclass(frozen=True)
class Arguments:
    """Segment images with a trained DeepLab-V2: OUTPUT/NAME.png, and predictions.json with classes, areas and boxes."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Images, folders of images, or patterns such as 'photos/*.jpg'."""
    model: str
    """Checkpoint of a run's stage 2: RUN/segmenter/last.pt."""
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
    overlay: bool = False
    """Also write NAME_overlay.jpg, the mask's colours over the image."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network."""
    threads: int = 0
    """CPU threads; 0 = all cores."""


@dataclass(frozen=True)
class Predictor:
    """A segmenter with all it needs: predictor(images) gives probabilities (L + 1, H, W), background first."""

    model: torch.nn.Module
    classes: tuple[str, ...]
    device: torch.device
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    crf: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __call__(self, images: Sequence[Image.Image]) -> list[NDArray[np.float32]]:
        """The network sees one image after another; the CRF may refine several at a time."""
        probabilities = []
        for image in images:
            with autocast(self.device, self.precision):
                found = predict_probabilities(self.model, normalise(image).to(self.device), self.scales, self.flip)
            probabilities.append(found.float().cpu().numpy())
        if self.crf is None:
            return probabilities
        return refine_images(probabilities, [np.asarray(image) for image in images], self.crf)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 2 also where some images could not be read, after all others are done."""
    return cli.run(lambda: _command(sys.argv[1:] if arguments is None else arguments))


def _command(arguments: Sequence[str]) -> None:
    default = Arguments(inputs=tyro.MISSING, model=tyro.MISSING)
    options = cli.parse(Arguments, default, arguments, "gwsss-fast predict", Arguments.__doc__ or "")
    images, output = find_images(options.inputs), Path(options.output)
    if not options.resume:
        cli.refuse_existing(output)
    predictor = open_predictor(options)
    unreadable = predict(predictor, images, output, options.overlay)
    print(f"{len(images) - len(unreadable)} masks in {output}")
    if unreadable:
        more = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
        raise GwsssError(f"{unreadable[0]}{more}; all other images are done")


def find_images(inputs: Sequence[str]) -> dict[str, Path]:
    """The images that `inputs` name, by the name of their results: the path below the folder given, without suffix.

    Raises GwsssError for an input that is nothing, a folder without images, and two images with one name.
    """
    found: dict[str, Path] = {}
    for word in inputs:
        path = Path(word)
        if path.is_dir():
            listed = sorted(x for x in path.rglob("*") if x.suffix.lower() in IMAGE_EXTENSIONS and x.is_file())
            base = path
        else:
            listed = [path] if path.is_file() else [Path(x) for x in sorted(glob.glob(word, recursive=True))]
            base = None
        if not listed:
            raise GwsssError(f"input {word}: no image there; give files, folders or patterns in quotes")
        for file in listed:
            name = (file.relative_to(base) if base else Path(file.name)).with_suffix("").as_posix()
            if found.setdefault(name, file) != file:
                raise GwsssError(
                    f"{file} and {found[name]} would both become {name}.png; give the folder that holds both, or "
                    "run them into two outputs"
                )
    if not found:
        raise GwsssError("no input; give images, folders or patterns in quotes")
    return found


def open_predictor(options: Arguments) -> Predictor:
    """The predictor of a segmenter's checkpoint. Raises GwsssError for a file that holds none and for bad options."""
    set_threads(options.threads)
    device = choose_device(options.device)
    check_precision(options.precision, device)
    if options.scales is not None and not (options.scales and min(options.scales) > 0):
        raise GwsssError(f"--scales {options.scales}: give at least one, each above 0")
    content = load_checkpoint(options.model)
    if "segmenter" not in content.get("initialised_from", {}) or "config" not in content:
        raise GwsssError(f"{options.model} is no checkpoint of a segmenter; give RUN/segmenter/last.pt")
    config: Config = absolute_paths(read_config(str(content["config"]), options.model))
    classes = tuple(content["classes"])
    return Predictor(
        load_segmenter(config, Path(options.model), classes).to(device),
        classes,
        device,
        tuple(config.evaluate.scales) if options.scales is None else options.scales,
        config.evaluate.flip if options.flip is None else options.flip,
        options.crf,
        options.precision,
    )


def predict(predictor: Predictor, images: dict[str, Path], output: Path, overlay: bool = False) -> list[str]:
    """Write the results of `images`, by name; masks that are there stay. Returns what could not be read, and why."""
    done, unreadable = _earlier(output), []
    missing = [name for name in images if name not in done or not (output / f"{name}.png").is_file()]
    try:
        with Reporter("predict", len(images), len(images) - len(missing)) as bar:
            for batch in read_ahead(missing, lambda name: _readable(images[name]), torch.get_num_threads()):
                good = [(name, image) for name, image in batch if isinstance(image, Image.Image)]
                unreadable += [str(error) for _, error in batch if not isinstance(error, Image.Image)]
                for (name, image), scores in zip(good, predictor([image for _, image in good]), strict=True):
                    mask = scores.argmax(0).astype(np.uint8)
                    save_mask(output / f"{name}.png", mask)
                    if overlay:
                        with files.atomic_path(output / f"{name}_overlay.jpg") as temporary:
                            overlaid(image, mask).save(temporary, format="JPEG", quality=90)
                    facts = {"image": str(images[name]), "size": image.size}
                    done[name] = {**facts, "objects": objects(scores, mask, predictor.classes)}
                bar.advance(by=len(batch))
    finally:  # also when stopped, for --resume
        if done:
            files.write_json(output / SUMMARY, {"classes": predictor.classes, "images": done})
    return unreadable


def _readable(path: Path) -> Image.Image | GwsssError:
    try:
        return read_image(path)
    except GwsssError as error:
        return error


def _earlier(output: Path) -> dict[str, Any]:
    """What predictions.json says of images that were done before."""
    path = output / SUMMARY
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["images"])
    except (ValueError, KeyError, TypeError):
        raise GwsssError(
            f"{path} cannot be read as the summary of a prediction; remove it or use another --output"
        ) from None


def objects(scores: NDArray[np.float32], mask: NDArray[np.uint8], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class in the mask: its name, area (pixels), box (x0, y0, x1, y1; the end is outside) and the mean
    probability of its pixels."""
    found = []
    for label, box in enumerate(ndimage.find_objects(mask), 1):
        if box is not None:
            rows, columns = box
            own = mask == label
            found.append(
                {
                    "class": classes[label - 1],
                    "area": int(own.sum()),
                    "box": [columns.start, rows.start, columns.stop, rows.stop],
                    "score": round(float(scores[label][own].mean()), 4),
                }
            )
    return found


def overlaid(image: Image.Image, mask: NDArray[np.uint8]) -> Image.Image:
    """The image with the colours of its mask laid over it; background as it is."""
    pixels, colours = np.asarray(image, np.float32), voc_palette()[mask].astype(np.float32)
    weight = np.where(mask > 0, np.float32(0.55), np.float32(0))[..., None]
    return Image.fromarray((pixels * (1 - weight) + colours * weight).round().astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
