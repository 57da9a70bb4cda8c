"""Rows chosen from what the compiler says, without a GPU and without compiling."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tune
from benchmarks.gpu import compile_ahead, preparing
from benchmarks.gpu.compile_ahead import Report
from benchmarks.gpu.launches import Job
from benchmarks.harness.sizes import DTYPES
from gwsss_fast.launch import tuning
from gwsss_fast.launch.launcher import Tiles, launch
from gwsss_fast.launch.tuning import Request

KEY = {"C": 512, "dtype": "bfloat16"}


class Kernel:
    """As much of a Triton kernel as a recorded start keeps."""

    @staticmethod
    def fn() -> None:
        """Its source."""


def run(tiles: Tiles) -> None:
    launch(Kernel, (3,), torch.empty(4, device="meta"), 16, tiles=tiles)


def size(value: int) -> Tiles:
    return Tiles({"BLOCK_M": value}, num_warps=4, num_stages=2)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> dict[int, Report]:
    """Reports by block size, in place of compiling."""
    found: dict[int, Report] = {}

    def read(jobs: Any, workers: int, folder: Path | None) -> Any:
        for job in jobs:
            yield job, found[dict(job.constants)["BLOCK_M"]]

    monkeypatch.setattr(compile_ahead, "reports", read)
    return found


def rows(card: str = "sm_90") -> tuple[list[dict[str, Any]], list[str]]:
    request = Request("kernel", KEY, size(128), (size(64), size(32)), run)
    return tune.chosen_rows([request], card, 1, None)


def test_a_heuristic_without_a_problem_is_taken(reports: dict[int, Report]) -> None:
    reports[128] = Report(tensor_core={"HGMMA": 4}, wants_tensor_core=True)
    assert rows() == ([tuning.to_row(KEY, size(128))], [])


def test_the_first_candidate_without_a_problem_is_taken(reports: dict[int, Report]) -> None:
    reports[128], reports[64], reports[32] = Report(spill_loads=4), Report(shared=10**6), Report()
    assert rows() == ([tuning.to_row(KEY, size(32))], [])


def test_the_slow_path_of_a_card_is_a_problem_of_that_card(reports: dict[int, Report]) -> None:
    slow = Report(tensor_core={"HMMA": 4}, wants_tensor_core=True)
    reports[128], reports[64] = slow, Report(tensor_core={"HGMMA": 4}, wants_tensor_core=True)
    assert rows("sm_80") == ([tuning.to_row(KEY, size(128))], [])
    assert rows("sm_90")[0] == [tuning.to_row(KEY, size(64))]
    reports[64] = reports[32] = slow
    chosen, unhelped = rows("sm_90")
    assert not chosen
    assert "no candidate is without a problem" in unhelped[0]


def test_the_file_says_that_nothing_was_measured(
    reports: dict[int, Report], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = Request("kernel", KEY, size(128), (size(64),), run)
    monkeypatch.setattr(tune, "asked", lambda sizes, dtypes, card: {"kernel": {"key": request}})
    reports[128], reports[64] = Report(spill_loads=4), Report()
    assert tune.from_resources(["sm_90"], 1, tmp_path) == 0
    content = json.loads((tmp_path / "sm_90.json").read_text())
    assert content["about"].startswith("Not measured")
    assert tuning.read_table(tmp_path / "sm_90.json")["kernel"] == [(KEY, size(64))]
    reports[128] = Report()
    assert tune.from_resources(["sm_80"], 1, tmp_path) == 0
    assert tuning.read_table(tmp_path / "sm_80.json")["kernel"] == [(KEY, size(128))]


def test_shipping_names_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path / "own"))
    tuning.keep("sm_90", "kernel", KEY, size(64))
    content = json.loads(tune.ship("sm_90", "cpu", tmp_path / "shipped").read_text())
    assert content["about"].startswith("Measured by")
    assert content["kernels"] == {"kernel": [tuning.to_row(KEY, size(64))]}


def test_shipping_keeps_the_rows_that_were_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GWSSS_CACHE", str(tmp_path / "own"))
    other, new = {**KEY, "C": 64}, {**KEY, "C": 32}
    rows = {"kernel": [tuning.to_row(other, size(16)), tuning.to_row(KEY, size(32))]}
    (tmp_path / "sm_90.json").write_text(json.dumps({"about": "Not measured.", "kernels": rows}))
    tuning.keep("sm_90", "kernel", KEY, size(64))
    tuning.keep("sm_90", "kernel", new, size(128))
    content = json.loads(tune.ship("sm_90", "cpu", tmp_path).read_text())
    assert "; 1 rows as they were before" in content["about"]
    expected = [(other, size(16)), (KEY, size(64)), (new, size(128))]
    assert content["kernels"] == {"kernel": [tuning.to_row(*row) for row in expected]}


def test_all_that_is_timed_is_compiled_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By several processes, in whose cache the first start finds it."""
    requests = {
        name: Request("kernel", KEY, size(128), (size(64), size(128), last), run) for name, last in LAST.items()
    }
    monkeypatch.setattr(tune, "asked", lambda sizes, dtypes, card: {"kernel": requests})
    monkeypatch.setattr(preparing, "keep_one_cache", lambda: None)
    given: list[Any] = []

    def in_processes(function: Any, jobs: Any, workers: int) -> Any:
        given.extend([function, workers])
        for job in jobs:
            given.append(dict(job.constants)["BLOCK_M"])
            yield job, "too large" if given[-1] == 64 else None

    monkeypatch.setattr(compile_ahead, "in_processes", in_processes)
    assert tune.compile_candidates([tune.PAPER], ["bfloat16"], "sm_90", 5) == (3, 1)
    assert given == [preparing.make_ready, 5, 128, 64, 16, 32]


LAST = {"one": size(16), "other": size(32)}


def test_launchers_ask_with_candidates_that_can_be_recorded() -> None:
    """Every key once; and what a request runs is what the compiler is asked about."""
    found = tune.asked([tune.PAPER], ["bfloat16"], "sm_90")
    assert {"graph_dropout.forward", "graph_dropout.backward"} <= set(found)
    for requests in found.values():
        for request in requests.values():
            jobs = tune.jobs_of(request, request.candidates[0], "sm_90")
            assert jobs
            assert all(isinstance(job, Job) and job.card == "sm_90" for job in jobs)


@pytest.mark.parametrize("card", ["sm_80", "sm_90"])
def test_the_shipped_tables_know_what_the_launchers_ask(card: str) -> None:
    """One row for every question at these sizes and none besides."""
    shipped = tuning.read_table(tuning.SHIPPED / f"{card}.json")
    asked = tune.asked(tune.SIZES, DTYPES, card)
    assert {name: [key for key, _ in rows] for name, rows in shipped.items()} == {
        name: [request.key for request in requests.values()] for name, requests in asked.items()
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is what a machine without a GPU says")
def test_without_a_gpu_tuning_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main([]) == 2
    assert "no CUDA GPU" in capsys.readouterr().err
