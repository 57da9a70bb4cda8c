"""`reproduce` on a tiny embedded set: two rows, what they share, what is resumed, and what is only listed."""

import csv
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gwsss_fast import reproduce
from gwsss_fast.config import differences
from gwsss_fast.data import embedded
from gwsss_fast.labels.interchange import load_maps
from gwsss_fast.report.tables import TABLES, choose_rows
from gwsss_fast.training import estimates
from tests.command_line import FAST, fails, metrics


@pytest.fixture(autouse=True)
def tiny_set(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`embedded` is a set of ten images."""
    root = embedded.build_embedded(tmp_path_factory.getbasetemp() / "reproduce", train=10, val=3, size=64)
    monkeypatch.setattr(embedded, "build_embedded", lambda seed=0: root)


def table(output: Path, number: int = 4) -> dict[tuple[str, str], dict[str, str]]:
    with (output / f"table-{number}.csv").open() as file:
        return {(row["row"], row["score"]): row for row in csv.DictReader(file)}


def test_two_rows_run_share_and_resume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    words = ["--table", "4", "--rows", "graph-only", "random", "--seeds", "3", "--output", str(output), *FAST]
    assert reproduce.main(words) == 0
    full, graph, random = (output / "runs" / f"{name}-3" for name in ("full", "graph-only", "random"))
    assert sorted(path.name for path in (output / "runs").iterdir()) == ["full-3", "graph-only-3", "random-3"]
    assert (graph / "classifier" / "last.pt").samefile(full / "classifier" / "last.pt")
    assert not (random / "classifier" / "last.pt").samefile(full / "classifier" / "last.pt")
    stages = ("classifier", "cam")
    assert [metrics(graph)["seconds"][x] for x in stages] == [metrics(full)["seconds"][x] for x in stages]
    found = table(output)
    assert float(found["graph-only", "maps"]["mean"]) == round(metrics(full)["cam"]["graph"]["miou"], 4)
    assert float(found["graph-only", "val"]["mean"]) == round(metrics(graph)["segmentation"]["miou"], 4)
    assert float(found["random", "maps"]["mean"]) == round(metrics(random)["cam"]["ensemble"]["miou"], 4)
    assert found["random", "val"]["direction"] == "one seed only"
    assert {row for row, _ in found} == {"full", "intermediate-only", "graph-only", "random"}  # all of full
    assert (output / "table-4.html").is_file()
    before = (random / "segmenter" / "last.pt").stat().st_mtime_ns
    capfd.readouterr()
    (random / "report.html").unlink()
    assert reproduce.main(words) == 0  # goes on where something lacks, and does nothing again
    assert (random / "report.html").is_file()
    assert (random / "segmenter" / "last.pt").stat().st_mtime_ns == before
    assert "Table IV of the paper" in capfd.readouterr().out
    assert table(output) == found


def test_maps_alone_and_localisation(tmp_path: Path) -> None:
    words = ["--seeds", "0", "--output", str(tmp_path), *FAST]
    assert reproduce.main(["--table", "5", "--rows", "no-group", "--maps-only", "true", *words]) == 0
    found = table(tmp_path, 5)
    assert found["no-group", "val"]["note"] == "left out by --maps-only"
    assert not (tmp_path / "runs" / "no-group-0" / "segmenter").exists()
    assert len(load_maps(next((tmp_path / "runs" / "full-0" / "cams").glob("*.npy"))).keys)
    assert reproduce.main(["--table", "3", *words]) == 0  # on the classifiers that are there
    found = table(tmp_path, 3)
    assert [found[row, "loc"]["paper"] for row in ("no-group", "full")] == ["37.05", "60.18"]
    assert all(0 <= float(row["mean"]) <= 100 for row in found.values())


def test_a_dry_run_says_why_its_trial_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--table", "5", "--rows", "full", "--output", str(tmp_path / "out"), "--segmenter.weights", "gone.pt"]
    status = reproduce.main([*words, "--dry-run", "true", *FAST])
    fails(capsys, status, "the trial for the estimate failed: ", "gone.pt", "; it was: gwsss-fast train --preset quick")


def test_a_dry_run_lists_commands_that_train_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimates, "FEW", 1)
    monkeypatch.setattr(estimates, "MORE", 3)
    words = ["--table", "4", "--rows", "k-2", "--seeds", "0", "1", "--output", str(tmp_path / "out"), *FAST]
    assert reproduce.main([*words, "--dry-run", "true"]) == 0
    printed = capsys.readouterr().out
    commands = [line for line in printed.splitlines() if line.startswith("python -m gwsss_fast.train")]
    assert len(commands) == 4
    assert [line.split("--output ")[1].split()[0] for line in commands] == [
        str(tmp_path / "out" / "runs" / name) for name in ("full-0", "k-2-0", "full-1", "k-2-1")
    ]
    assert "--classifier.group-size 2" in commands[1]
    assert all(" min" in line.rpartition("#")[2] for line in commands)
    assert "10 to train on" in printed
    assert "trials of 1 and 3 steps" in printed
    assert not (tmp_path / "out").exists()
    options = reproduce.train.read_arguments(commands[1].partition("  #")[0].split()[3:])
    assert (options.config.classifier.group_size, options.resume) == (2, True)


def test_the_time_of_localisation_is_that_of_its_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = estimates.Rates(plain=0, graph=0, cam=600, pseudo=0, segmenter=0, evaluate=0, group_size=4)
    monkeypatch.setattr(reproduce, "measure_rates", lambda config, trial: rates)
    words = ["--table", "3", "--seeds", "0", "--output", str(tmp_path), "--cam.scales", "0.5", "1", "--dry-run", "true"]
    assert reproduce.main(words) == 0
    printed = capsys.readouterr().out
    times = [line.rpartition("# ")[2] for line in printed.splitlines() if "gwsss_fast.localize" in line]
    assert times == ["24.0 min"] * 2  # 3 images at 600 s for 1.25 times the pixels
    assert "# time: 48 min" in printed


ROWS = {  # of Table IV: all that a row changes, on preset quick; on the paper's the losses are 0.7, 0.1 and 0.2
    "full": {},
    **{f"k-{k}": {"classifier.group_size": k} for k in (2, 3, 5, 6)},
    **{f"t-{t}": {"model.steps": t} for t in (2, 4, 5)},
    "dropout-0.8-0.9": {"model.drop_threshold": 0.9},
    "dropout-0.8-0.5": {"model.drop_threshold": 0.5},
    "dropout-0.6-0.7": {"model.drop_rate": 0.6},
    "dropout-0.4-0.7": {"model.drop_rate": 0.4},
    "no-dropout": {"model.graph_dropout": False},
    "no-intermediate": {
        "classifier.loss_weights": (0.7, 0, 0.2),
        "pseudo.readout": "graph",
        "model.graph_gradient": "full",  # which it is in the paper's equations anyway
    },
    "no-edge": {"classifier.loss_weights": (0.7, 0.5, 0), "model.edge_supervision": False},
    "intermediate-only": {"pseudo.readout": "initial"},
    "graph-only": {"pseudo.readout": "graph"},
    "random": {"classifier.sampling": "random"},
    "one-common": {"classifier.sampling": "one-common"},
}


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_every_row_of_table_iv_is_the_full_model_but_for_what_it_names(preset: str) -> None:
    options, base = reproduce.read_arguments(
        ["--table", "4", "--preset", preset, "--seeds", "0", "--segmenter.lr", "1"]
    )
    plan = reproduce.make_plan(TABLES[4], TABLES[4].rows, "voc", options, base)
    configs = {job.folder.name.removesuffix("-0"): job.config for job in plan.jobs}
    assert not plan.reasons
    assert configs.keys() == ROWS.keys()
    full = configs["full"]
    assert (full.model.steps, full.classifier.group_size, full.classifier.sampling) == (3, 4, "greedy")
    assert (full.model.graph_dropout, full.model.drop_rate, full.model.drop_threshold) == (True, 0.8, 0.7)
    assert (full.segmenter.body, full.segmenter.lr) == ("resnet101", 1)
    for name, wanted in ROWS.items():
        found = {key: new for key, (_, new) in differences(full, configs[name]).items()}
        if preset == "paper" and "classifier.loss_weights" in wanted:
            first, second, third = wanted["classifier.loss_weights"]
            wanted = {**wanted, "classifier.loss_weights": (first, second and 0.1, third)}
            wanted.pop("model.graph_gradient", None)
        assert found == wanted, name


def test_the_first_seed_of_every_row_comes_before_the_second() -> None:
    options, base = reproduce.read_arguments(["--table", "4", "--seeds", "0", "1"])
    rows = choose_rows(TABLES[4], ["graph-only", "random"])
    plan = reproduce.make_plan(TABLES[4], rows, "embedded", options, base)
    names = [job.folder.name for job in plan.jobs]
    assert names == ["full-0", "graph-only-0", "random-0", "full-1", "graph-only-1", "random-1"]
    assert plan.jobs[1].fork == plan.jobs[0].folder


def test_what_the_embedded_set_cannot_give_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--table", "2", "--output", str(tmp_path)]) == 0
    assert "needs COCO 2014: --data coco2014" in capsys.readouterr().out
    assert table(tmp_path, 2)["coco", "val"]["paper"] == "28.7"
    assert not (tmp_path / "runs").exists()


def test_published_data_is_trained_as_the_paper_says(small_voc: Path) -> None:
    options, base = reproduce.read_arguments(["--table", "5", "--data", str(small_voc), "--resnet38-weights", "x.pth"])
    plan = reproduce.make_plan(TABLES[5], TABLES[5].rows, "voc", options, base)
    configs = {job.folder.name: job.config for job in plan.jobs}
    assert (options.preset, configs["full-0"].model.backbone, configs["full-0"].segmenter.body) == (
        "paper",
        "vgg16",
        "resnet101",
    )
    assert configs["no-group-resnet38-1"].model.backbone == "resnet38"
    assert configs["no-group-resnet38-1"].model.steps == 0
    assert not plan.reasons
    assert np.isclose(configs["no-group-0"].classifier.backbone_lr, 1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--table", "4", "--rows", "k-7"], ["k-7", "k-6"]),
        (["--table", "6"], ["table"]),
        (["--seeds", "1", "1"], ["--seeds", "each once"]),
        (["--jobs", "0"], ["--jobs"]),
        (["--preset", "quik"], ["quik", "quick"]),
    ],
)
def test_bad_input(words: list[str], said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, reproduce.main(words), *said)


def test_a_failure_is_told_and_the_other_rows_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def run(job: reproduce.Job, processes: reproduce.Processes | None) -> int:
        done.append(job.folder.name)
        return 2 if job.folder.name == "no-group-0" else 0

    monkeypatch.setattr(reproduce, "run_job", run)
    status = reproduce.main(["--table", "5", "--seeds", "0", "--output", str(tmp_path)])
    assert done == ["no-group-0", "no-dropout-0", "full-0"]
    fails(capsys, status, "1 of 3 commands failed", "no-group-0")
    monkeypatch.setattr(reproduce, "run_job", lambda job, processes: 130)
    assert reproduce.main(["--table", "5", "--seeds", "0", "--output", str(tmp_path)]) == 130
    monkeypatch.setattr(reproduce, "run_job", lambda job, processes: 143)
    assert reproduce.main(["--table", "5", "--seeds", "0", "--output", str(tmp_path)]) == 143
    assert "the same command goes on" in capsys.readouterr().err


def test_several_trainings_at_a_time_are_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    def run(self: reproduce.Processes, command: list[str]) -> int:
        started.append(command)
        return 0

    monkeypatch.setattr(reproduce.Processes, "run", run)
    words = ["--table", "5", "--seeds", "0", "--output", str(tmp_path), "--jobs", "2"]
    assert reproduce.main([*words, "--threads", "1"]) == 0
    assert sorted(Path(command[command.index("--output") + 1]).name for command in started) == [
        "full-0",
        "no-dropout-0",
        "no-group-0",
    ]
    assert all(command[1:3] == ["-m", "gwsss_fast.train"] for command in started)
    assert all(command[command.index("--threads") + 1] == "1" for command in started)


LISTENING = """
import pathlib, signal, sys, time
log = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: log.write_text(log.read_text() + "stopped "))
log.write_text("started ")
for _ in range(1500):  # not for ever, should none come
    time.sleep(0.01)
    if "stopped" in log.read_text():
        break
time.sleep(0.3)  # the time that saving takes, in which no second signal may come
sys.exit(143)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_stops_all_trainings_that_run_and_no_other_starts(
    number: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainings are programs that note each signal; the signal comes to this process alone."""
    run, logs = reproduce.Processes.run, [tmp_path / f"{name}-0.log" for name in ("no-group", "no-dropout", "full")]

    def listening(self: reproduce.Processes, command: list[str]) -> int:
        name = Path(command[command.index("--output") + 1]).name
        return run(self, [sys.executable, "-c", LISTENING, str(tmp_path / f"{name}.log")])

    def press() -> None:
        while not all(path.is_file() and path.read_text() for path in logs[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(reproduce.Processes, "run", listening)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make their background ignore it
    try:
        threading.Thread(target=press, daemon=True).start()
        words = ["--table", "5", "--seeds", "0", "--output", str(tmp_path), "--jobs", "2"]
        assert reproduce.main(words) == status
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.read_text() for path in logs[:2]] == ["started stopped "] * 2
    assert not logs[2].exists()


def test_a_terminal_that_nohup_outlives_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with reproduce.terminating(signal.SIGHUP):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(reproduce.Terminated):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_estimate_is_the_rates_times_the_steps() -> None:
    rates = estimates.Rates(plain=1, graph=2, cam=3, pseudo=5, segmenter=7, evaluate=11, group_size=4)
    options, _ = reproduce.read_arguments(["--epochs", "9", "--segmenter.iterations", "10"])
    config = options.config  # 6 of the 9 epochs are plain
    parts = {"classifier": 600 * 1 + 300 * 2, "cam": 300, "pseudo": 500, "segmenter": 70, "evaluate": 110}
    for stage, seconds in parts.items():
        assert estimates.estimate(config, (100, 100, 10), rates, stage) == seconds
    assert estimates.estimate(config, (100, 100, 10), rates, "all", ("classifier", "cam")) == 680
    wider, _ = reproduce.read_arguments(["--epochs", "9", "--group-size", "8", "--steps", "0"])
    assert estimates.estimate(wider.config, (100, 100, 10), rates, "classifier") == 1800
