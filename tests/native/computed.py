"""Results of the native operations, and those of a process of its own."""

import sys
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from gwsss_fast import ops
from gwsss_fast.native import convolutions, library
from tests.ops.golden import run


def _past_the_caches(g: Tensor, grad: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Graph dropout of rows that may be written so by every instruction set."""
    raw, r = torch.ops.gwsss_fast_native, torch.tensor([0.1, 0.9])
    out, o = raw.graph_dropout_on_cpu(g, r, 0.8, 0.7, True, True)
    return [out], [raw.graph_dropout_on_cpu_backward(grad, g, o, r, 0.8, 0.7, True, True)]


def results() -> list[Tensor]:
    """Values and gradients in float32 and bfloat16, with convolutions by Winograd's way at one size of two."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    found = []
    with mock.patch.multiple(convolutions, _WIDE=20, _MANY=1):
        for dtype in (torch.float32, torch.bfloat16):
            for channels in (5, 49):
                g, grad = draw(2, 3, 37, channels).to(dtype), draw(2, 3, 37, channels)
                found.append(run("cpp", lambda x: ops.graph_dropout(x, torch.tensor([0.1, 0.9])), [g], [grad]))
                found.append(_past_the_caches(draw(2, 3, 37, 48).to(dtype), draw(2, 3, 37, 48).to(dtype)))
                grads = [draw(2, 3, 3, 2 * channels) for _ in range(2)]
                found.append(run("cpp", ops.edge_readout, [g / channels**0.5], grads))
                weight, bias = draw(3 * channels, 2 * channels, 3, 3) / channels, draw(3 * channels)
                tensors = [draw(2, channels, 3, 5), draw(2, channels, 3, 5), weight, bias]
                found.append(run("cpp", ops.conv_gru, [x.to(dtype) for x in tensors], [draw(2, channels, 3, 5)]))
    return [x for values in found for part in values for x in part]


def write(path: str | Path) -> None:
    """Write the results of this process, and the instruction set that they were computed with to stdout."""
    torch.save(results(), path)
    sys.stdout.write(library.information()["instruction set in use"])
