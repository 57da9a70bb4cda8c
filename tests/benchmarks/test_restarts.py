"""A GPU that is broken for its process: who has done it is left out, and the next process goes on."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import on_gpu
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import crf as crf_on_gpu
from benchmarks.gpu import preparing
from benchmarks.gpu.checks import Check
from benchmarks.harness import group_step, measuring, restarts
from benchmarks.harness.cases import operation, rerouted
from benchmarks.harness.group_step import StepPeer
from benchmarks.harness.restarts import BrokenGpuError, State
from benchmarks.on_gpu import Job, Run
from gwsss_fast.errors import GwsssError
from gwsss_fast.ops import dispatch
from tests.benchmarks.test_on_gpu import LIMITS, TINY, said


class Card:
    """A GPU that an illegal access breaks for good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dead = False
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", self.check)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def check(self, *_: Any) -> None:
        if self.dead:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def access(self, *_: Any, **__: Any) -> Any:
        self.dead = True
        self.check()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    monkeypatch.setattr(restarts, "left_out", set())
    return Card(monkeypatch)


def test_only_errors_that_stay_break_the_gpu(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not restarts.broken()
    errors = iter([RuntimeError("invalid configuration")])

    def once(*_: Any) -> None:
        for error in errors:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "synchronize", once)
        assert not restarts.broken()
        patch.setattr(torch.cuda, "empty_cache", card.access)  # a capture that has failed and has no end
        assert restarts.broken()
    card.dead = True
    assert restarts.broken()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not restarts.broken()


def test_the_backend_that_broke_the_gpu_is_named_and_checks_end(card: Card) -> None:
    check = gpu_checks.value_check(rerouted(operation("attention"), card.access), TINY, torch.float32, "cpu")
    *_, last = gpu_checks.carry_out([Check("a", "1", list), check, Check("a", "2", list)])
    assert last.check is check
    assert last.broken is not None
    assert last.broken.name.startswith("attention: ")
    assert "illegal memory access" in last.failures[0]


def test_a_check_of_all_backends_is_named_itself(card: Card) -> None:
    check = Check("CUDA graph", "attention", card.access)
    (only,) = gpu_checks.carry_out([check, Check("a", "2", list)])
    assert only.broken is not None
    assert only.broken.name == check.label
    restarts.leave_out([check.label])
    card.dead = False
    assert [outcome.check.name for outcome in gpu_checks.carry_out([check, Check("a", "2", list)])] == ["2"]


def test_a_backend_that_raises_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        calls.append(dispatch.forced())
        if len(calls) == 1:
            raise RuntimeError("no kernel image")
        return operation("attention").plain(*tensors)

    monkeypatch.setattr(gpu_checks, "backends", lambda *given: ["cpp", "reference"])
    monkeypatch.setattr(gpu_checks.ops, "backend", lambda name: contextlib.nullcontext())
    (failure,) = gpu_checks.value_check(rerouted(operation("attention"), call), TINY, torch.float32, "cpu").run()
    assert failure == "cpp: RuntimeError: no kernel image"
    assert len(calls) == 2


def test_peers_and_steps_that_break_the_gpu_are_named(run: Run, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    row = rerouted(operation("attention"), card.access)
    with pytest.raises(BrokenGpuError) as error:
        on_gpu.measure_all(run, [Job(row, TINY, torch.float32, False, 1)], LIMITS)
    assert error.value.name.startswith("attention: ")
    card.dead = False
    monkeypatch.setattr(group_step, "step_peers", lambda *given, **more: [StepPeer("auto", True, card.access)])
    with pytest.raises(BrokenGpuError) as error:
        on_gpu.measure_all(run, [Job(None, TINY, torch.float32, False, 1)], LIMITS)
    assert error.value.name == "group_step: auto"
    card.dead = False
    monkeypatch.setattr(measuring, "measure", card.access)
    with pytest.raises(BrokenGpuError) as error:
        on_gpu.measure_all(run, [Job(row, TINY, torch.float32, False, 1)], LIMITS)
    assert error.value.name == "attention, tiny, float32"
    assert run.measured == [error.value.name]


def test_the_dense_crf_is_named(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crf_on_gpu, "both", card.access)
    check, *_ = crf_on_gpu.checks("cpu", labels=2)
    with pytest.raises(BrokenGpuError, match="dense_crf: cuda broke the GPU"):
        check.run()


def test_what_is_left_out_is_missing_for_everybody(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_registry", {"attention": dict(dispatch._registry["attention"])})
    tensors = operation("attention").inputs(TINY, torch.float32, "cpu", 0)
    restarts.leave_out(["attention: cpp", "attention: sdpa flash", "CUDA graph, attention"])
    assert dispatch.choose("attention", *tensors) == "reference"
    assert str(dispatch.available()["attention"]["cpp"]) == "it broke the GPU"
    with pytest.raises(GwsssError), dispatch.backend("cpp"):
        operation("attention").call(*tensors)
    assert "sdpa flash" not in [peer.name for peer in measuring.peers(operation("attention"), tensors, False)]


def test_the_next_process_knows_what_was_found(
    run: Run, card: Card, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run whose second check breaks the GPU, and the run that goes on: nothing is done twice."""
    done: list[str] = []
    checks = [
        Check("a", "right", lambda: done.append("right") or []),
        Check("a", "wrong", lambda: ["differs"]),
        Check("a", "breaks", card.access),
        Check("a", "last", lambda: done.append("last") or []),
    ]
    for name, value in {"keep_one_cache": (), "build_for": (), "kernels": (0, {}), "native_library": None}.items():
        monkeypatch.setattr(preparing, name, lambda *given, value=value: value)
    monkeypatch.setattr(preparing, "card_of", lambda device: "sm_90")
    monkeypatch.setattr(preparing, "native_library_is_ready", lambda: True)
    monkeypatch.setattr(crf_on_gpu, "checks", lambda device: [])
    monkeypatch.setattr(gpu_checks, "all_checks", lambda device: checks)
    monkeypatch.setattr(on_gpu, "measure_ceilings", lambda run: LIMITS)
    monkeypatch.setattr(on_gpu, "measure_crf", lambda run: run.measured.append("dense_crf"))
    monkeypatch.setattr(on_gpu, "plan", list)
    with pytest.raises(BrokenGpuError) as error:
        on_gpu.everything(run, 1, 100.0)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    assert run.failed == 1  # the wrong one
    restarts.replace_process(run.state(error.value.name), "benchmarks.on_gpu", ["--budget=50"])
    ((program, *words, path),) = started
    assert program == sys.executable
    assert words == ["-m", "benchmarks.on_gpu", "--budget=50", "--state"]
    assert on_gpu.arguments([*words[2:], path]).budget == 50.0

    assert json.loads(Path(path).read_text())["without"] == ["a, breaks"]
    card.dead = False
    state = restarts.read(Path(path))
    assert not Path(path).exists()
    next_run = Run("cpu", on_gpu.Clock(1e6), tmp_path / "next.jsonl", run.console, run.timer, run.step_timer)
    on_gpu.everything(next_run, 1, 50.0, state)
    assert done == ["right", "last"]
    assert next_run.found[-1] == {**next_run.found[-1], "check": "a", "passed": 2, "failed": 1, "skipped": 0}
    assert next_run.failed == 2  # the wrong one and the one that broke the GPU
    assert "CUDA error" in said(next_run)
    assert restarts.read(None) == State()
