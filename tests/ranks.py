"""Several processes of one job, as torchrun would start them, without the seconds that its own start takes."""

import contextlib
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.processes import start, start_function

PATIENCE = 90  # seconds


def launch(count: int, arguments: list[str], folder: Path, **environment: str) -> list[ForkServerProcess]:
    """`gwsss-fast ARGUMENTS` in `count` processes; process r writes to FOLDER/log-r."""
    return [start(arguments, log, **own, **environment) for log, own in _places(count, folder)]


def start_ranks(
    count: int, function: Callable[..., None], arguments: tuple[Any, ...], folder: Path
) -> list[ForkServerProcess]:
    """function(*arguments) in `count` processes, which have yet to join."""
    return [start_function(function, arguments, log, **own) for log, own in _places(count, folder)]


def launch_function(count: int, function: Callable[..., None], arguments: tuple[Any, ...], folder: Path) -> None:
    """function(*arguments) in `count` processes that have joined; all have to end well."""
    assert statuses(start_ranks(count, _joined, (function, arguments), folder)) == [0] * count, output(folder)


def statuses(processes: list[ForkServerProcess]) -> list[int | None]:
    """The exit statuses of all, once all have ended; None for one that hangs, which is killed."""
    for process in processes:
        process.join(PATIENCE)
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found


def together(count: int, arguments: list[str], folder: Path, **environment: str) -> str:
    """Run a command that has to succeed, and give what it printed."""
    assert statuses(launch(count, arguments, folder, **environment)) == [0] * count, output(folder)
    return output(folder)


def output(folder: Path) -> str:
    """What the processes printed, one after the other."""
    return "".join(path.read_text() for path in sorted(folder.glob("log-*")))


def _places(count: int, folder: Path) -> list[tuple[Path, dict[str, str]]]:
    folder.mkdir(exist_ok=True)
    for path in folder.glob("log-*"):
        path.unlink()
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [(folder / f"log-{rank}", {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared}) for rank in range(count)]


def _joined(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    from gwsss_fast import distributed

    with distributed.job():
        function(*arguments)
