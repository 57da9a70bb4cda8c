"""Times of `ops.attention` and its peers."""

from typing import Any

import torch

from benchmarks import suites
from benchmarks.cases import Operation
from benchmarks.sizes import Size


@suites.benchmarked("attention")
def test_attention(
    benchmark: Any, operation: Operation, size: Size, dtype: torch.dtype, backward: bool, name: str
) -> None:
    suites.run(benchmark, operation, size, dtype, backward, name)
