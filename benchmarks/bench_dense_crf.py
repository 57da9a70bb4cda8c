"""Times of `ops.dense_crf` and its peers on the CPU: one preset, an image it has not seen and one it has."""

from typing import Any

import numpy as np
import pytest

from benchmarks.dense_crf import PRESETS, ours, probabilities, pydensecrf2, scene
from benchmarks.harness import suites
from benchmarks.harness.timing import wall_clock
from gwsss_fast import ops

CASES = ("cpp new image", "cpp same image", "reference", "pydensecrf2")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("preset", ["psa"])
def test_dense_crf(benchmark: Any, preset: str, name: str) -> None:
    prob, image = probabilities(21), scene()
    peer = name.split()[0]
    if peer == "pydensecrf2":
        pytest.importorskip("pydensecrf.densecrf")
        suites.time_calls(benchmark, [lambda: pydensecrf2(prob, image, PRESETS[preset])], 2, wall_clock)
        return
    state = ops.available()["dense_crf"][peer]
    if not state:
        pytest.skip(str(state))
    images = [image]
    if name == "cpp new image":
        images = [np.roll(image, 16 * number, axis=1) for number in range(12)]  # more than are kept
    calls = [lambda picture=picture: ours(prob, picture, PRESETS[preset], peer) for picture in images]
    suites.time_calls(benchmark, calls, 2 if peer == "reference" else 6, wall_clock)
