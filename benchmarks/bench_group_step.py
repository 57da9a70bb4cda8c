"""Times of a whole training step of `GroupGNN` and its peers, as a user runs it."""

from typing import Any

import pytest
import torch

from benchmarks.harness import group_step, suites
from benchmarks.harness.sizes import DTYPES, PAPER_8, SMALL
from benchmarks.harness.timing import EventTimer, wall_clock

SIZE = PAPER_8 if suites.GPU else SMALL
PEERS = {peer.name: peer for peer in group_step.step_peers(suites.DEVICE, compiled=suites.GPU)}


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(scope="module")
def wanted(dtype: torch.dtype) -> Any:
    torch._dynamo.reset()  # steps of the other dtype count as recompilations, of which PyTorch allows a few
    return group_step.expected(SIZE, dtype, suites.DEVICE)


@pytest.mark.parametrize("name", PEERS)
def test_group_step(benchmark: Any, dtype: torch.dtype, wanted: Any, name: str) -> None:
    function, reason = group_step.ready(PEERS[name], SIZE, dtype, suites.DEVICE, wanted)
    suites.verdict(reason, PEERS[name].ours)
    assert function is not None
    suites.time_calls(benchmark, [function], 10, EventTimer(hide_launches=False) if suites.GPU else wall_clock)
