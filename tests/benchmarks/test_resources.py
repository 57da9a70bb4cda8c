"""Kernels compiled for cards that are not here: nothing spills, all fits, products run on tensor cores.

This run compiles every shipped configuration: for each card each kernel function with all tiles, warps and stages that
the shipped tables and the rules beside them give, in each width of elements. Every variant of those (sizes that 16
divides or not, float16 or bfloat16, flags) takes an hour of one core; they are in the table that `python -m
benchmarks.resources` writes to `benchmarks/results`, which is read here, and fails where it lists a problem or is not
of the present kernels, tiles and sizes.
"""

import ast
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import resources
from benchmarks.gpu import compile_ahead
from benchmarks.gpu.compile_ahead import Report
from benchmarks.gpu.launches import Job, Pointer, Use
from benchmarks.harness.sizes import ARITHMETICS
from gwsss_fast.launch import tuning

ROOT = Path(__file__).resolve().parents[2]

# Compiles what stands in this module's own kernels and in ours, in a process where Triton does not interpret.
PROBE = """
import dataclasses, json, sys
from benchmarks.gpu import compile_ahead
from benchmarks.gpu import launches
from benchmarks.harness.cases import operation
from benchmarks.gpu.launches import Job, Pointer
from benchmarks.harness.sizes import PAPER, ODD
import torch

def product(block, stages, dtype, allow_tf32):
    pointers = (Pointer(dtype, True),) * 2 + (Pointer("float32", True),)
    constants = (("BLOCK", block), ("PRECISION", "tf32" if allow_tf32 else "ieee"))
    return Job("tests.absurd_kernels", "product", (*pointers, 16), constants, 8, stages, "sm_90")

def row_sums(width):
    constants = (("WIDTH", width),)
    arguments = (Pointer("float32", False), Pointer("float32", True), 3)
    return Job("tests.absurd_kernels", "row_sums", arguments, constants, 1, 1, "sm_90")

if __name__ == "__main__":
    jobs = {
        "good": product(64, 2, "bfloat16", False), "large": product(256, 5, "bfloat16", False),
        "ieee": product(32, 1, "float32", False), "tf32": product(64, 2, "float32", True),
        "spilling": row_sums(16384), "missing": Job("tests.absurd_kernels", "product", (3,), (), 1, 1, "sm_90"),
    }
    found = dict(compile_ahead.reports(jobs.values(), 2, None))
    same = []
    for row in (operation("graph_dropout"),):
        for size in (PAPER, ODD[0]):
            for launch in sum(launches.recorded(row, size, torch.float16, "sm_90"), []):
                job = launches.job(launch, "sm_90")
                with compile_ahead.named_card("sm_90"):
                    options = {**launch.constants, **launch.tiles.options}
                    real = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **options)
                same.append(compile_ahead.compile_job(job).hash == real.hash)
    print(json.dumps({name: dataclasses.asdict(found[job]) for name, job in jobs.items()} | {"same": same}))
"""


def compiling_environment(folder: Path) -> dict[str, str]:
    """Without interpretation, and with caches of its own: what this run says, this run has compiled."""
    names = {"GWSSS_CACHE": str(folder / "reports"), "TRITON_CACHE_DIR": str(folder / "triton")}
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return {**environment, **names, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def test_every_shipped_configuration_compiles_without_a_problem(tmp_path: Path, committed: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "benchmarks.resources", "--configurations", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(
        command, cwd=ROOT, env=compiling_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "resources.json").read_text())["kernels"]
    assert all(kernel["registers"] > 0 for kernel in found)
    assert {kernel["card"] for kernel in found} == set(compile_ahead.CARDS)
    assert {kernel["kernel"] for kernel in found} == functions_that_are_started()
    compiled = {tiled(kernel["kernel"], kernel["card"], kernel["constants"], kernel) for kernel in found}
    assert not in_shipped_tables() - {row[1:] for row in compiled}
    assert not {tiled(x["kernel"], x["card"], x["constants"], x) for x in committed["kernels"]} - compiled
    assert "| graph_dropout | backward | scale_backward |" in (tmp_path / "out" / "resources.md").read_text()


def tiled(kernel: str, card: str, constants: dict[str, Any], row: dict[str, Any]) -> tuple[Any, ...]:
    """A kernel function with its tiles on a card."""
    blocks = tuple(sorted((name, size) for name, size in constants.items() if name.startswith("BLOCK")))
    return (kernel.rpartition(".")[2], card, blocks, row["num_warps"], row["num_stages"])


def in_shipped_tables() -> set[tuple[Any, ...]]:
    """As `tiled`, without the function: one row of graph_dropout is for several."""
    tables = {path.stem: json.loads(path.read_text()) for path in Path(tuning.__file__).parent.glob("tuned/*.json")}
    return {
        tiled(kernel, card, row["blocks"], row)[1:]
        for card, table in tables.items()
        for kernel, rows in table["kernels"].items()
        for row in rows
    }


def functions_that_are_started() -> set[str]:
    """All functions of kernels/ that no other one calls."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "kernels").glob("*.py")}
    calls = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {ast.unparse(node.func) for node in calls}
    functions = [(stem, node.name) for stem, tree in trees.items() for node in tree.body if hasattr(node, "args")]
    return {f"{stem}.{name}" for stem, name in functions if name not in called}


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((resources.RESULTS / "resources.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def started() -> resources.Jobs:
    return resources.jobs(resources.SHIPPED, list(ARITHMETICS), compile_ahead.CARDS)


def test_the_committed_table_is_of_the_present_kernels(committed: dict[str, Any], started: resources.Jobs) -> None:
    assert not resources.stale(committed, started)
    assert set(committed["versions"]) == {"torch", "triton"}


def test_the_committed_table_has_no_problem(committed: dict[str, Any]) -> None:
    for kernel in committed["kernels"]:
        report = Report(**{field.name: kernel[field.name] for field in dataclasses.fields(Report)})
        assert not report.problems(kernel["card"]), kernel
        assert report.registers > 0
        assert not kernel["problems"]
    text = (resources.RESULTS / "resources.md").read_text(encoding="utf-8")
    assert f"{len(committed['kernels'])} kernels, 0 with problems" in text


def test_a_stale_table_is_seen(
    committed: dict[str, Any], started: resources.Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, *_ = started
    other = {**started, dataclasses.replace(job, num_warps=16): started[job]}
    del other[job]
    (reason,) = resources.stale(committed, other)
    assert "other tiles" in reason
    fewer = {**committed, "kernels": committed["kernels"][1:]}
    assert resources.stale(fewer, started)[-1] == f"it has {len(started) - 1} kernels, {len(started)} are started"
    monkeypatch.setattr(resources, "sources", lambda: {**committed["sources"], "attention": "other"})
    (reason,) = resources.stale(committed, started)
    assert reason == "kernels have changed since: attention"


def test_comments_and_docstrings_do_not_change_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(resources, "ROOT", tmp_path)
    hashes = []
    for text in (
        '"""a"""\ndef f(x):\n    return x',
        '"""b"""\ndef f(x):\n    # why\n    return (x)',
        "def f(x):\n    return 1",
    ):
        (tmp_path / "kernels" / "k.py").write_text(text)
        hashes.append(resources.sources()["k"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(PROBE)
    command = [sys.executable, str(folder / "probe.py")]
    done = subprocess.run(
        command, cwd=ROOT, env=compiling_environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def problems(probed: dict, name: str) -> list[str]:
    return Report(**probed[name]).problems("sm_90")


def test_a_good_kernel_passes(probed: dict) -> None:
    assert not problems(probed, "good")
    assert set(probed["good"]["tensor_core"]) == {"HGMMA"}


def test_absurd_tiles_are_seen(probed: dict) -> None:
    (text,) = problems(probed, "large")[-1:]
    assert "bytes of shared memory and sm_90 has 232448" in "; ".join(problems(probed, "large"))
    assert text
    assert any("it spills" in text for text in problems(probed, "spilling"))


def test_a_kernel_that_does_not_compile_is_a_problem(probed: dict) -> None:
    (text,) = problems(probed, "missing")
    assert text.startswith("it does not compile")


def test_products_that_tensor_cores_cannot_do_need_none(probed: dict) -> None:
    assert not probed["ieee"]["wants_tensor_core"]
    assert not probed["ieee"]["tensor_core"]
    assert not problems(probed, "ieee")
    assert probed["tf32"]["wants_tensor_core"]
    assert probed["tf32"]["tensor_core"]


def test_a_job_is_compiled_to_what_a_real_start_runs(probed: dict) -> None:
    """Triton's own key of the machine code is the same, so warming its cache spares the first start the wait."""
    assert len(probed["same"]) >= 6
    assert all(probed["same"])


@pytest.mark.parametrize(
    ("report", "card", "text"),
    [
        (Report(spill_stores=8), "sm_80", "spills 8 bytes"),
        (Report(shared=163 * 1024 + 1), "sm_80", "shared memory"),
        (Report(shared=227 * 1024 + 1), "sm_90", "shared memory"),
        (Report(tensor_memory=513), "sm_100", "tensor memory"),
        (Report(wants_tensor_core=True), "sm_90", "no tensor-core instruction"),
        (Report(error="PTXASError: out of registers"), "sm_90", "does not compile"),
    ],
)
def test_each_problem_is_named(report: Report, card: str, text: str) -> None:
    (problem,) = report.problems(card)
    assert text in problem
    assert not Report(shared=163 * 1024, wants_tensor_core=True, tensor_core={"HMMA": 1}).problems(card)


def test_instructions_and_products_are_read_off_the_code() -> None:
    sass = "/*0*/ HGMMA.64x128x16.F32.BF16 R24 ;\n/*1*/ UTCHMMA gdesc ;\n/*2*/ HMMA.16816.F32 R4 ;\n/*3*/ FFMA R1 ;"
    assert compile_ahead.tensor_core(sass) == {"HGMMA": 1, "HMMA": 1, "UTCHMMA": 1}
    dot = "%5 = tt.dot %1, %2, %3{} : tensor<64x64x{}> * tensor<64x64x{}> -> tensor<64x64xf32>"
    assert compile_ahead.wants_tensor_core(dot.format("", "bf16", "bf16"))
    assert compile_ahead.wants_tensor_core(dot.format(", inputPrecision = tf32", "f32", "f32"))
    assert not compile_ahead.wants_tensor_core(dot.format("", "f32", "f32"))
    assert not compile_ahead.wants_tensor_core("tt.reduce")


def test_the_assembler_report_is_read_and_must_be_there() -> None:
    log = "    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\nptxas info : Used 255 registers, used"
    expected = {"registers": 255, "stack": 16, "spill_stores": 8, "spill_loads": 12}
    assert compile_ahead.ptxas_numbers(log) == expected
    with pytest.raises(RuntimeError, match="no registers"):
        compile_ahead.ptxas_numbers("")


def row(card: str, report: Report) -> resources.Row:
    job = Job("m", "k", (Pointer("float16", True), 16), (("BLOCK_N", 64),), 4, 2, card)
    return resources.Row(job, [Use("attention", False, "paper", "float16")], report)


def test_a_line_of_the_table_has_the_worst_numbers() -> None:
    rows = [row("sm_90", Report(registers=40, shared=1024)), row("sm_90", Report(registers=99, spill_loads=4))]
    (cells,) = resources.grouped(rows)
    found = dict(zip(resources.HEADER, cells, strict=True))
    assert (found["registers"], found["spills"], found["shared KiB"], found["variants"]) == ("99", "4", "1.0", "2")
    assert "spills" in found["problems"]
    assert len(resources.grouped([row("sm_80", Report()), row("sm_90", Report())])) == 2


@pytest.mark.parametrize(("report", "status"), [(Report(registers=1), 0), (Report(registers=1, spill_stores=4), 1)])
def test_a_problem_is_an_exit_status(
    report: Report, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(resources, "collect", lambda *rest, **chosen: [row("sm_90", report)])
    assert resources.main(["--sizes", "small", "--output", str(tmp_path)]) == status
    assert ("it spills 4 bytes" in capsys.readouterr().out) == bool(status)
    assert "| attention | forward | k |" in (tmp_path / "resources.md").read_text()


def test_only_a_whole_run_replaces_the_committed_table() -> None:
    assert resources.arguments([]).output == resources.RESULTS
    assert resources.arguments(["--workers", "1"]).output == resources.RESULTS
    assert resources.arguments(["--cards", "sm_90"]).output is None
    assert resources.arguments(["--configurations"]).output is None
    with pytest.raises(SystemExit):
        resources.arguments(["--operations", "nonsense"])


def test_reports_are_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = row("sm_90", Report()).job
    ran: list[Job] = []

    def compiled(function, jobs, workers):  # type: ignore[no-untyped-def]
        for one in jobs:
            ran.append(one)
            yield one, Report(registers=7)

    monkeypatch.setattr(compile_ahead, "in_processes", compiled)
    monkeypatch.setattr(compile_ahead, "fingerprint", lambda job: "key")
    for _ in range(2):
        assert dict(compile_ahead.reports([job], 1, tmp_path)) == {job: Report(registers=7)}
    assert len(ran) == 1
    (tmp_path / "key.json").write_text("damaged")
    assert dict(compile_ahead.reports([job], 1, tmp_path)) == {job: Report(registers=7)}
    assert len(ran) == 2
