"""Times of `ops.edge_readout` and its peers."""

from typing import Any

import torch

from benchmarks import suites
from benchmarks.cases import Operation
from benchmarks.sizes import Size


@suites.benchmarked("edge_readout")
def test_edge_readout(
    benchmark: Any, operation: Operation, size: Size, dtype: torch.dtype, backward: bool, name: str
) -> None:
    suites.run(benchmark, operation, size, dtype, backward, name)
