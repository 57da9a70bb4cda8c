"""The CPU's table: what is timed, what its ratios mean, and that a wrong version is a failure without a time."""

import json
from pathlib import Path

import pytest

from benchmarks import cases, on_cpu
from gwsss_fast import ops


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "cpu.jsonl").read_text().splitlines()]


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "small", "--rounds", "2", "--output", str(tmp_path), "--operations", "graph_dropout", "step"]
    assert on_cpu.main(words) == 0
    found = {(line["operation"], line["pass"], line["version"]): line for line in lines(tmp_path) if "p50_ms" in line}
    assert {key[1] for key in found if key[0] == "graph_dropout"} == {"forward", "backward"}
    assert ("GroupGNN step", "both", "auto bfloat16") in found
    for (operation, one_pass, _), line in found.items():
        first = found[operation, one_pass, on_cpu.FIRST]
        assert line["faster"] == pytest.approx(first["p50_ms"] / line["p50_ms"])
    assert "matrix product: float32" in capsys.readouterr().out


def test_a_wrong_version_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cases.operation("graph_dropout")
    factors = {"reference": 1.0}  # cpp, which "auto" takes too, is off by one per cent
    wrong = cases.rerouted(right, lambda *x: factors.get(ops.dispatch.forced(), 1.01) * right.call(*x))
    if not ops.available()["graph_dropout"]["cpp"]:
        pytest.skip(str(ops.available()["graph_dropout"]["cpp"]))
    monkeypatch.setattr(on_cpu, "OPERATIONS", [wrong])
    words = ["--size", "small", "--rounds", "1", "--output", str(tmp_path), "--operations", "graph_dropout"]
    assert on_cpu.main(words) == 1
    own = [line for line in lines(tmp_path) if line["version"].startswith("cpp")]
    assert own
    assert all(line["reason"].startswith("wrong") and "p50_ms" not in line for line in own)
