"""One server for all tests of this folder that need real models."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.clients import command


@pytest.fixture(scope="session")
def served(finished: tuple[Path, Path]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """(process, port) of a server with the models of the finished run; in the end Ctrl-C stops it without a word."""
    run = finished[1]
    models = ("--model", run / "segmenter" / "last.pt", "--classifier", run / "classifier" / "last.pt")
    with command(*models, "--precision", "fp32", "--timeout", "2") as (process, port):
        yield process, port
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
