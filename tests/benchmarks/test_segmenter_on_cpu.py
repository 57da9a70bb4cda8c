"""The segmenter on the CPU against its peers: what is timed agrees with the first, and what does not has a reason."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import segmenter_on_cpu
from benchmarks.segmenter_on_cpu import FIRST, fitted, measure, networks_of, photographs


def test_every_version_of_a_small_network_agrees(finished: tuple[Path, Path]) -> None:
    pairs = photographs(str(finished[0]), 65)
    networks, seconds = networks_of(fitted("tiny", pairs[:6], 3), pairs[0][0], False)
    assert {FIRST, "prepared float32", "prepared bfloat16", "autocast bfloat16"} <= set(networks)
    assert seconds["prepared float32"] > 0
    lines = {line["version"]: line for line in measure({FIRST: networks[FIRST], **networks}, [pairs[7][0]], 1)}
    for version in networks:
        assert lines[version]["agreement"] == pytest.approx(1, abs=0.005 if "float32" in version else 0.2), version
        assert ("p50_ms" in lines[version]) == (lines[version]["agreement"] >= segmenter_on_cpu.LEAST_AGREEMENT)


def test_a_version_that_disagrees_has_no_time() -> None:
    def network(images: Tensor) -> Tensor:
        return images[:, :2, ::4, ::4]

    image = torch.randn(1, 3, 32, 32)
    lines = measure({FIRST: network, "prepared float32": lambda images: network(images).flip(1)}, [image], 1)
    assert "p50_ms" in next(line for line in lines if line["version"] == FIRST)
    wrong = next(line for line in lines if line["version"] != FIRST)
    assert wrong["reason"].startswith("wrong: ")
    assert wrong["ours"]
    assert json.dumps(lines)
