"""Whom an operation is measured against: who is left out, and what a time limit does to a peer."""

import time
from typing import Any

import pytest
import torch

from benchmarks.harness import checking, measuring, peers
from benchmarks.harness.cases import Operation, operation
from benchmarks.harness.sizes import SMALL
from benchmarks.harness.timing import TimeLimitError, for_lack_of_time, time_limit


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """FlexAttention takes seconds to compile, and its compiler raises its own error in place of the limit's."""
    tried: list[None] = []

    def compiling(*arguments: Any, **options: Any) -> None:
        tried.append(None)
        try:
            time.sleep(3)
        except Exception:
            raise RuntimeError("backend='inductor' raised:") from None

    monkeypatch.setattr(peers, "compiled_function", lambda function: compiling)
    return tried


@pytest.mark.parametrize("label", ["attention", "co_attention transpose"])
def test_a_time_limit_ends_flex_attention_at_once(label: str, slow: list[None]) -> None:
    row = operation(label)
    tensors = row.inputs(SMALL, torch.float32, "cpu", 0)
    with pytest.raises(TimeLimitError, match="given up after"), time_limit(0.05):
        flex(row, tensors).build(tensors)
    assert len(slow) == 1


def test_its_reason_is_the_time_limit(slow: list[None]) -> None:
    row = operation("attention")
    tensors = row.inputs(SMALL, torch.float32, "cpu", 0)
    wanted = checking.expected(row, tensors)
    _, refused = measuring.accepted([flex(row, tensors)], row, tensors, wanted, lambda: 0.05)
    assert len(refused) == 2
    assert all(for_lack_of_time(reason) for reason in refused.values())


def flex(row: Operation, tensors: list[torch.Tensor]) -> peers.Peer:
    return next(peer for peer in peers.peers(row, tensors) if peer.name == "flex attention")


def test_flex_attention_is_left_out_where_nothing_is_compiled() -> None:
    row = operation("attention")
    found = peers.peers(row, row.inputs(SMALL, torch.float32, "cpu", 0), compiled=False)
    assert not [peer.name for peer in found if peer.name.startswith(("flex", "compiled"))]
