"""The sampler on 100,000 images keeps its limits, and the benchmark refuses a sampler that is wrong."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import sampler
from gwsss_fast.data.samplers import GroupSampler


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_the_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "STRATEGIES", ("greedy",))  # the one that needs most
    monkeypatch.setattr(sampler, "in_own_process", lambda expression, module: 250.0)
    assert sampler.main(["--draws", "1000", "--output", str(tmp_path)]) == 0
    (line,) = map(json.loads, (tmp_path / "sampler.jsonl").read_text().splitlines())
    assert (line["images"], line["mib"]) == (100_000, 250.0)
    assert line["start_s"] < 5
    assert line["draw_ms"] < 1
    monkeypatch.setattr(sampler, "LIMITS", {"mib": 200.0})
    assert sampler.main(["--draws", "10", "--output", str(tmp_path)]) == 1


@pytest.mark.parametrize("strategy", ["greedy", "one-common"])
def test_wrong_partners_are_seen(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = sampler.tags(2000, 20)
    right = GroupSampler(labels, 4, strategy)
    sampler.check(right, labels)
    monkeypatch.setattr(right, "_pools", lambda anchor, rng: [right._everything])
    with pytest.raises(ValueError, match="wrong partners"):
        sampler.check(right, labels)


def test_the_tags_are_many_and_alike_every_time() -> None:
    labels = sampler.tags(5000)
    assert np.array_equal(labels, sampler.tags(5000))
    assert labels.any(1).all()
    assert 2 < labels.sum(1).mean() < 4
