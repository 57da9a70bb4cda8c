"""Commands and code in processes of their own, started in a moment: forked from a server that has imported all."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

_CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["gwsss_fast.train", "gwsss_fast.report_run", "torch.utils.tensorboard"])


def start(arguments: list[str], log: Path, **environment: str) -> ForkServerProcess:
    """`gwsss-fast ARGUMENTS` in a new process, its output in `log`. Its exit status is the process's `exitcode`."""
    return start_function(_command, (arguments,), log, **environment)


def start_function(
    function: Callable[..., None], arguments: tuple[Any, ...], log: Path, **environment: str
) -> ForkServerProcess:
    """function(*arguments) in a new process, by one thread, its output in `log`."""
    process = _CONTEXT.Process(target=_run, args=(function, arguments, log, environment))
    process.start()
    return process


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -c CODE` with everything imported already, by one thread; at most five minutes."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("out", "err")]
        process = _CONTEXT.Process(target=_code, args=(code, streams, {**os.environ, **environment}))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        return subprocess.CompletedProcess(code, process.exitcode or 0, *(path.read_text() for path in streams))


def _code(code: str, streams: list[Path], environment: Mapping[str, str]) -> None:
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})


def _run(function: Callable[..., None], arguments: tuple[Any, ...], log: Path, environment: Mapping[str, str]) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    function(*arguments)


def _command(arguments: list[str]) -> None:
    from gwsss_fast.cli import main

    sys.exit(main(arguments))
