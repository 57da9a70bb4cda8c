"""The CPU's table: what is timed, what its ratios mean, and that a wrong version is a failure without a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import on_cpu
from benchmarks.harness import cases, floors, peers
from benchmarks.harness.sizes import DTYPES, SMALL
from gwsss_fast import ops
from gwsss_fast.native import products


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "cpu.jsonl").read_text().splitlines()]


def run(folder: Path, *words: str) -> int:
    return on_cpu.main(["--size", "small", "--rounds", "2", "--output", str(folder), *words])


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--no-compile", "--operations", "graph_dropout", "conv_gru kernel 1", "step") == 0
    found = {(line["operation"], line["pass"], line["version"]): line for line in lines(tmp_path) if "p50_ms" in line}
    assert {key[1] for key in found if key[0] == "graph_dropout"} == {"forward", "backward"}
    assert ("GroupGNN step", "both", "auto bfloat16") in found
    assert not [key for key in found if "compiled" in key[2]]
    for (operation, one_pass, _), line in found.items():
        first = found[operation, one_pass, on_cpu.FIRST]
        assert line["faster"] == pytest.approx(first["p50_ms"] / line["p50_ms"])
    alone = {key for key, line in found.items() if line.get("floor")}
    assert alone == {
        *(("graph_dropout", "forward", f"copy alone {dtype}") for dtype in on_cpu.DTYPE_NAMES),
        *(("graph_dropout", "backward", f"sum alone {dtype}") for dtype in on_cpu.DTYPE_NAMES),
        *(("conv_gru kernel 1", x, f"products alone {y}") for x in ("forward", "backward") for y in on_cpu.DTYPE_NAMES),
    }
    told = capsys.readouterr().out
    assert "matrix product: float32" in told
    assert "float32 by oneDNN" in told


def test_compiled_versions_are_timed_or_say_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        if function is operation.plain:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")
        return function

    operation = cases.operation("graph_dropout")
    monkeypatch.setattr(peers, "compiled_function", compiled)
    assert run(tmp_path, "--operations", "graph_dropout") == 0
    found = {(line["pass"], line["version"]): line for line in lines(tmp_path)}
    for one_pass in ("forward", "backward"):
        for dtype in on_cpu.DTYPE_NAMES:
            assert found[one_pass, f"compiled eager {dtype}"]["p50_ms"] > 0
            failed = found[one_pass, f"compiled batched {dtype}"]
            assert "No working C++ compiler" in failed["reason"]
            assert "p50_ms" not in failed


@pytest.mark.parametrize(("short", "count"), [(0.0, 2), (1e9, 2 * on_cpu.OFTEN)])
def test_short_calls_are_timed_more_often(
    short: float, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_cpu, "SHORT_MS", short)
    assert run(tmp_path, "--no-compile", "--operations", "graph_dropout") == 0
    assert {line["count"] for line in lines(tmp_path)} == {count}


def test_inputs_that_are_moved_are_in_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 <= floors.last_cache() <= 2**31
    monkeypatch.setattr(floors, "last_cache", lambda: 5e5)
    for label, rotates in (("graph_dropout", True), ("conv_gru kernel 1", False)):
        operation = cases.operation(label)
        calls = on_cpu.calls_of(operation, SMALL, False, {name: {False: {}, True: {}} for name in on_cpu.DTYPE_NAMES})
        for version, made in calls.items():
            moved = operation.work(SMALL, DTYPES[version.split()[-1]], False).bytes
            assert len(made) % 2 == rotates
            assert (len(made) * moved > 1.5e6) if rotates else len(made) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_products_alone_are_those_of_the_operation(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many multiplications as the formula counts, forward and backward."""
    operation, counted = cases.operation("conv_gru kernel 1"), []
    product = products.product

    def counting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        counted.append(2 * x.shape[0] * weight.numel())
        return product(x, weight, bias)

    monkeypatch.setattr(products, "product", counting)
    for backward in (False, True):
        counted.clear()
        floors.calls(operation, [operation.inputs(SMALL, dtype, "cpu", 0)], backward)["products alone"][0]()
        assert sum(counted) == operation.work(SMALL, dtype, backward).flops


def test_a_wrong_version_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cases.operation("graph_dropout")
    factors = {"reference": 1.0}  # cpp, which "auto" takes too, is off by one per cent
    wrong = cases.rerouted(right, lambda *x: factors.get(ops.dispatch.forced(), 1.01) * right.call(*x))
    if not ops.available()["graph_dropout"]["cpp"]:
        pytest.skip(str(ops.available()["graph_dropout"]["cpp"]))
    monkeypatch.setattr(on_cpu, "operation", lambda name: wrong)
    assert run(tmp_path, "--no-compile", "--operations", "graph_dropout") == 1
    own = [line for line in lines(tmp_path) if line["version"].startswith("cpp")]
    assert own
    assert all(line["reason"].startswith("wrong") and "p50_ms" not in line for line in own)
