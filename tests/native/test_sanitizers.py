"""The library built with AddressSanitizer and UndefinedBehaviorSanitizer computes many odd shapes without a word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gwsss_fast.native import build

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = "address,undefined"
CODE = """
import torch
from gwsss_fast import ops
from gwsss_fast.native import convolutions, library

convolutions._WIDE = convolutions._MANY = 1  # Winograd's way at every size
assert library.prepare() is None
assert library.information()["sanitizers"] == "address,undefined"
print(library.information()["instruction set in use"])
widths = dict(sxy_gaussian=3.0, w_gaussian=3.0, sxy_bilateral=80.0, srgb=13.0, w_bilateral=10.0, iterations=2)
generator = torch.Generator().manual_seed(0)
fine = {"srgb": 1.0, "sxy_bilateral": 3.0, "sxy_gaussian": 1.0}
shapes = ((1, 1, 1), (2, 1, 7), (3, 5, 1), (8, 17, 33), (9, 60, 80), (21, 31, 40), (33, 9, 50), (81, 20, 20))
for labels, height, width in shapes:
    for changed in ({}, fine, {"w_gaussian": 0.0}, {"w_bilateral": 300.0}):
        prob = torch.rand(labels, height, width, generator=generator).requires_grad_()
        image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
        with ops.backend("cpp"):
            marginals = ops.dense_crf(prob, image, **{**widths, **changed})
            marginals[0].sum().backward()
        assert marginals.isfinite().all() and prob.grad.isfinite().all()
        torch.testing.assert_close(marginals.sum(0), torch.ones(height, width))
        # The steps of the GPU's implementation touch the same memory there.
        given = (prob.detach(), image, *{**widths, **changed}.values())
        assert torch.ops.gwsss_fast_native.dense_crf_steps(*given).isfinite().all()
        assert torch.ops.gwsss_fast_native.dense_crf_steps_backward(marginals.detach(), *given).isfinite().all()
for shape in ((0, 4, 4), (3, 0, 4)):
    image = torch.zeros(*shape[1:], 3, dtype=torch.uint8)
    try:
        torch.ops.gwsss_fast_native.dense_crf(torch.zeros(shape), image, *widths.values())
    except (RuntimeError, ValueError):
        pass
for groups, nodes, positions, channels in ((1, 1, 1, 1), (2, 3, 17, 5), (1, 2, 33, 49), (1, 4, 1, 20), (0, 2, 3, 4)):
    for dtype in (torch.float32, torch.bfloat16):
        g = torch.randn(groups, nodes, positions, channels, generator=generator).to(dtype).requires_grad_()
        state = torch.randn(nodes, channels, positions, 1, generator=generator).to(dtype).requires_grad_()
        weight = torch.randn(3 * channels, 2 * channels, 3, 3, generator=generator).to(dtype).requires_grad_()
        with ops.backend("cpp"):
            results = [ops.graph_dropout(g, torch.linspace(0.1, 0.9, groups)), *ops.edge_readout(g)]
            results.append(ops.conv_gru(state, state, weight, weight.detach()[:, 0, 0, 0]))
        sum(x.sum() for x in results).backward()
        assert all(x.isfinite().all() for x in (*results, g.grad, state.grad, weight.grad))
for channels in (1, 20, 48, 64):
    for dtype in (torch.float32, torch.bfloat16):
        g = torch.randn(2, 2, 37, channels, generator=generator).to(dtype)
        for past in (False, True):
            r = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
            out, o = torch.ops.gwsss_fast_native.graph_dropout_on_cpu(g, r, 0.8, 0.7, True, past)
            slopes = torch.ops.gwsss_fast_native.graph_dropout_on_cpu_backward(g, g, o, r, 0.8, 0.7, True, past)
            assert out.isfinite().all() and slopes.isfinite().all()
torch.ops.gwsss_fast_native.dense_crf_forget()
edges = ((1, 1, 5, 3, 2), (2, 3, 37, 20, 5), (1, 2, 1, 1, 1), (1, 2, 230, 41, 12))
for groups, nodes, positions, channels, rank in edges:
    for dtype in (torch.float32, torch.bfloat16):
        shape = (groups, nodes, positions)
        sizes = (rank, rank, channels, channels, channels)
        tensors = [torch.randn(*shape, size, generator=generator).to(dtype).requires_grad_() for size in sizes]
        with ops.backend("cpp"):
            for reverse in ops.REVERSES:
                ops.co_attention(*tensors[:3], reverse=reverse).sum().backward()
            ops.attention(*tensors[:3], residual=tensors[3], message=tensors[4], message_scale=0.5).sum().backward()
        assert all(x.grad.isfinite().all() for x in tensors)
print("clean")
"""


def runtime(compiler: str, name: str) -> str:
    """Path of a sanitizer's library, "" if the compiler has none."""
    done = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    path = done.stdout.strip()
    return path if Path(path).is_absolute() else ""


def test_sanitizers_have_nothing_to_say() -> None:
    source = build.source_folder()
    assert source is not None
    try:
        tools = build.find_tools(source)
    except build.BuildError as error:
        pytest.skip(str(error))
    preload = [runtime(tools.compiler, name) for name in ("libasan.so", "libubsan.so")]
    if not all(preload):
        pytest.skip(f"{tools.compiler} comes without sanitizers")
    environment = {**os.environ, "GWSSS_SANITIZE": SANITIZERS, "OMP_NUM_THREADS": "2"}
    # Built without the preloaded libraries, which would slow the compiler down.
    ensure = "from gwsss_fast.native import library; library.ensure()"
    subprocess.run([sys.executable, "-c", ensure], env=environment, cwd=ROOT, check=True)
    environment |= {"LD_PRELOAD": os.pathsep.join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    for instructions in ("avx512", "baseline"):
        environment["GWSSS_CPU"] = instructions
        done = subprocess.run(
            [sys.executable, "-c", CODE], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert done.stdout.splitlines()[-1] == "clean"
        assert "runtime error" not in done.stderr
