"""Graph dropout for GPUs, on a GPU. (test_emulated_kernels.py runs the same kernels without one.)"""

import pytest
import torch

from gwsss_fast import ops
from gwsss_fast.native import library

SHAPES = [(1, 1, 1, 1), (2, 1, 37, 20), (1, 3, 785, 12), (2, 2, 9, 17), (1, 2, 64, 512), (1, 1, 5, 700), (3, 1, 8, 36)]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible to PyTorch")


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (8, 4, 784, 512), (1, 8, 3136, 512), (300, 3, 4, 8)], ids=str)
def test_gpu_and_reference_agree(shape, dtype):
    """In clusters where nodes fit, else in two passes; the same bits twice; as good as PyTorch in that dtype."""
    if (reason := library.prepare_on_gpu()) is not None:
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(1)
    g, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    draws = torch.rand(shape[:2], generator=generator)
    found = []
    runs = [("cpu", "reference", torch.float64), *[("cuda", "cuda", dtype)] * 2, ("cuda", "reference", dtype)]
    for device, backend, kind in runs:
        leaf = g.to(device, kind, copy=True).requires_grad_()
        with ops.backend(backend):
            out = ops.graph_dropout(leaf, draws.to(device))
        out.backward(grad.to(device, kind))
        found.append((out.detach(), leaf.grad))
    exact, ours, again, plain = found
    for i, factor in enumerate((2, 3)):
        assert torch.equal(ours[i], again[i])
        error, allowed = ((x[i].double().cpu() - exact[i]).abs().max() for x in (ours, plain))
        assert error <= factor * allowed + torch.finfo(dtype).eps / 4 * exact[i].abs().max()


@on_gpu
def test_rows_that_begin_anywhere_and_strides_and_a_stream():
    if (reason := library.prepare_on_gpu()) is not None:
        pytest.skip(reason)
    draws = torch.tensor([0.9, 0.1], device="cuda")
    memory = torch.randn(2 * 3 * 50 * 64 + 1, device="cuda").bfloat16()
    shifted, loose = memory[1:].view(2, 3, 50, 64), memory[1:].view(2, 3, 64, 50).mT
    with ops.backend("cuda"), torch.cuda.stream(torch.cuda.Stream()):
        for g in (shifted, loose):
            assert torch.equal(ops.graph_dropout(g, draws), ops.graph_dropout(g.clone(), draws))
    torch.cuda.synchronize()
