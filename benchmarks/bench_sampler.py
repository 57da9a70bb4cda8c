"""Times of the group sampler on 100,000 images: its start, and 1,000 draws."""

from typing import Any

import numpy as np
import pytest

from benchmarks.harness import suites
from benchmarks.harness.timing import wall_clock
from benchmarks.sampler import GROUP, STRATEGIES, check, tags
from gwsss_fast.data.samplers import GroupSampler, Strategy


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return tags()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_start(benchmark: Any, labels: np.ndarray, strategy: Strategy) -> None:
    check(GroupSampler(labels, GROUP, strategy), labels)
    suites.time_calls(benchmark, [lambda: GroupSampler(labels, GROUP, strategy)], 5, wall_clock)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_thousand_draws(benchmark: Any, labels: np.ndarray, strategy: Strategy) -> None:
    sampler, rng = GroupSampler(labels, GROUP, strategy), np.random.default_rng(0)
    check(sampler, labels)

    def draw() -> None:
        for anchor in rng.integers(len(labels), size=1000).tolist():
            sampler.partners(anchor, rng)

    suites.time_calls(benchmark, [draw], 5, wall_clock)
