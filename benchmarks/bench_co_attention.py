"""Times of `ops.co_attention` and its peers."""

from typing import Any

import torch

from benchmarks.harness import suites
from benchmarks.harness.cases import Operation
from benchmarks.harness.sizes import Size


@suites.benchmarked("co_attention transpose")
def test_co_attention(
    benchmark: Any, operation: Operation, size: Size, dtype: torch.dtype, backward: bool, name: str
) -> None:
    suites.run(benchmark, operation, size, dtype, backward, name)
