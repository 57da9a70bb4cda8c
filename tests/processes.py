"""Commands in processes of their own, started in a moment: they are forked from a server that has imported all."""

import multiprocessing
import os
import sys
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
