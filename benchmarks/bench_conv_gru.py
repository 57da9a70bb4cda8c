"""Times of `ops.conv_gru`, kernel 1 and 3, and its peers."""

from typing import Any

import torch

from benchmarks.harness import suites
from benchmarks.harness.cases import Operation
from benchmarks.harness.sizes import Size


@suites.benchmarked("conv_gru kernel 1", "conv_gru kernel 3")
def test_conv_gru(
    benchmark: Any, operation: Operation, size: Size, dtype: torch.dtype, backward: bool, name: str
) -> None:
    suites.run(benchmark, operation, size, dtype, backward, name)
