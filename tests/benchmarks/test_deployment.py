"""Formats of deployment in turn: what is near eager has a time, what is not or cannot be made has a reason."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import deployment
from benchmarks.on_cpu import FIRST


def test_every_version_has_a_time_or_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanted = (("torch-export", "fp32"), ("torch-export", "bf16"), ("tensorrt", "fp16"))
    monkeypatch.setattr(deployment, "ON_CPU", wanted)
    monkeypatch.setitem(deployment.NEAR, "bf16", 0.0)
    options = ["--body", "tiny", "--sides", "33", "--rounds", "2", "--output", str(tmp_path)]
    assert deployment.main(options) == 1
    lines = [json.loads(line) for line in (tmp_path / "deployment.jsonl").read_text().splitlines()]
    found = {line["version"]: line for line in lines}
    assert set(found) == {FIRST, *(" ".join(x) for x in wanted)}
    for version in (FIRST, "torch-export fp32"):
        assert found[version]["p50_ms"] > 0
        assert found[version]["pixel_agreement"] == 1
    assert found["torch-export bf16"]["reason"].startswith("wrong")
    assert "GPU" in found["tensorrt fp16"]["reason"]
    assert "p50_ms" not in found["torch-export bf16"]
