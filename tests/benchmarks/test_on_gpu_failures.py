"""What the command for a GPU counts as a failure, and what its checks of whole steps and of repeated runs see.

Without a GPU: a timer, a clock, a capture and a compiler that are not real.
"""

import time
from typing import Any

import pytest
import torch

from benchmarks import on_gpu
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import crf as crf_on_gpu
from benchmarks.gpu import preparing
from benchmarks.gpu.checks import Check
from benchmarks.harness import group_step
from benchmarks.harness.cases import Operation, operation, rerouted
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.group_step import StepPeer
from benchmarks.harness.peers import Peer
from benchmarks.on_gpu import Clock, Job, Run
from tests.benchmarks.test_on_gpu import LIMITS, TINY, said

STEP = Job(None, TINY, torch.float32, False, 1)


def broken(step: group_step.Step) -> group_step.Function:
    raise RuntimeError("capture failed")


def step_peers(monkeypatch: pytest.MonkeyPatch, *found: StepPeer) -> None:
    monkeypatch.setattr(group_step, "step_peers", lambda *arguments, **options: list(found))


def test_our_own_step_that_raises_is_a_failure_and_a_peers_is_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step_peers(
        monkeypatch,
        *(StepPeer("auto", True, group_step._ours), StepPeer("auto, CUDA graph", True, broken)),
        StepPeer("eager", False, broken),
    )
    on_gpu.measure_all(run, [STEP], LIMITS)
    assert run.failed == 1
    assert run.status == 1
    assert "FAILED group_step, tiny, float32, step, auto, CUDA graph: RuntimeError: capture failed" in said(run)


def test_our_own_backend_that_raises_is_a_failure(run: Run) -> None:
    def raising(*tensors: torch.Tensor) -> None:
        raise RuntimeError("no kernel image")

    row = rerouted(operation("attention"), raising)
    on_gpu.measure_all(run, [Job(row, TINY, torch.float32, False, 1)], LIMITS)
    own = [line for line in run.found if line["ours"]]
    assert own
    assert all("no kernel image" in line["reason"] for line in own)
    assert run.failed == len(own)


def test_what_takes_too_long_is_no_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(tensors: list[torch.Tensor]) -> Any:
        time.sleep(5)

    monkeypatch.setattr(on_gpu, "PEER_LIMIT_S", 0.05)
    monkeypatch.setattr(on_gpu.measuring, "peers", lambda *arguments: [Peer("triton", True, endless)])
    on_gpu.measure_all(run, [Job(operation("attention"), TINY, torch.float32, False, 1)], LIMITS)
    assert [line["reason"] for line in run.found] == ["TimeLimitError: given up after 0 s"] * 2
    assert not run.failed
    run.judge([{"ours": True, "pass": "step", "peer": "auto", "reason": "no time was left"}], "group_step")
    assert run.status == 0


def test_the_dense_crf_that_does_not_run_is_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"operation": "dense_crf", "pass": "psa", "size": "x", "dtype": "float32", "peer": "cuda", "ours": True}]
    monkeypatch.setattr(crf_on_gpu, "measure", lambda *arguments: [{**lines[0], "reason": "RuntimeError: launch"}])
    on_gpu.measure_crf(run)
    assert run.failed == 1


def test_checks_that_are_not_reached_fail_the_run(run: Run) -> None:
    run.clock = Clock(0.0)
    on_gpu.check_all(run, [Check("a", "1", list), Check("a", "2", list)])
    on_gpu.last_words(run)
    assert (run.failed, run.unchecked, run.status) == (0, 2, 1)
    assert "0 checks failed, 2 were not reached" in said(run)


def test_a_check_that_does_not_end_is_given_up(run: Run) -> None:
    run.clock = Clock(on_gpu.RESERVE_S + 0.3)
    on_gpu.check_all(run, [Check("a", "1", lambda: [str(time.sleep(20))])])
    assert run.failed == 1
    assert "given up after" in said(run)


@pytest.mark.parametrize(("reason", "lacking", "failed"), [(None, False, 0), ("no nvcc", True, 0), ("nvcc", False, 1)])
def test_only_a_missing_nvcc_is_no_failure(
    reason: str | None,
    lacking: bool,
    failed: int,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preparing, "native_library", lambda seconds: reason)
    monkeypatch.setattr(preparing, "lacks_nvcc", lambda: lacking)
    assert on_gpu.build_library(run, 1.0) is (reason is None)
    assert run.failed == failed
    assert (reason or "ready") in said(run)


def test_the_checks_have_more_than_half_of_the_budget(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building and compiling, side by side, take all that they are given, the checks take the rest."""
    now, asked = [0.0], []
    run.clock = Clock(100.0, lambda: now[0])

    def kernels(card: str, workers: int, seconds: float) -> tuple[int, dict[Any, None]]:
        asked.append((card, seconds))
        now[0] += seconds
        return 9, {}

    def late() -> list[str]:
        now[0] += 30.0
        return []

    monkeypatch.setattr(preparing, "keep_one_cache", lambda: None)
    monkeypatch.setattr(preparing, "build_for", lambda card: asked.append((card, 0.0)))
    monkeypatch.setattr(preparing, "native_library", lambda seconds: asked.append(("native", seconds)))
    monkeypatch.setattr(preparing, "kernels", kernels)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(crf_on_gpu, "checks", lambda device: [])
    monkeypatch.setattr(gpu_checks, "all_checks", lambda device: [Check("a", "1", late), Check("a", "2", late)])
    monkeypatch.setattr(on_gpu, "measure_ceilings", lambda run: Ceilings({}, 1.0))
    on_gpu.everything(run, 3, 100.0)
    assert asked[0] == ("sm_90", 0.0)
    assert {name: seconds < 50 for name, seconds in asked[1:]} == {"sm_90": True, "native": True}
    assert run.found[0] == {**run.found[0], "check": "a", "passed": 2, "skipped": 0}
    assert "9 left for want of time" in said(run)
    assert len(run.skipped) == len(on_gpu.plan()) + 1  # and the dense CRF


def test_kernels_that_cannot_be_compiled_ahead_do_not_end_the_run(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kernels(*arguments: Any) -> None:
        raise RuntimeError("a process was killed")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(preparing, "kernels", kernels)
    on_gpu.compile_all(run, 2, 1.0)
    assert "a process was killed" in said(run)


def test_the_memory_of_a_replayed_graph_is_not_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step_peers(
        monkeypatch,
        StepPeer("auto", True, group_step._ours),
        StepPeer("auto, CUDA graph", True, group_step._ours, replayed=True),
    )
    monkeypatch.setattr(on_gpu, "peak_bytes", lambda call, device: 123)
    on_gpu.measure_all(run, [STEP], LIMITS)
    assert {line["peer"]: line["peak_bytes"] for line in run.found} == {"auto": 123, "auto, CUDA graph": None}
    assert all(peer.replayed == ("graph" in peer.name) for peer in original("cuda:0"))


original = group_step.step_peers


def test_a_gpu_also_gets_captured_and_compiled_steps() -> None:
    checks = gpu_checks.all_checks("cuda:0", (TINY,), (torch.float32, torch.bfloat16), [operation("graph_dropout")])
    named = [(check.group, check.name) for check in checks if "step" in check.group]
    assert ("captured GroupGNN step", "tiny, torch.float32") in named
    assert ("captured GroupGNN step", "tiny, torch.bfloat16") in named
    assert named[-1] == ("compiled GroupGNN step", "tiny, torch.bfloat16")


def test_a_captured_step_must_follow_new_values(monkeypatch: pytest.MonkeyPatch) -> None:
    check = gpu_checks.captured_step_check(torch.float32, TINY, "cpu")

    def stale(step: group_step.Step) -> group_step.Function:
        results = step.run()
        return lambda: results

    monkeypatch.setattr(group_step, "captured_step", stale)
    assert check.run()
    monkeypatch.setattr(group_step, "captured_step", lambda step: step.run)
    assert not check.run()


def test_a_compiled_step_must_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    check = gpu_checks.compiled_step_check(torch.float32, TINY, "cpu")
    given: list[dict[str, Any]] = []

    def compiler(factor: float) -> Any:
        def compiled(function: Any, **options: Any) -> Any:
            given.append(options)
            return lambda: factor * function()

        return compiled

    monkeypatch.setattr(torch, "compile", compiler(1.01))
    assert check.run()
    monkeypatch.setattr(torch, "compile", compiler(1.0))
    assert not check.run()
    assert all(options["fullgraph"] and "backend" not in options for options in given)  # inductor


def test_repeated_runs_are_compared_with_deterministic_convolutions() -> None:
    seen: list[bool] = []
    right = operation("conv_gru kernel 3")

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cudnn.deterministic)
        return right.plain(*tensors)

    row: Operation = rerouted(right, call)
    assert not gpu_checks.repeat_check(row, TINY, "cpu").run()
    assert seen
    assert all(seen)
    assert not torch.backends.cudnn.deterministic
