"""What one process of a job meets ends all of them, with one message, whatever the others wait for."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gwsss_fast import cli, distributed
from gwsss_fast.errors import GwsssError, Terminated
from tests.ranks import output, start_ranks, statuses

ONE = 1  # the process that something happens to


def happen(event: str) -> None:
    if event == "error":
        raise GwsssError("the cup is broken")
    if event == "disk":
        raise OSError(28, "No space left on device", "/cup")
    if event == "interrupt":
        raise KeyboardInterrupt
    if event == "terminate":
        raise Terminated
    if event == "help":
        raise SystemExit(0)
    if event == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError("a mistake of the program")


def disturbed(event: str, at: int, others: str) -> None:
    """Process `at` meets `event` while the others wait for it, or work by themselves."""

    def body() -> None:
        distributed.wait()
        if others == "main":
            distributed.on_main(lambda: happen(event))
        if distributed.rank() == at:
            happen(event)
        if others == "wait":
            distributed.gather(1)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            time.sleep(0.01)
            distributed.check()
        distributed.gather(1)

    sys.exit(cli.run(body))


ERROR = ("error", 2, "error: the cup is broken")
INTERRUPT = ("interrupt", 130, "stopped; continue with --resume")


@pytest.mark.parametrize(
    ("event", "status", "message", "others"),
    [
        (*ERROR, "wait"),
        (*ERROR, "work"),
        (*INTERRUPT, "wait"),
        (*INTERRUPT, "work"),
        ("terminate", 143, "stopped; continue with --resume", "work"),
        ("disk", 2, "error: cannot read or write /cup: No space left on device", "wait"),
        ("kill", 2, "error: another process of the job has died", "wait"),
        ("mistake", 2, "ZeroDivisionError: a mistake of the program", "wait"),
    ],
)
def test_what_happens_to_one_ends_all(event: str, status: int, message: str, others: str, tmp_path: Path) -> None:
    start = time.monotonic()
    found = statuses(start_ranks(3, disturbed, (event, ONE, others), tmp_path))
    own = {"kill": -signal.SIGKILL, "mistake": 1}.get(event, status)
    assert found == [status, own, status], output(tmp_path)
    assert output(tmp_path).count(message) == 1, output(tmp_path)
    assert output(tmp_path).count("Traceback") == (event == "mistake"), output(tmp_path)
    assert time.monotonic() - start < distributed.GRACE


def hanging() -> None:
    """A process fails, and cannot leave the others; a group on GPUs may wait for them for ever."""
    distributed.GRACE = 0.5
    distributed.dist.destroy_process_group = lambda: time.sleep(60)  # type: ignore[assignment]

    def body() -> None:
        if distributed.rank() == ONE:
            happen("error")
        distributed.wait()

    sys.exit(cli.run(body))


def test_a_process_that_cannot_leave_ends_all_the_same(tmp_path: Path) -> None:
    start = time.monotonic()
    assert statuses(start_ranks(2, hanging, (), tmp_path)) == [2, 2], output(tmp_path)
    assert output(tmp_path).splitlines() == ["error: the cup is broken"]
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(("event", "status"), [("error", 2), ("interrupt", 130), ("help", 0)])
def test_what_process_0_meets_while_the_others_wait_for_it_ends_all(event: str, status: int, tmp_path: Path) -> None:
    assert statuses(start_ranks(2, disturbed, (event, 0, "main"), tmp_path)) == [status, status], output(tmp_path)
    assert len(output(tmp_path).splitlines()) == (event != "help"), output(tmp_path)
