"""The three instruction sets compute the same, each in a process of its own, which it is chosen for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gwsss_fast.native import library

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys, torch
from gwsss_fast import ops
from gwsss_fast.native import library
from tests.ops.golden import run

assert library.prepare() is None
generator = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=generator)
found = []
for dtype in (torch.float32, torch.bfloat16):
    for channels in (5, 20, 49):
        g, grad = draw(2, 3, 37, channels).to(dtype), draw(2, 3, 37, channels)
        found.append(run("cpp", lambda x: ops.graph_dropout(x, torch.tensor([0.1, 0.9])), [g], [grad]))
        found.append(run("cpp", ops.edge_readout, [g / channels**0.5], [draw(2, 3, 3, 2 * channels) for _ in range(2)]))
        weight, bias = draw(3 * channels, 2 * channels, 1, 1).to(dtype) / channels, draw(3 * channels).to(dtype)
        m, h = (draw(2, channels, 3, 5).to(dtype) for _ in range(2))
        found.append(run("cpp", ops.conv_gru, [m, h, weight, bias], [draw(2, channels, 3, 5)]))
torch.save([x for results in found for part in results for x in part], sys.argv[1])
print(library.information()["instruction set in use"])
"""


def test_instruction_sets_agree(tmp_path: Path) -> None:
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)
    found, used = {}, {}
    for wanted in ("baseline", "avx2", "avx512"):
        path = tmp_path / f"{wanted}.pt"
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(path)],
            env={**os.environ, "GWSSS_CPU": wanted},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found[wanted], used[wanted] = torch.load(path), done.stdout.strip()
    assert used["baseline"] == "baseline"
    for wanted, results in found.items():
        assert all(x.isfinite().all() for x in results)
        for value, other in zip(results, found["baseline"], strict=True):
            scale = other.abs().max().item()
            allowed = 4e-6 if value.dtype == torch.float32 else 2 * torch.finfo(torch.bfloat16).eps
            assert (value - other).abs().max() <= allowed * scale, wanted
