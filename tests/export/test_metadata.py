"""What an exported model says about itself: there and back, and what contradicts itself."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from gwsss_fast import GwsssError
from gwsss_fast.data.transforms import MEAN, STD
from gwsss_fast.export.metadata import Metadata, read_beside, weights_checksum, write_beside

GOOD = Metadata(
    format="onnx",
    task="segmentation",
    classes=("red", "grün"),
    palette=((0, 0, 0), (200, 0, 0), (0, 200, 0)),
    mean=MEAN,
    std=STD,
    weights_sha256="0" * 64,
    batch=(1, 8),
    height=(33, None),
    width=(65, 65),
    versions={"torch": "2.14.1"},
)


def test_there_and_back(tmp_path: Path) -> None:
    groups = replace(GOOD, task="group-classification", group_size=3, palette=GOOD.palette[1:])
    resizing = replace(GOOD, resize=True, network_size=(33, 47), normalise=True, argmax=True, precision="int8")
    for metadata in (GOOD, groups, resizing):
        assert Metadata.from_json(metadata.to_json()) == metadata
        write_beside(tmp_path / "model.onnx", metadata)
        assert read_beside(tmp_path / "model.onnx") == metadata
    assert read_beside(tmp_path / "other.onnx") is None
    assert GOOD.labels == ("background", "red", "grün")
    assert groups.labels == GOOD.classes
    assert resizing.outputs == ("labels",)
    assert groups.outputs[0] == "logits"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "tflite"}, "format is 'tflite'"),
        ({"classes": ()}, "classes"),
        ({"height": (4, 2)}, "height"),
        ({"height": [1]}, "height"),
        ({"std": (0, 1, 1)}, "std"),
        ({"palette": ((0, 0, 0),)}, "1 colours for 3 labels"),
        ({"palette": ((0, 0, 300),) * 3}, "no colour"),
        ({"weights_sha256": "abc"}, "SHA-256"),
        ({"group_size": 2}, "group_size"),
        ({"resize": True}, "network_size"),
        ({"argmax": "yes"}, "argmax"),
        ({"scales": ()}, "scales"),
        ({"metadata_format": 2}, "format 2"),
        ({"secret": 1}, "unknown metadata field secret"),
        ({"classes": 5}, "export the model again"),
    ],
)
def test_what_contradicts_itself(change: dict, words: str) -> None:
    text = json.dumps({**asdict(GOOD), **change})
    with pytest.raises(GwsssError, match=words) as caught:
        Metadata.from_json(text, "model.onnx")
    assert str(caught.value).startswith("model.onnx: ")


def test_damaged_json(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}", "[" * 100_000):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(GwsssError, match=r"m\.json"):
            read_beside(tmp_path / "m")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 40), "takes"),
        ((1, 1, 40, 65), "takes"),
        ((9, 3, 40, 65), "batch 9 is not supported; this model takes 1 to 8"),
        ((1, 3, 32, 65), "height 32 is not supported; this model takes 33 or more"),
        ((1, 3, 40, 64), "width 64 is not supported; this model takes 65"),
    ],
)
def test_shapes_that_are_not_taken(shape: tuple[int, ...], words: str) -> None:
    GOOD.check_images(torch.zeros(8, 3, 1000, 65))
    with pytest.raises(GwsssError, match=words):
        GOOD.check_images(torch.zeros(shape))
    with pytest.raises(GwsssError, match="uint8"):
        GOOD.check_images(torch.zeros(1, 3, 40, 65, dtype=torch.uint8))


def test_the_checksum_sees_every_bit_and_name() -> None:
    weights = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
    sums = {weights_checksum(weights), weights_checksum(dict(reversed(weights.items())))}
    assert len(sums) == 1
    sums |= {weights_checksum({**weights, "a": torch.zeros(3, 2)}), weights_checksum({"c": weights["a"]})}
    sums |= {
        weights_checksum({**weights, "a": torch.full((2, 3), -0.0)}),
        weights_checksum(weights | {"a": torch.zeros(2, 3).half()}),
    }
    assert len(sums) == 5
