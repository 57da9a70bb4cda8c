"""Exported models in a predictor: sizes, batches, what the graph does itself, and files that cannot be used.

The runtime is a stand-in with the metadata of an exported file; real files are tested where they are made.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gwsss_fast import Predictor
from gwsss_fast.data.palette import voc_palette
from gwsss_fast.data.transforms import MEAN, STD
from gwsss_fast.errors import GwsssError
from gwsss_fast.export.metadata import Metadata
from gwsss_fast.export.runtimes import Runtime
from gwsss_fast.inference import segmenters

CLASSES = ("a", "b")


class StandIn(Runtime):
    """Logits that follow the images' colours: the brightest channel is the label."""

    def __init__(self, **options: Any) -> None:
        palette = tuple(tuple(map(int, colour)) for colour in voc_palette()[:3])
        fixed = {"format": "onnx", "task": "segmentation", "weights_sha256": "0" * 64, "mean": MEAN, "std": STD}
        self.metadata = Metadata(classes=CLASSES, palette=palette, **{**fixed, **options})
        self.name, self.device, self.seen = "stand-in", torch.device("cpu"), []

    def _run(self, images: Tensor) -> list[Tensor]:
        self.seen.append(tuple(images.shape))
        if not self.metadata.normalise:
            images = 255 * (images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None])
        assert images.min() > -1e-3
        assert images.max() > 1  # 0..255, whoever normalised
        return [images.argmax(1)] if self.metadata.argmax else [F.avg_pool2d(images, 4, ceil_mode=True) / 20]


@pytest.fixture
def stripes() -> tuple[np.ndarray, np.ndarray]:
    """An image of three stripes, each in the colour of its label, and its mask."""
    mask = np.repeat([0, 1, 2], 20)[None].repeat(48, 0).astype(np.uint8)
    return (200 * np.eye(3)[mask]).astype(np.uint8), mask


def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runtime: Runtime, **options: Any) -> Predictor:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"some bytes")
    monkeypatch.setattr(segmenters, "kind_of", lambda given: "onnx")
    monkeypatch.setattr(segmenters, "open_runtime", lambda given, device: runtime)
    return Predictor(path, **options)


@pytest.mark.parametrize(
    ("about", "shape"),
    [
        ({}, (1, 3, 48, 60)),
        ({"normalise": True}, (1, 3, 48, 60)),
        ({"argmax": True}, (1, 3, 48, 60)),
        ({"height": (32, 32), "width": (40, 40)}, (1, 3, 32, 40)),
        ({"height": (32, 40), "width": (64, None), "argmax": True}, (1, 3, 40, 64)),
        ({"batch": (4, 4)}, (4, 3, 48, 60)),
    ],
)
def test_the_network_gets_what_it_takes(
    about: dict, shape: tuple, stripes: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = StandIn(**about)
    (found,) = opened(monkeypatch, tmp_path, runtime)([stripes[0]])
    assert runtime.seen == [shape]
    assert found.classes == CLASSES
    assert (found.mask == stripes[1]).mean() > 0.94
    assert [item.score is None for item in found.objects] == 2 * [about.get("argmax", False)]


def test_more_images_than_a_batch_takes(stripes: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = StandIn(batch=(2, 3))
    found = opened(monkeypatch, tmp_path, runtime, batch=4)([stripes[0], stripes[0][::-1], stripes[0], stripes[0]])
    assert [shape[0] for shape in runtime.seen] == [3, 2]
    assert all((each.mask == stripes[1]).mean() > 0.94 for each in found)


def test_scales_and_flip_are_those_of_the_run(stripes: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = StandIn(scales=(0.5, 1.0), flip=True, argmax=True)
    (found,) = opened(monkeypatch, tmp_path, runtime)([stripes[0]], probabilities=True)
    assert runtime.seen == 2 * [(1, 3, 24, 30)] + 2 * [(1, 3, 48, 60)]
    assert (found.mask == stripes[1]).mean() > 0.94
    np.testing.assert_allclose(found.probabilities.sum(0), 1)
    fixed = StandIn(scales=(0.5, 1.0), height=(32, 32), width=(32, 32))
    assert opened(monkeypatch, tmp_path, fixed).scales == (1.0,)


@pytest.mark.parametrize(
    ("about", "options", "words"),
    [
        ({}, {"precision": "bf16"}, "exported in fp32"),
        ({"argmax": True}, {"crf": "psa"}, "labels alone"),
        ({"task": "group-classification", "group_size": 4}, {}, "group-classification"),
    ],
)
def test_what_an_exported_file_cannot_do(
    about: dict, options: dict, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = StandIn(**about) if "task" not in about else StandIn()
    if "task" in about:
        object.__setattr__(runtime.metadata, "task", about["task"])
    with pytest.raises(GwsssError, match=words):
        opened(monkeypatch, tmp_path, runtime, **options)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"PK\x03\x04 broken"])
def test_files_that_are_no_model(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(GwsssError, match="model"):
        Predictor(path)
