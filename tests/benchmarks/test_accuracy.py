"""The comparison with float64: what it finds on a small size, and the committed table of the paper's."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import RESULTS, accuracy
from benchmarks.harness.cases import operation, rerouted
from benchmarks.harness.sizes import DTYPES, PAPER, SMALL
from gwsss_fast import ops
from gwsss_fast.launch import launcher

pytestmark = pytest.mark.skipif(launcher.missing() is not None, reason=str(launcher.missing()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_our_kernels_pass_and_wrong_ones_do_not() -> None:
    attention = operation("attention")
    found = accuracy.rows(attention, SMALL, "float16", DEVICE)
    assert [row.tensor for row in found] == list(accuracy.NAMES)
    assert all(row.passed and 0 < row.mean < row.largest < 2e-3 for row in found)
    wrong = rerouted(attention, lambda q, k, v: 1.01 * ops.attention(q, k, v))
    assert not any(row.passed for row in accuracy.rows(wrong, SMALL, "float16", DEVICE))


@pytest.mark.parametrize("passed", [True, False])
def test_the_command(passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = accuracy.Row("attention", "small", "float32", "result", 2e-7, 1e-7, 1e-8, 2e-8, passed)
    monkeypatch.setattr(accuracy, "rows", lambda *rest: [row])
    assert accuracy.main(["--size", "small", "--dtypes", "float32", "--output", str(tmp_path)]) == int(not passed)
    text = (tmp_path / "accuracy.md").read_text()
    assert "| attention | small | float32 | result | 2.00e-07 | 1.00e-07 | 2.00 | 1.00e-08 | 2.00e-08 | 0.50 |" in text
    assert f"{int(not passed) * 2} beyond" in text
    assert json.loads((tmp_path / "accuracy.json").read_text())["sources"] == accuracy.kernel_sources()


def test_only_a_whole_run_replaces_the_committed_table() -> None:
    assert accuracy.arguments([]).output == accuracy.RESULTS
    assert accuracy.arguments(["--dtypes", "float32"]).output is None


def test_the_committed_table_is_of_the_present_kernels_and_within_the_rule() -> None:
    content = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    assert content["sources"] == accuracy.kernel_sources(), "run python -m benchmarks.accuracy and commit its files"
    found = [accuracy.Row(**row) for row in content["rows"]]
    assert {(row.operation, row.dtype) for row in found} == {(name, x) for name in accuracy.LABELS[:2] for x in DTYPES}
    assert all(row.passed and row.size == PAPER.name for row in found)
    assert all(row.largest <= 3 * row.plain_largest and row.mean <= 2 * row.plain_mean for row in found)
