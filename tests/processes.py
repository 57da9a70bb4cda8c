"""Commands in processes of their own, started in a moment: they are forked from a server that has imported all."""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

_CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["gwsss_fast.train", "gwsss_fast.report_run", "torch.utils.tensorboard"])


def start(arguments: list[str], log: Path, **environment: str) -> ForkServerProcess:
    """`gwsss-fast ARGUMENTS` in a new process, its output in `log`. Its exit status is the process's `exitcode`."""
    process = _CONTEXT.Process(target=_run, args=(arguments, log, environment))
    process.start()
    return process


def _run(arguments: list[str], log: Path, environment: Mapping[str, str]) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ.update(environment)
    import torch

    from gwsss_fast.cli import main

    torch.set_num_threads(1)
    sys.exit(main(arguments))
