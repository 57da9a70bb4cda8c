"""What the compiler is told of a recorded start."""

import pytest
import torch

from benchmarks.gpu import launches
from benchmarks.gpu.launches import Pointer
from benchmarks.harness.cases import operation
from benchmarks.harness.sizes import ODD, PAPER
from gwsss_fast import ops


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        *[(1, 1), (0, 16), (16, 16), (784, 16), (7, 3), (-32, 16), (2**31, 2**32 + 16), (2**31 + 1, 2**32 + 3)],
        *[(0.8, 0.5), (True, True), (None, None)],
    ],
)
def test_numbers_are_reduced_to_their_kind(value: object, seen: object) -> None:
    found = launches.kind(value)
    assert found == seen
    assert type(found) is type(seen)


def test_tensors_are_reduced_to_dtype_and_alignment() -> None:
    x = torch.empty(64, dtype=torch.float16, device="meta")
    assert launches.kind(x) == Pointer("float16", True)
    assert launches.kind(x[8:]) == Pointer("float16", True)
    assert launches.kind(x[5:]) == Pointer("float16", False)


def test_other_arguments_are_a_mistake() -> None:
    with pytest.raises(TypeError, match="only tensors, numbers and None"):
        launches.kind("text")


def test_a_forward_and_a_backward_pass_are_recorded_without_running() -> None:
    forward, backward = launches.recorded(operation("graph_dropout"), PAPER, torch.float16, "sm_90")
    assert {launch.kernel.fn.__name__ for launch in forward} == {"channel_mean", "scale"}
    assert [launch.kernel.fn.__name__ for launch in backward] == ["scale_backward"]
    assert all(isinstance(x, torch.Tensor) is False or x.device.type == "meta" for x in forward[0].arguments)


def test_equal_starts_are_one_job_with_all_its_uses() -> None:
    found = launches.jobs([PAPER, ODD[3]], ["float16"], ["sm_80", "sm_90"], [operation("graph_dropout")])
    kernels = {(job.kernel, job.card) for job in found}
    assert len(kernels) == 6
    assert all(len(set(uses)) == len(uses) for uses in found.values())
    again = launches.jobs([PAPER, PAPER], ["float16"], ["sm_90"], [operation("graph_dropout")])
    assert len(again) == 3


def test_what_triton_cannot_take_has_a_reason() -> None:
    assert launches.refusal(operation("graph_dropout"), PAPER, torch.float16) is None
    assert "float64" in str(launches.refusal(operation("graph_dropout"), PAPER, torch.float64))


def test_operations_take_meta_tensors() -> None:
    """Shapes without values, also with autocast on for the CPU."""
    g = torch.empty(2, 3, 7, 8, device="meta")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.attention(g, g, g).shape == g.shape
    assert ops.graph_dropout(g, torch.empty(2, device="meta")).device.type == "meta"
