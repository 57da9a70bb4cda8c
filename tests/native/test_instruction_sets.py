"""The instruction sets compute the same: this processor's own here, narrower ones each in a process of its own."""

import os
from pathlib import Path

import pytest
import torch

from gwsss_fast.native import library
from tests.native.computed import results
from tests.processes import python


@pytest.mark.parametrize("wanted", ["", "sse9"])
def test_no_choice_and_an_unknown_one_take_the_widest(wanted: str) -> None:
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)
    code = "from gwsss_fast.native import library as l; l.prepare(); print(l.information()['instruction set in use'])"
    done = python(code, GWSSS_CPU=wanted)
    if "GWSSS_CPU" not in os.environ:
        assert done.stdout.strip() == library.information()["instruction set in use"]
    assert ("GWSSS_CPU=sse9 is not baseline, avx2 or avx512" in done.stderr) == (wanted != "")


@pytest.mark.parametrize("wanted", ["baseline", "avx2"])
def test_instruction_sets_agree(wanted: str, tmp_path: Path) -> None:
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)
    path = tmp_path / "results.pt"
    done = python(f"from tests.native import computed; computed.write({str(path)!r})", GWSSS_CPU=wanted)
    assert done.returncode == 0, done.stderr
    assert done.stdout in (wanted, "baseline")  # a processor without it takes the narrowest
    for value, other in zip(results(), torch.load(path), strict=True):
        allowed = 4e-6 if value.dtype == torch.float32 else 2 * torch.finfo(torch.bfloat16).eps
        assert (value - other).abs().max() <= allowed * other.abs().max()
