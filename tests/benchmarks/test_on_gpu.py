"""The one command for a GPU: what of it can run without one, with a timer and a clock that are not real."""

from pathlib import Path

import pytest
import torch

from benchmarks import on_gpu
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu.checks import Check
from benchmarks.harness import group_step, measuring, records
from benchmarks.harness.cases import operation, rerouted
from benchmarks.harness.ceilings import Ceilings, measure
from benchmarks.harness.sizes import Size
from benchmarks.harness.timing import Reading
from benchmarks.on_gpu import Clock, Job, Run

TINY = Size("tiny", 1, 2, 3, 2, 8, 4, steps=2)
LIMITS = Ceilings({"float32": 1e11, "bfloat16": 1e11}, 1e10)


def said(run: Run) -> str:
    return run.console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a machine without a GPU says")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert on_gpu.main(["--output", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "no CUDA GPU" in told.err
    assert not told.out
    assert not list(tmp_path.iterdir())


def test_operations_are_measured_and_written(run: Run) -> None:
    jobs = [Job(operation("attention"), TINY, torch.float32, False, 1), Job(None, TINY, torch.float32, False, 1)]
    on_gpu.measure_all(run, jobs, LIMITS)
    on_gpu.last_words(run)
    lines = records.read(run.path)  # type: ignore[arg-type]
    assert lines == run.found
    timed = [line for line in lines if "p50_ms" in line]
    assert {line["operation"] for line in timed} == {"attention", "group_step"}
    assert all(line["p50_ms"] == 2.0 and line["host_ms"] == 0.5 and line["count"] == 2 for line in timed)
    assert {"auto", "reference", "eager", "batched"} <= {line["peer"] for line in timed}
    assert "not timed: attention, sdpa efficient" in said(run)
    assert "pydensecrf" in said(run)
    assert said(run).index("0 checks failed") < said(run).rindex("operation")  # the table is last
    assert not run.failed


def test_what_no_time_is_left_for_is_named(run: Run) -> None:
    now = [0.0]
    run.clock = Clock(100.0, lambda: now[0])

    def slow(call) -> Reading:  # type: ignore[no-untyped-def]
        now[0] += 30.0
        return Reading(1.0, 1.0)

    run.timer = slow
    jobs = [Job(row, TINY, torch.float32, False, 20) for row in (operation("graph_dropout"), operation("attention"))]
    on_gpu.measure_all(run, jobs, LIMITS)
    on_gpu.last_words(run)
    assert run.skipped == ["attention, tiny, float32"]
    assert "NO TIME WAS LEFT for: attention, tiny, float32" in said(run)


def test_a_wrong_backend_is_counted_and_has_no_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = rerouted(operation("attention"), lambda q, k, v: operation("attention").plain(q, k, v) * 1.01)
    monkeypatch.setattr(measuring.checking, "expected", lambda row, tensors: expected(operation("attention"), tensors))
    on_gpu.measure_all(run, [Job(wrong, TINY, torch.float32, False, 1)], LIMITS)
    assert run.failed
    assert not [line for line in run.found if line["ours"] and "p50_ms" in line]


expected = measuring.checking.expected


def test_one_broken_case_does_not_cost_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = measuring.measure

    def measured(row, *rest, **options):  # type: ignore[no-untyped-def]
        if row.name == "attention":
            raise RuntimeError("out of memory\nand more")
        return original(row, *rest, **options)

    monkeypatch.setattr(measuring, "measure", measured)
    rows = (operation("attention"), operation("graph_dropout"))
    on_gpu.measure_all(run, [Job(row, TINY, torch.float32, False, 1) for row in rows], LIMITS)
    assert run.failed == 1
    assert "attention, tiny, float32: RuntimeError: out of memory" in said(run)
    assert {line["operation"] for line in run.found} == {"graph_dropout"}


def test_the_checks_pass_here(run: Run) -> None:
    """Interpreted kernels and the other backends, in the dtypes that the interpreter rounds as a GPU does."""
    rows = [operation("graph_dropout")]
    checks = gpu_checks.all_checks("cpu", (TINY,), (torch.float32, torch.float16), rows)
    groups = {check.group for check in checks}
    assert {"values and gradients", "every result is written", "any strides", "deterministic", "opcheck"} <= groups
    assert {"torch.compile", "GroupGNN step"} <= groups
    on_gpu.check_all(run, checks, until=0)
    assert not run.failed, said(run)
    assert sum(line["passed"] for line in run.found) == len(checks)


def test_checks_that_fail_break_or_come_too_late_are_told_apart(run: Run) -> None:
    now = [0.0]
    run.clock = Clock(100.0, lambda: now[0])

    def late() -> list[str]:
        now[0] = 99.0
        raise ValueError("no")

    checks = [Check("a", "1", list), Check("a", "2", lambda: ["differs"]), Check("a", "3", late), Check("a", "4", list)]
    on_gpu.check_all(run, checks, until=10)
    assert run.found[0]["passed"] == 1
    assert (run.found[0]["failed"], run.found[0]["skipped"], run.failed) == (2, 1, 2)
    assert "WRONG a, 2: differs" in said(run)
    assert "WRONG a, 3: ValueError: no" in said(run)
    assert "1 skipped for lack of time" in said(run)
    assert run.unchecked == 1


@pytest.mark.parametrize("kind", ["value_check", "poison_check", "layout_check", "repeat_check"])
def test_each_check_sees_a_wrong_operation(kind: str) -> None:
    calls = [0]

    def unsteady(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return operation("attention").plain(q, k, v) * (1 + 0.05 * (calls[0] % 3))

    right = operation("attention")
    row = rerouted(right, unsteady)
    extra = {"value_check": (TINY, torch.float32), "repeat_check": (TINY,)}.get(kind, ())
    assert getattr(gpu_checks, kind)(row, *extra, "cpu").run()
    assert not getattr(gpu_checks, kind)(right, *extra, "cpu").run()


def test_the_operators_own_calls_are_found_with_their_gradients() -> None:
    row = operation("co_attention directed")
    leaves = [x.requires_grad_() for x in row.inputs(TINY, torch.float32, "cpu", 0)]
    with gpu_checks.OwnCalls() as own:
        row.call(*leaves)
    ((function, arguments),) = own.calls
    assert function.name() == "gwsss_fast::co_attention"
    assert [x.requires_grad for x in gpu_checks.with_gradients(arguments)[:3]] == [True] * 3
    assert "directed" in arguments


def test_memory_is_poisoned_inside_the_block_only() -> None:
    with gpu_checks.poisoned():
        assert torch.empty(1000).isnan().all()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_strided_tensors_hold_the_same_values() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(gpu_checks.strided(x), x)
    assert not gpu_checks.strided(x).is_contiguous()


def test_ceilings_are_rates() -> None:
    found = measure("cpu", lambda call: Reading(2.0, 0.5), (torch.float32,), side=64, values=1000, rounds=1)
    assert found.flops["float32"] == pytest.approx(2 * 32**3 / 2e-3)
    assert found.bandwidth == pytest.approx(2 * 2 * 1000 / 2e-3)


def test_the_plan_begins_with_the_target_and_fits_the_budget() -> None:
    jobs = on_gpu.plan()
    assert jobs[0].label == "co_attention transpose, paper-8, bfloat16"
    assert {"group_step, paper-8, bfloat16", "group_step, large, bfloat16"} <= {job.label for job in jobs}
    assert on_gpu.BUDGET_S + on_gpu.RESERVE_S <= 480
    assert {job.size.name for job in jobs} == {"paper", "paper-8", "large"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_to_run_a_step_agrees(dtype: torch.dtype) -> None:
    wanted = group_step.expected(TINY, dtype, "cpu")
    for peer in group_step.step_peers("cpu", compiled=False):
        if peer.name == "auto" or dtype == torch.float32 or peer.name == "batched":
            assert group_step.ready(peer, TINY, dtype, "cpu", wanted)[1] is None, peer.name


def test_a_step_that_is_wrong_is_refused() -> None:
    wanted = group_step.expected(TINY, torch.float32, "cpu")

    def spoiled(step: group_step.Step) -> group_step.Function:
        return lambda: [1.001 * x for x in step.run()]

    function, reason = group_step.ready(group_step.StepPeer("x", True, spoiled), TINY, torch.float32, "cpu", wanted)
    assert function is None
    assert str(reason).startswith("wrong: output 0")


def test_functions_stand_in_for_the_operators_only_inside_the_block() -> None:
    from gwsss_fast import ops

    before = ops.attention
    with group_step.functions({"attention": len}):
        assert ops.attention is len
    assert ops.attention is before
