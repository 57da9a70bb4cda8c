"""`python -m gwsss_fast.reproduce --table N`: the rows of a table of the paper, run over seeds, beside its numbers."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from gwsss_fast import cli, localize, train
from gwsss_fast.config import Config, absolute_paths, check, differences, load_config
from gwsss_fast.data.dataset import find_root
from gwsss_fast.errors import GwsssError
from gwsss_fast.report import tables
from gwsss_fast.report.table_files import text_table, write_table
from gwsss_fast.report.tables import MEASURES, TABLES, Row, Table
from gwsss_fast.training.estimates import estimate, measure_rates
from gwsss_fast.training.forks import fork_run
from gwsss_fast.training.runs import open_data
from gwsss_fast.training.signals import Terminated, terminating

QUICK, PAPER = "quick", "paper"
WIDTH = 200  # letters of the table where there is no terminal
CLOSED = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # what a terminal sends that is closed


@dataclass(frozen=True)
class Arguments:
    """Run or resume the rows of a table of the paper, each with several seeds, and print its numbers beside ours."""

    config: tyro.conf.FlagConversionOff[Annotated[Config, tyro.conf.arg(name="")]]
    table: Literal[1, 2, 3, 4, 5] = 5
    """Number of the table."""
    rows: tuple[str, ...] = ()
    """Only these rows, by name; the full model is run besides, where they are held against it."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each row."""
    preset: str = QUICK
    """What the rows depart from, a preset or a YAML file; not named: quick on the embedded set, else paper."""
    maps_only: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Stop after the maps; segmentation has no number then."""
    resnet38_weights: str | None = None
    """Pretrained weights of ResNet-38, for its column of Table V."""
    jobs: int = 1
    """Trainings at a time, each in a process of its own."""
    dry_run: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """List the commands, the images and the time to expect, after a few steps by which the time is measured."""
    table_only: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Run nothing: the table of what has been done."""


@dataclass(frozen=True)
class Job:
    """One command: a verb and its arguments, all of them. fork: the run's folder whose classifier and maps it takes."""

    verb: str
    config: Config
    base: Config
    preset: str
    folder: Path
    stage: str = "all"
    fork: Path | None = None
    classifier: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """As they stand on the command line."""
        if self.verb == "localize":
            words = ["--run", str(self.folder), "--classifier", str(self.classifier), "--resume", "--overlays", "0"]
            own = self.config
            return [*words, "--threads", str(own.threads), "--device", own.device, "--precision", own.precision]
        words = ["--preset", self.preset, *option_words(self.base, self.config)]
        return [*words, "--output", str(self.folder), "--stage", self.stage, "--resume"]


@dataclass
class Plan:
    """What is run, and where the numbers of each row, measure and seed will stand; reasons for those without."""

    chains: dict[Any, list[Job]] = field(default_factory=lambda: defaultdict(list))
    places: dict[tuple[str, str, int], tuple[Path, str]] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def jobs(self) -> list[Job]:
        """All of them."""
        return [job for chain in self.chains.values() for job in chain]

    def add(self, chain: Any, job: Job) -> None:
        """A job at the end of a chain, once."""
        if job not in self.chains[chain]:
            self.chains[chain].append(job)


class Processes:
    """Commands in processes of their own, which are stopped together.

    Each is a session of its own: Ctrl-C in a terminal then comes to this process alone, and each command gets one
    signal, after which it saves what it has; a second one would act at once.
    """

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: Sequence[str]) -> int:
        """Run a command to its end; its exit status. Raises KeyboardInterrupt after `stop`."""
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True)
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """SIGTERM to all that run; no other one starts."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    stopped: list[int] = []

    def body() -> None:
        try:
            _command(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt as stop:
            print("stopped; the same command goes on", file=sys.stderr)
            stopped.append(cli.TERMINATED if isinstance(stop, Terminated) else cli.INTERRUPTED)

    return cli.run(body) or sum(stopped)


def _command(arguments: Sequence[str]) -> None:
    options, base = read_arguments(arguments)
    table = TABLES[options.table]
    rows = tables.choose_rows(table, options.rows)
    layout = find_root(options.config.data.root, options.config.data.layout, seed=options.config.data.seed)[1]
    folder = Path(str(options.config.output))
    plan = make_plan(table, rows, layout, options, base)
    if options.dry_run:
        show(plan, options.config)
        return
    failed = [] if options.table_only else run_plan(plan, options.jobs)
    report(table, rows, make_plan(table, table.rows, layout, options, base), options, layout, folder)
    if failed:
        raise GwsssError(f"{len(failed)} of {len(plan.jobs)} commands failed, the first: {failed[0]}")


def read_arguments(arguments: Sequence[str]) -> tuple[Arguments, Config]:
    """The command line over its preset, and the preset alone. Raises GwsssError for what is unknown or refused."""
    data = cli.peek(arguments, "--data", "--data.root") or "embedded"
    preset = cli.peek(arguments, "--preset") or (QUICK if data == "embedded" else PAPER)
    base = load_config(preset, cli.peek(arguments, "--backbone", "--model.backbone"))
    options = cli.parse(
        Arguments, Arguments(base, preset=preset), arguments, "gwsss-fast reproduce", Arguments.__doc__ or ""
    )
    config = absolute_paths(check(options.config, "command line"))
    if not options.seeds or len(set(options.seeds)) < len(options.seeds):
        raise GwsssError(
            f"--seeds needs one or more seeds, each once; got {' '.join(map(str, options.seeds)) or 'none'}"
        )
    if options.jobs < 1:
        raise GwsssError(f"--jobs is {options.jobs}; at least one training runs at a time")
    if config.output is None:
        name = "embedded" if config.data.root == "embedded" else Path(config.data.root).name
        config = replace(config, output=str(Path("runs") / f"tables-{name}"))
    threads = config.threads or (max((os.cpu_count() or 1) // options.jobs, 1) if options.jobs > 1 else 0)
    return replace(options, config=replace(config, threads=threads)), base


def make_plan(table: Table, rows: Sequence[Row], layout: str, options: Arguments, base: Config) -> Plan:
    """All commands, the first seed of every row before the second."""
    plan = Plan()
    wanted = [
        row for row in table.rows if row in rows or row.name == table.base or row.name in {x.shares for x in rows}
    ]
    ordered = sorted(wanted, key=lambda row: row.shares is not None)
    for seed in options.seeds:
        for row in ordered:
            for measure in row.paper:
                reason = tables.lacking(row, measure, layout, options.resnet38_weights, options.maps_only)
                if reason:
                    plan.reasons[row.name, measure] = reason
                else:
                    add_jobs(plan, row, measure, seed, layout, options, base)
    return plan


def add_jobs(plan: Plan, row: Row, measure: str, seed: int, layout: str, options: Arguments, base: Config) -> None:
    """The commands that lead to one number of one seed, less those that are planned already."""
    config, runs = row_config(row, layout, options.config, seed), Path(str(options.config.output)) / "runs"
    folder, stage, preset = runs / f"{row.name}-{seed}", MEASURES[measure].stage, options.preset
    chain: Any = seed if stage == "localize" else (row.shares or row.name, seed)
    if measure == "maps-resnet38":
        model = replace(config.model, backbone="resnet38", weights=str(options.resnet38_weights))
        config, base = replace(config, model=model), load_config(preset, "resnet38")
        folder = runs / f"{row.name}-resnet38-{seed}"
    job = Job("train", config, base, preset, folder)
    source = runs / f"{row.shares}-{seed}" if row.shares is not None else None
    if stage == "cam" and source is not None:
        folder = source
    elif stage == "cam":
        if not (measure == "maps" and "val" in row.paper and not options.maps_only):  # else all stages are run
            plan.add(chain, replace(job, stage="classifier"))
            plan.add(chain, replace(job, stage="cam"))
    elif stage == "evaluate":
        plan.add(chain, replace(job, fork=source))
    else:
        plan.add(chain, replace(job, stage="classifier"))
        alone = runs / f"no-group-{seed}"
        plan.add(chain, Job("localize", config, base, preset, folder, "localize", classifier=alone))
    plan.places[row.name, measure, seed] = (folder, config.pseudo.readout)


def row_config(row: Row, layout: str, config: Config, seed: int) -> Config:
    """The configuration of a row: the user's, with what the full model's preset and then its own change."""
    quick, made = load_config(QUICK, config.model.backbone), config
    for preset in dict.fromkeys([f"ablation/{tables.FULL}", row.preset]):
        made = tables.configure(made, load_config(preset, config.model.backbone), quick)
    for key, value in row.published if layout != "embedded" else ():
        made = tables.with_field(made, key, value)
    return check(replace(made, seed=seed, output=None), f"row {row.name}")


def option_words(base: Config, config: Config) -> list[str]:
    """The options that lead from a preset to a configuration."""
    words = []
    for key, (_, value) in differences(base, config).items():
        if key == "output":
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{key.replace('_', '-')}", *("null" if item is None else str(item) for item in values)]
    return words


def run_plan(plan: Plan, jobs: int) -> list[str]:
    """Run all commands that are not done; the words of those that failed. Later ones of a failed chain are left out.

    A signal stops all of them; raises KeyboardInterrupt when they have ended.
    """
    chains = list(plan.chains.values())
    if jobs == 1:
        with terminating():
            return [words for words in (run_chain(chain, None) for chain in chains) if words]
    processes = Processes()
    with terminating(*CLOSED), ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(run_chain, chain, processes) for chain in chains]
            return [words for words in (future.result() for future in futures) if words]
        except BaseException:
            processes.stop()
            try:
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt:
                processes.stop()  # the second signal acts at once there too
            raise


def run_chain(chain: Sequence[Job], processes: Processes | None) -> str:
    """Run commands one after the other until one fails; its words. Raises KeyboardInterrupt when stopped."""
    for job in chain:
        if job.fork is not None and not (job.folder / "config.yaml").is_file():
            fork_run(cli.open_run(job.fork, cli.stored_config(job.fork)), job.folder)
        status = run_job(job, processes)
        if status in (cli.TERMINATED, -signal.SIGTERM):
            raise Terminated
        if status in (cli.INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt
        if status:
            return command_line(job)
    return ""


def run_job(job: Job, processes: Processes | None) -> int:
    """Run one command; its exit status. What it prints goes to stderr, since the table alone is this command's."""
    print(f"$ {command_line(job)}", file=sys.stderr, flush=True)
    if processes is not None:
        return processes.run([sys.executable, "-m", f"gwsss_fast.{job.verb}", *job.arguments])
    command: Callable[[list[str]], int] = (localize if job.verb == "localize" else train).main
    with contextlib.redirect_stdout(sys.stderr):
        return command(job.arguments)


def command_line(job: Job) -> str:
    """The command as one would type it."""
    return shlex.join(["python", "-m", f"gwsss_fast.{job.verb}", *job.arguments])


def show(plan: Plan, config: Config) -> None:
    """The commands with images and estimated time."""
    for (row, measure), reason in plan.reasons.items():
        print(f"# skipped: {row}, {MEASURES[measure].title}: {reason}")
    trained = [job for job in plan.jobs if job.verb == "train"]
    if not trained:
        return
    data = open_data(config.data)
    counts = (len(data.training), len(data.scoring or ()), len(data.validation or ()))
    rates = measure_rates(trained[0].config, lambda words: run_job_quietly(words, trained[0]))
    total = 0.0
    for job in plan.jobs:
        if job.verb == "train":
            skipped = ("classifier", "cam") if job.fork else ()
            seconds = estimate(job.config, counts, rates, job.stage, skipped)
        else:  # maps of val at one scale and mirrored, by their pixels
            own = job.config.cam
            seconds = counts[2] * rates.cam * 2 / ((1 + own.flip) * sum(scale**2 for scale in own.scales))
        total += seconds
        print(f"{command_line(job)}  # {seconds / 60:.1f} min")
    print(
        f"# images: {counts[0]} to train on, {counts[1]} to score maps on, {counts[2]} for val; runs: {len(plan.jobs)}"
    )
    print(
        f"# time: {total / 60:.0f} min one after the other, from {rates.words}; with the load that "
        "the machine has now, nothing taken off for what lies in the folder already; of `localize` the maps alone"
    )


def run_job_quietly(words: Sequence[str], job: Job) -> None:
    """A trial of a few steps for the estimate."""
    arguments = ["--preset", job.preset, *option_words(job.base, job.config), *words]
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = train.main(arguments)
    if status:
        reason = (told.getvalue().strip().splitlines() or ["no word"])[-1].removeprefix("error: ")
        command = shlex.join(["gwsss-fast", "train", *arguments])
        raise GwsssError(f"the trial for the estimate failed: {reason}; it was: {command}")


def report(table: Table, rows: Sequence[Row], plan: Plan, options: Arguments, layout: str, folder: Path) -> None:
    """Print the table of what has been done, of `rows` and of others that have numbers, and write its files."""
    scores: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for (row, measure, seed), (place, readout) in plan.places.items():
        value = tables.read_score(place, measure, readout)
        if value is not None:
            scores[row, measure][seed] = value
    reasons, done = dict(plan.reasons), {row for row, _ in scores}
    shown = [row for row in table.rows if row in rows or row.name in done]
    for row, measure in {(row, measure) for row, measure, _ in plan.places}:
        missing = [str(seed) for seed in options.seeds if seed not in scores[row, measure]]
        if missing:
            reasons[row, measure] = f"not run yet: seed {', '.join(missing)}"
    lines = tables.compare(table, scores, reasons, shown)
    facts = list(facts_of(table, options, layout))
    Console(width=None if sys.stdout.isatty() else WIDTH).print(text_table(table, lines, facts))
    paths = write_table(folder, table, lines, facts)
    print(f"table: {', '.join(map(str, paths))}")


def facts_of(table: Table, options: Arguments, layout: str) -> Iterator[str]:
    """What the numbers are, one sentence each."""
    config = options.config
    yield (
        "Percent: mIoU of maps on the training images at the best threshold, and of the segmentation on val; mean ± "
        "standard deviation over seeds and Student's 95 % interval of the mean."
    )
    yield (
        f"Ours: data set {config.data.root} ({layout}), backbone {config.model.backbone}, preset {options.preset}. "
        "The paper's: its own data set and pretrained networks. Of other data only the directions compare."
    )
    yield (
        f"Effect: difference to row {table.base}, ours seed by seed. Direction: agrees or opposite where Student's 95 "
        "% interval of the differences leaves 0 out. Where the paper has no score of maps, theirs is held against its "
        "effect on val."
    )
    yield f"A predicted 255 counts as {config.evaluate.ignored_prediction}."


if __name__ == "__main__":
    sys.exit(main())
