"""The console script `gwsss-fast <verb>`, and what all commands share: options, exit status, one clear message."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gwsss_fast import distributed
from gwsss_fast.config import Config, absolute_paths, check, closest, differences, load_config, read_config
from gwsss_fast.data.check import unreadable_images, verify_files, without_images
from gwsss_fast.data.images import set_pixel_limit
from gwsss_fast.data.loading import worker_death
from gwsss_fast.errors import GwsssError
from gwsss_fast.ops import backend as use_backend
from gwsss_fast.training.checkpoints import load_checkpoint
from gwsss_fast.training.guards import out_of_memory
from gwsss_fast.training.logs import say
from gwsss_fast.training.precision import check_precision, choose_device, set_threads
from gwsss_fast.training.runs import STAGES, Run, environment, open_data
from gwsss_fast.training.signals import Terminated, terminating

MEANINGS = {
    "train": "from images with tags to a segmentation network: all stages, or one of them",
    "cam": "class activation maps of a run's classifier again",
    "pseudo": "pseudo labels from a run's maps again",
    "evaluate": "predict and score a run again, or score a folder of maps or masks",
    "predict": "masks of further images and videos",
    "export-model": "a trained network as ONNX, TensorRT or another file",
    "localize": "boxes from maps, and their scores",
    "serve": "a web page and an HTTP endpoint",
    "report": "the HTML report of a run again",
    "reproduce": "the tables of the paper, over seeds",
    "check-data": "what a data set holds, and what is wrong with it",
    "doctor": "versions, and what computes here or why not",
}
VERBS = {verb: {"report": "report_run"}.get(verb, verb.replace("-", "_")) for verb in MEANINGS}
USAGE = "\n".join(
    [
        "usage: gwsss-fast VERB [OPTIONS]",
        "",
        *(f"  {verb:<13} {meaning}" for verb, meaning in MEANINGS.items()),
        "",
        "`gwsss-fast VERB --help` lists the options.",
    ]
)
HARMLESS = (
    *("device", "threads", "backend", "output", "data.workers", "data.cache_mb", "data.cache_dir", "data.verify"),
    *("data.max_megapixels", "data.on_bad_image", "data.bad_image_limit"),
)
BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
REPEATED = ("cam", "pseudo", "evaluate")  # stages with a command of their own, which takes their options
_Arguments = TypeVar("_Arguments")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gwsss-fast VERB OPTIONS` and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else BAD_INPUT
    verb = arguments[0].replace("_", "-").replace("report-run", "report")  # as its module is called
    if verb not in VERBS:
        print(f"error: unknown verb {arguments[0]!r}{closest(verb, list(VERBS))}", file=sys.stderr)
        return BAD_INPUT
    try:
        command = importlib.import_module(f"gwsss_fast.{VERBS[verb]}")
    except KeyboardInterrupt:
        return INTERRUPTED
    return command.main(arguments[1:]) or 0


def run(body: Callable[[], None]) -> int:
    """Call `body`, in all processes that torchrun has started together.

    Bad input and a refusing disk become one line on stderr and status 2, Ctrl-C becomes 130, SIGTERM 143.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of classes and files, on a terminal without letters
    try:
        with distributed.job():
            body()
    except distributed.ToldError:
        return BAD_INPUT
    except GwsssError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        if int(os.environ.get("RANK", "0")) == 0:
            print("stopped; continue with --resume", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except RuntimeError as error:
        problem = worker_death(error)
        if out_of_memory(error):
            problem = GwsssError("no memory left; lower --groups, --cam.groups, --batch or the images' size")
        if problem is None:
            raise
        print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"error: cannot read or write{where}: {error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def parse(kind: type[_Arguments], default: _Arguments, arguments: Sequence[str], prog: str, text: str) -> _Arguments:
    """Fill `kind` from the command line. `--help` prints the options and exits 0.

    Raises GwsssError with one line for an unknown option or a bad value.
    """
    stream = io.StringIO()
    try:
        with contextlib.redirect_stderr(stream):
            values = [_value(item) for item in arguments]
            return tyro.cli(kind, default=default, args=values, prog=prog, description=text)
    except SystemExit as end:
        if not end.code:
            raise
        raise GwsssError(f"{_problem(stream.getvalue(), default)} (`{prog} --help` lists the options)") from None


@dataclass(frozen=True)
class StageArguments:
    """One stage again, from a run's folder or a checkpoint."""

    config: tyro.conf.FlagConversionOff[Annotated[Config, tyro.conf.arg(name="")]]
    run: str | None = None
    """Folder of the run."""
    checkpoint: str | None = None
    """Classifier to use instead of RUN/classifier/last.pt; then --output names a new folder."""


_Stage = TypeVar("_Stage", bound=StageArguments)


def open_stage(kind: type[_Stage], verb: str, arguments: Sequence[str]) -> tuple[_Stage, Run]:
    """The arguments and the run of a single-stage command; only the section `verb` may differ from the stored run.
    Nothing is written: the stage does that when it begins.

    Raises GwsssError when neither a run nor a checkpoint is given, or when one of them cannot be used.
    """
    options = distributed.on_main(lambda: _stage_options(kind, verb, arguments))
    folder, checkpoint = peek(arguments, "--run"), peek(arguments, "--checkpoint")
    run = open_run(Path(folder or str(options.config.output)), options.config)
    run.checkpoint = Path(checkpoint) if checkpoint else None
    return options, run


def _stage_options(kind: type[_Stage], verb: str, arguments: Sequence[str]) -> _Stage:
    prog, wants_help = f"gwsss-fast {verb}", bool({"-h", "--help"} & set(arguments))
    folder, checkpoint = peek(arguments, "--run"), peek(arguments, "--checkpoint")
    base = Config()
    if folder is not None:
        base = stored_config(Path(folder))
    elif checkpoint is not None:
        content = load_checkpoint(checkpoint)
        base = absolute_paths(read_config(str(content.get("config", "")), checkpoint))
    elif not wants_help:
        raise GwsssError(f"{prog} needs --run DIR, or --checkpoint FILE with --output DIR")
    options = parse(kind, kind(config=base), arguments, prog, kind.__doc__ or "")
    config = absolute_paths(check(options.config, "command line"))
    if folder is not None:
        refuse_changes(base, config, Path(folder), lambda stage: stage != verb)
    else:
        if config.output is None:
            raise GwsssError(f"{prog} --checkpoint needs --output DIR, a new folder for what it makes")
        refuse_existing(Path(config.output))
    return replace(options, config=config)


def stored_config(folder: Path) -> Config:
    """The configuration of a run. Raises GwsssError when `folder` is none."""
    if not (folder / "config.yaml").is_file():
        raise GwsssError(f"{folder} is not the folder of a run: it has no config.yaml")
    return absolute_paths(load_config(folder / "config.yaml"))


def open_run(folder: Path, config: Config, verify: bool = False) -> Run:
    """Check the machine and the data, and give the run; writes nothing."""
    set_threads(config.threads)
    device = choose_device(config.device)
    check_precision(config.precision, device)
    set_pixel_limit(config.data.max_megapixels)
    data = distributed.main_first(lambda: open_data(config.data))
    bad: dict[Path, str] = {}
    if config.data.verify and config.data.on_bad_image == "skip":  # each time, so that all stages see the same images
        bad = distributed.on_main(lambda: unreadable_images(data, config.data.bad_image_limit))
        data = without_images(data, bad) if bad else data
    elif config.data.verify and verify:
        distributed.on_main(lambda: verify_files(data))
    run = Run(folder, config, data, device)
    for reason in bad.values():
        run.note(f"left out: {reason}")
    return run


def refuse_existing(folder: Path) -> None:
    """Raises GwsssError when `folder` is a file or holds anything."""
    if folder.exists() and not folder.is_dir():
        raise GwsssError(f"output {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise GwsssError(f"output {folder} exists and is not empty; continue it with --resume or name another folder")


def refuse_changes(old: Config, new: Config, folder: Path, fixed: Callable[[str], bool]) -> None:
    """Raises GwsssError when a field of a stage that is `fixed` differs from the stored configuration."""
    for key, (before, after) in differences(old, new).items():
        stage = stage_of(key)
        if stage is not None and fixed(stage):
            again = f", repeat it by `gwsss-fast {stage} --run {folder} ...`" if stage in REPEATED else ""
            raise GwsssError(
                f"{key} is {before} in {folder / 'config.yaml'} and {after} now, but stage {stage} has been worked on; "
                f"keep the old value{again} or use another --output"
            )


def stage_of(key: str) -> str | None:
    """The first stage whose result depends on the field; None for fields that change no result."""
    section, _, name = key.rpartition(".")
    trained_alike = section == "training" and name != "sync_batch_norm"
    if key in HARMLESS or trained_alike or name == "checkpoint_every":
        return None
    return section if section in STAGES and key != "cam.oaa" else "classifier"


def run_stage(run: Run, stage: str, body: Callable[[Run], None]) -> None:
    """Run one stage: time it and record it in metrics.json.

    `body` calls `run.begin` when it has checked all it needs; what it raises before leaves the folder as it was.
    """
    start, spent = time.perf_counter(), run.metrics().get("interrupted", {}).get(stage, 0.0)
    try:
        with use_backend(run.config.backend), terminating():
            body(run)
    except KeyboardInterrupt:
        if distributed.is_main() and run.folder.is_dir():
            with distributed.alone():  # the others may not come here
                run.add_metrics(interrupted={stage: round(spent + time.perf_counter() - start, 2)})
        raise
    metrics = run.metrics()
    run.add_metrics(
        seconds={stage: round(spent + time.perf_counter() - start, 2)},
        environment=environment(run.device),
        interrupted={stage: 0.0} if spent else {},
        outdated=[name for name in metrics.get("outdated", []) if name != stage],
    )


def print_summary(run: Run) -> None:
    """The one table of results on stdout, and where the report lies."""
    if not distributed.is_main():
        return
    table = summary(run.metrics())
    console = Console()
    if table.row_count:
        console.print(table)
    report = run.folder / "report.html"
    say(console, f"{'report' if report.is_file() else 'run'}: {report if report.is_file() else run.folder}")


def summary(metrics: dict[str, Any]) -> Table:
    """Maps, pseudo labels and segmentation of metrics.json as a table; what was not scored has no row."""
    table = Table("result", "mIoU %", "", title="results")
    for name, scores in metrics.get("cam", {}).items():
        table.add_row(
            f"maps on train, {name}", _percent(scores["miou"]), f"at threshold {scores['best_threshold']:.2f}"
        )
    pseudo = metrics.get("pseudo", {})
    if pseudo:
        table.add_row("pseudo labels", _percent(pseudo.get("miou")), f"coverage {_percent(pseudo['coverage'])} %")
    for name, scores in metrics.get("cam_val", {}).items():
        words = {"tags": "true tags", "predicted": "predicted tags"}[name]
        table.add_row(f"maps on val, {words}", _percent(scores["miou"]), f"at threshold {scores['best_threshold']:.2f}")
    if "segmentation_tags" in metrics:
        table.add_row("segmentation on val, true tags", _percent(metrics["segmentation_tags"]["miou"]), "")
    if "segmentation_network" in metrics:
        table.add_row("segmentation on val, before CRF", _percent(metrics["segmentation_network"]["miou"]), "")
    segmentation = metrics.get("segmentation", {})
    if segmentation:
        table.add_row("[bold]segmentation on val", f"[bold]{_percent(segmentation['miou'])}", "")
        for name, value in segmentation["iou"].items():
            table.add_row(Text(f"  {name}"), _percent(value), "")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def peek(arguments: Sequence[str], *names: str) -> str | None:
    """The value of an option, by any of its names, before all of them are parsed; the last one where it is repeated."""
    value = None
    for item, following in zip(arguments, [*arguments[1:], None], strict=False):
        name, equals, text = item.partition("=")
        if name in names:
            value = text if equals else following or value
    return value


def option_names(values: Any, prefix: str = "") -> list[str]:
    """The long options of a (nested) dataclass of arguments; the field `config` lends its fields to its owner."""
    names: list[str] = []
    hints = get_type_hints(type(values), include_extras=True)
    for field in fields(values):
        for note in getattr(hints[field.name], "__metadata__", ()):
            names += getattr(note, "aliases", None) or ()
        value, name = getattr(values, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(value):
            names += option_names(value, prefix if field.name == "config" else f"{name}.")
        else:
            names.append(f"--{name}")
    return names


def _value(item: str) -> str:
    """`true`, `false` and `null` as tyro spells them."""
    return {"true": "True", "false": "False", "null": "None"}.get(item.lower(), item)


def _problem(text: str, values: Any) -> str:
    """What tyro prints in a box, as one line: the part above its rule, and the nearest option to an unknown one.

    Where the terminal takes ASCII alone the box has no sides, and a rule of dashes under its title too.
    """
    lines = [re.sub(r"^[│╭╰ ]+|[│╮╯ ]+$", "", line) for line in text.splitlines()[1:]]
    parts = re.split("^[─-]{3,}$", "\n".join(lines), flags=re.MULTILINE)
    problem = " ".join(next((part for part in parts if part.strip()), "").split()).rstrip(".")
    problem = re.sub(r"^Missing from .*?: [A-Z]+ (.*) \(required\)$", r"missing: \1", problem)
    unknown = re.search(r"(?<=Unrecognized options: )--[^\s,=]+", problem)
    if unknown is None:
        return problem
    name, names = unknown.group(0), option_names(values)
    ends = tuple(f"{joint}{name.lstrip('-')}" for joint in ".-")
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
    near = near or [option for option in names if option.endswith(ends)]  # --segmenter.lr and others for --lr
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"unknown option {name}" + (f"; did you mean {' or '.join(map(repr, near[:3]))}?" if near else "")
