"""The instruction sets compute the same: this processor's own here, narrower ones each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gwsss_fast.native import library
from tests.native.computed import results

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("wanted", ["", "sse9"])
def test_no_choice_and_an_unknown_one_take_the_widest(wanted: str) -> None:
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)
    code = "from gwsss_fast.native import library as l; l.prepare(); print(l.information()['instruction set in use'])"
    settings = {**os.environ, "GWSSS_CPU": wanted}
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "GWSSS_CPU" not in os.environ:
        assert done.stdout.strip() == library.information()["instruction set in use"]
    assert ("GWSSS_CPU=sse9 is not baseline, avx2 or avx512" in done.stderr) == (wanted != "")


@pytest.mark.parametrize("wanted", ["baseline", "avx2"])
def test_instruction_sets_agree(wanted: str, tmp_path: Path) -> None:
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)
    path = tmp_path / "results.pt"
    done = subprocess.run(
        [sys.executable, "-m", "tests.native.computed", str(path)],
        env={**os.environ, "GWSSS_CPU": wanted},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout in (wanted, "baseline")  # a processor without it takes the narrowest
    for value, other in zip(results(), torch.load(path), strict=True):
        allowed = 4e-6 if value.dtype == torch.float32 else 2 * torch.finfo(torch.bfloat16).eps
        assert (value - other).abs().max() <= allowed * other.abs().max()
