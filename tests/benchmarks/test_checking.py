"""The tolerance rule passes what is right and nothing else."""

import math

import pytest
import torch

from benchmarks.harness import checking, measuring
from benchmarks.harness.cases import OPERATIONS, TIMED, Operation, operation, rerouted
from benchmarks.harness.peers import Peer, peers
from benchmarks.harness.sizes import SMALL, Size
from benchmarks.harness.timing import Reading, wall_clock

TINY = Size("tiny", 1, 2, 3, 2, 8, 4)
by_label = pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.label)


@by_label
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_plain_pytorch_passes_its_own_rule(row: Operation, dtype: torch.dtype) -> None:
    tensors = row.inputs(SMALL, dtype, "cpu", 0)
    wanted = checking.expected(row, tensors)
    assert wanted.outputs == len(wanted.exact) - row.differentiable
    assert not wanted.failures(checking.run(row.plain, tensors, row.differentiable))


@by_label
def test_zeros_nan_and_shifted_results_fail(row: Operation) -> None:
    tensors = row.inputs(TINY, torch.bfloat16, "cpu", 0)
    wanted = checking.expected(row, tensors)
    right = checking.run(row.plain, tensors, row.differentiable)
    for number in range(len(right)):
        for spoil in (torch.zeros_like, lambda x: x * math.nan, lambda x: x.roll(1), lambda x: x + x.abs().max() / 20):
            wrong = [spoil(x) if i == number else x for i, x in enumerate(right)]
            if torch.equal(wrong[number], right[number]):
                continue
            failures = wanted.failures(wrong)
            assert failures
            assert all(("output" in text) == (number < wanted.outputs) for text in failures)


def test_one_wrong_value_among_many_fails() -> None:
    exact = torch.ones(100_000, dtype=torch.float64)
    value = exact.clone()
    value[777] += 0.01
    assert not checking.compare([exact.float()], [exact], [exact.float()], 1)[0].error
    assert any(not verdict.passed for verdict in checking.compare([value.float()], [exact], [exact.float()], 1))


def test_a_wrong_shape_fails() -> None:
    x = torch.ones(3)
    assert not all(verdict.passed for verdict in checking.compare([x[:2]], [x], [x], 1))


def test_where_plain_pytorch_overflows_ours_must_not() -> None:
    exact, overflowed = torch.full((4,), 2.0), torch.tensor([math.inf, 2.0, 2.0, 2.0])
    assert all(v.passed for v in checking.compare([exact.half()], [exact], [overflowed.half()], 1))
    assert not all(v.passed for v in checking.compare([overflowed.half()], [exact], [overflowed.half()], 1))


def test_gradients_that_vanish_are_held_to_the_scale_of_the_others() -> None:
    """With one key the softmax is 1: gradients of the scores are zero but for rounding."""
    exact, plain = [torch.ones(4), torch.zeros(4)], [torch.ones(4), torch.zeros(4)]
    noise = torch.full((4,), 1e-3)
    assert all(v.passed for v in checking.compare([exact[0].bfloat16(), noise.bfloat16()], exact, plain, 1))
    assert not all(v.passed for v in checking.compare([exact[0], noise], exact, plain, 1))


@pytest.mark.parametrize("row", TIMED, ids=lambda row: row.label)
def test_peers_agree_with_the_reference(row: Operation) -> None:
    """Every peer that a CPU can run is right in float32; the others say why."""
    tensors = row.inputs(SMALL, torch.float32, "cpu", 0)
    found = peers(row, tensors, compiled=False)
    functions, refused = measuring.accepted(found, row, tensors, checking.expected(row, tensors))
    assert {"reference", "eager"} <= {peer.name for peer in functions[True]}
    assert not [reason for (peer, _), reason in refused.items() if reason.startswith("wrong")]
    assert all(reason for reason in refused.values())
    if row.name.endswith("attention"):
        names = {peer.name for peer in found}
        assert {"batched", "sdpa flash", "sdpa efficient", "sdpa cudnn"} <= names


def test_fused_attention_is_a_peer_where_its_kernel_takes_the_shape() -> None:
    row = operation("co_attention transpose")
    tensors = row.inputs(Size("square", 1, 3, 4, 2, 8, 8), torch.float32, "cpu", 0)
    functions, _ = measuring.accepted(
        peers(row, tensors, compiled=False), row, tensors, checking.expected(row, tensors)
    )
    assert "sdpa flash" in {peer.name for peer in functions[True]}


def test_a_wrong_peer_gets_a_reason_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    row = operation("attention")
    good, bad, broken = (
        Peer("good", True, lambda x: row.plain),
        Peer("bad", False, lambda x: lambda q, k, v: row.plain(q, k, v) * 1.001),
        Peer("broken", False, lambda x: lambda q, k, v: 1 / 0),
    )
    monkeypatch.setattr(measuring, "peers", lambda *arguments: [good, bad, broken])
    lines = measuring.measure(row, TINY, torch.float32, "cpu", wall_clock, rounds=2, compiled=False)
    assert len(lines) == 6
    for line in lines:
        assert ("p50_ms" in line) == (line["peer"] == "good")
        assert ("reason" in line) == (line["peer"] != "good")
    assert lines[1]["reason"].startswith("wrong: output 0")
    assert lines[2]["reason"].startswith("ZeroDivisionError")


def test_a_backend_that_is_wrong_backward_is_timed_forward_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    row = operation("attention")
    half = Peer("half", False, lambda x: lambda q, k, v: row.plain(q, k, v.detach()) + 0 * v.sum())
    monkeypatch.setattr(measuring, "peers", lambda *arguments: [half])
    forward, backward = measuring.measure(row, TINY, torch.float32, "cpu", lambda call: Reading(1.0, 1.0), rounds=2)
    assert forward["p50_ms"] == 1.0
    assert backward["reason"].startswith("wrong: gradient 2")


def test_a_rerouted_operation_keeps_the_rest() -> None:
    row = operation("attention")
    other = rerouted(row, row.plain)
    assert (other.label, other.call, other.exact) == (row.label, row.plain, row.exact)
