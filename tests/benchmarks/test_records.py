"""Lines of results, the table made of them, and the pictures."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import RESULTS, accuracy, plot, resources
from benchmarks.harness import records
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.records import Record
from benchmarks.harness.sizes import PAPER
from benchmarks.harness.timing import NO_TIME, Times
from benchmarks.harness.work import Work

CEILINGS = Ceilings({"bfloat16": 800e12, "float32": 50e12}, 3e12)


def line(peer: str, milliseconds: float | None, ours: bool = False, **more: Any) -> Record:
    base = {"operation": "attention", "pass": "forward", **records.describe(PAPER, torch.bfloat16)}
    record = {**base, "peer": peer, "ours": ours, **more}
    if milliseconds is None:
        return {**record, "reason": "too old"}
    times = Times(0.9 * milliseconds, milliseconds, 1.2 * milliseconds, 0.02, 30)
    return {**record, **records.measured(times, Work(8e11, 3e9), torch.bfloat16, CEILINGS, 2**20)}


def test_rates_and_parts_of_the_ceilings() -> None:
    """8e11 operations at 800e12 a second take 1 ms, 3e9 bytes at 3e12 also: 2 ms is half of each, and of the floor."""
    record = line("triton", 2.0)
    assert record["tflops"] == pytest.approx(400)
    assert record["gb_per_s"] == pytest.approx(1500)
    assert [record[name] for name in ("of_gemm", "of_copy", "of_floor")] == pytest.approx([0.5, 0.5, 0.5])
    assert CEILINGS.floor_ms(Work(8e11, 6e9), "bfloat16") == pytest.approx(2.0)


def test_the_table_says_how_many_times_faster() -> None:
    found = [
        *(line("reference", 8.0, ours=True), line("triton", 2.0, ours=True), line("eager", 6.0), line("batched", 3.0)),
        *(line("compiled eager", 5.0), line("compiled batched", 4.0), line("sdpa flash", None)),
    ]
    (members,) = records.groups(found).values()
    (key,) = records.groups(found)
    cells = dict(zip(records.COLUMNS, records.line(key, members), strict=True))
    assert cells["ours"] == "triton"
    assert (cells["ms"], cells["% gemm"], cells["eager x"], cells["compile x"]) == ("2.000", "50", "3.00", "2.00")
    assert cells["batched x"] == "1.50"
    assert cells["best"] == "1.50 batched"
    assert records.reasons(found) == {("attention", "sdpa flash"): "too old"}
    console = Console(width=170, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(records.table(found, "title"))
    assert "1.50 batched" in console.export_text()


def test_a_case_whose_own_backend_is_wrong_has_no_time_in_the_table() -> None:
    wrong = {**line("triton", None, ours=True), "reason": "wrong: output 0"}
    (row,) = [records.line(key, members) for key, members in records.groups([wrong, line("eager", 1.0)]).items()]
    assert "wrong: output 0" in row
    assert "1.000" not in row


def test_of_a_peer_that_was_measured_again_the_last_line_counts() -> None:
    late = {**line("triton", None, ours=True), "reason": NO_TIME}
    found = [line("triton", 2.0, ours=True), line("eager", 6.0), line("triton", 1.5, ours=True), line("eager", None)]
    (members,) = records.groups([*found, late]).values()
    assert [(record["peer"], record.get("p50_ms")) for record in members] == [("triton", 1.5), ("eager", None)]


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "device.jsonl"
    records.append(path, [{"a": 1}])
    records.append(path, [{"b": None}, {"c": 0.5}])
    assert records.read(path) == [{"a": 1}, {"b": None}, {"c": 0.5}]


def test_a_line_names_its_run() -> None:
    found = records.environment("cpu")
    assert set(found) == {"date", "device", "torch", "cuda", "triton"}
    assert found["torch"] == torch.__version__
    assert re.fullmatch(r"[a-z0-9-]+\.jsonl", records.path_of(Path("x"), "cpu").name)


def test_pictures_are_drawn_from_the_newest_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main(["--results", str(tmp_path)]) == 2
    assert "no times" in capsys.readouterr().err
    records.append(tmp_path / "card.jsonl", [line("triton", 9.0, ours=True), line("triton", 2.0, ours=True)])
    records.append(tmp_path / "card.jsonl", [line("eager", 6.0), line("sdpa flash", None), {"ceiling": "copy"}])
    assert sorted(record["p50_ms"] for record in plot.newest(records.read(tmp_path / "card.jsonl"))) == [2.0, 6.0]
    assert plot.main(["--results", str(tmp_path)]) == 0
    assert (tmp_path / "card.png").stat().st_size > 5000


def test_the_readme_of_the_results_explains_every_column() -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    written = {*line("triton", 2.0, ours=True), *line("x", None), *records.environment("cpu")}
    assert {*records.COLUMNS, *resources.HEADER, *accuracy.HEADER, *written} <= explained


def test_committed_results_can_be_read() -> None:
    for path in RESULTS.glob("*.jsonl"):
        assert all("device" in record for record in records.read(path)), path
