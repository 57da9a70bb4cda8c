"""Whole models on the CPU: each version is checked before it has a time, and memory is a process's own."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import models_on_cpu
from benchmarks.harness.sizes import Size


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (models_on_cpu.classifier_step, {"backbone": "tiny", "size": 32}),
        (models_on_cpu.segmenter, {"body": "tiny", "size": 33}),
    ],
)
def test_every_version_of_a_small_model_is_right_and_timed(
    build: Callable[..., Callable[[], list[Tensor]]], options: dict[str, object]
) -> None:
    lines = models_on_cpu.measure("small", build, 1, **options)
    assert [line["version"] for line in lines] == list(models_on_cpu.VERSIONS)
    assert all(line["p50_ms"] > 0 for line in lines), lines


def test_a_wrong_version_has_no_time() -> None:
    def build(eager: bool, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        value = torch.ones(3, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        return lambda: [value if eager or dtype != torch.bfloat16 else 1.5 * value]

    lines = {line["version"]: line for line in models_on_cpu.measure("model", build, 1)}
    assert lines["auto bfloat16"]["reason"].startswith("wrong")
    assert "p50_ms" not in lines["auto bfloat16"]
    assert lines["auto float32"]["p50_ms"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_equations_grows_with_the_square_of_the_positions() -> None:
    size = Size("some", 1, 2, 20, 40, 64, 16, steps=1)  # a matrix of scores has 2.4 MiB
    eager, ours = (models_on_cpu.memory(version, size) for version in (models_on_cpu.FIRST, "auto float32"))
    assert 0 < ours < eager
