"""The images that an export is calibrated with and compared on, and what counts as agreement."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gwsss_fast import GwsssError
from gwsss_fast.export.agreement import compare
from gwsss_fast.export.metadata import Metadata, fitting
from gwsss_fast.export.runtimes import Runtime
from gwsss_fast.export.samples import MOST_PIXELS, Sample, network_inputs, samples_below
from tests.export.networks import description, nano


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two folders that have a name in common."""
    for number, name in enumerate(("a.jpg", "b/a.png", "b/c.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (20 + number, 10), (100 * number, 0, 0)).save(path)
    return tmp_path / "images"


def test_masks_are_found_by_the_path_of_their_image(folder: Path, tmp_path: Path) -> None:
    assert [x.name for x in samples_below(folder, "--images", 2)] == ["a", "b/a"]
    masks = tmp_path / "masks"
    with pytest.raises(GwsssError, match=r"--masks .*none of the images has a mask there, such as .*a\.png"):
        samples_below(folder, "--images", 9, masks, 2)
    (masks / "b").mkdir(parents=True)
    for name, value in (("a", 1), ("b/a", 2)):
        Image.fromarray(np.full((10, 20), value, np.uint8)).save(masks / f"{name}.png")
    found = samples_below(folder, "--images", 9, masks, 2)
    assert [None if x.mask is None else x.mask[0, 0] for x in found] == [1, 2, None]
    with pytest.raises(GwsssError, match="nothing: no image there"):
        samples_below(folder / "nothing", "--images", 9)


def test_large_photographs_are_reduced(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (2400, 1200)).save(folder / "a.jpg")
    (sample,) = samples_below(folder, "--images", 1)
    width, height = sample.image.size
    assert 0.99 * MOST_PIXELS < width * height <= MOST_PIXELS
    assert width / height == pytest.approx(2, rel=0.01)


def test_all_images_get_into_a_group() -> None:
    metadata = replace(
        description(nano()), task="group-classification", group_size=2, palette=((1, 2, 3), (4, 5, 6)), batch=(2, 2)
    )
    samples = [Sample(str(number), Image.new("RGB", (9, 7), (number, 0, 0))) for number in range(5)]
    found = [images for images, _ in network_inputs(samples, replace(metadata, normalise=True))]
    assert [tuple(images.shape) for images in found] == [(2, 2, 3, 7, 9)] * 2
    assert torch.cat(found)[:, :, 0, 0, 0].flatten().tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


class Repeats(Runtime):
    """Gives the eager network's logits, but for `change`."""

    def __init__(self, network: torch.nn.Module, metadata: Metadata, change: float) -> None:
        self.network, self.metadata, self.change = network, metadata, change
        self.name, self.device = "repeats", torch.device("cpu")

    def _run(self, images: Tensor) -> list[Tensor]:
        logits = self.network(images).clone()
        logits[0, 0, 0, 0] = self.change
        return [logits]


def test_what_is_no_number_agrees_with_nothing() -> None:
    """An argmax of NaN is a label as any other, and Python's max leaves NaN out."""
    network, metadata = copy.deepcopy(nano()), description(nano())
    samples = [Sample("a", Image.new("RGB", (16, 16)))]
    for change in (float("nan"), float("inf")):
        (scores,) = compare(network, [Repeats(network, metadata, change)], samples, metadata).values()
        assert scores["pixel_agreement"] == 0
        assert np.isnan(scores["logit_difference"])


@pytest.mark.parametrize(
    ("given", "spans", "wanted"),
    [
        ((500.4, 300), ((1, None), (1, None)), (500, 300)),
        ((2000, 1000), ((33, 1025), (33, 1025)), (1025, 512)),
        ((1000, 2000), ((33, 1025), (33, 1025)), (512, 1025)),
        ((2000, 20), ((33, 1025), (33, 1025)), (1025, 33)),
        ((500, 375), ((321, 321), (321, 321)), (321, 321)),
        ((500, 375), ((321, 321), (1, 2000)), (321, 375)),
    ],
)
def test_what_is_too_large_keeps_its_shape(given: tuple, spans: tuple, wanted: tuple) -> None:
    assert fitting(*given, *spans) == wanted
