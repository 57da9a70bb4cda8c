"""Winograd's convolution against PyTorch's in float64, at odd sizes and in several parts; hostile arguments."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from gwsss_fast import ops
from gwsss_fast.native import convolutions, library, winograd
from tests.ops.cases import dense
from tests.ops.golden import assert_as_good_as_plain, poisoned_memory

if library.prepare() is not None:
    pytest.skip(str(library.prepare()), allow_module_level=True)

RAW = torch.ops.gwsss_fast_native
SHAPES = [(1, 1, 1, 1, 1), (2, 5, 7, 20, 12), (3, 4, 4, 16, 33), (1, 1, 6, 5, 64), (5, 3, 2, 7, 7)]  # (M, H, W, I, O)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return dense(shape, torch.float32, torch.Generator().manual_seed(seed + sum(shape)))


@pytest.mark.parametrize("tiles", [1024, 7])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_and_gradients(shape: tuple[int, ...], tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiles: images are worked on in parts when they have more than that together."""
    monkeypatch.setattr(winograd, "_TILES", tiles)
    count, height, width, inputs, outputs = shape
    images, weight, bias = draw(count, height, width, inputs), draw(outputs, inputs, 3, 3), draw(outputs)
    slope = draw(count, height, width, outputs, seed=1)
    wide = [x.double().requires_grad_() for x in (images, weight, bias)]
    exact = conv2d(wide[0].permute(0, 3, 1, 2), *wide[1:], padding=1).permute(0, 2, 3, 1)
    of_images, of_weight = torch.autograd.grad(exact, wide[:2], slope.double())
    with poisoned_memory():
        ours = winograd.convolution(images, weight, bias)
        found = [ours, winograd.input_gradient(slope, weight), winograd.weight_gradient(slope, images)]
    for value, truth in zip(found, (exact, of_images, of_weight), strict=True):
        assert value.is_contiguous()
        assert (value - truth).abs().max() <= 3e-6 * truth.abs().max()


def test_the_update_takes_it_where_there_is_much_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    original = winograd.convolution
    monkeypatch.setattr(winograd, "convolution", lambda *x: taken.append(1) or original(*x))
    monkeypatch.setattr(convolutions, "_WIDE", 8)
    monkeypatch.setattr(convolutions, "_MANY", 30)
    tensors = [draw(2, 12, 5, 7), draw(2, 12, 5, 7, seed=1), draw(36, 24, 3, 3).mT / 15, draw(36, 2)[:, 0]]
    assert_as_good_as_plain("cpp", ops.conv_gru, tensors, [draw(2, 12, 5, 7, seed=2)])
    assert len(taken) == (2 if convolutions.has_onednn() else 0)
    taken.clear()
    with ops.backend("cpp"):
        ops.conv_gru(*(x.bfloat16() for x in tensors))
        ops.conv_gru(tensors[0][..., :1, :], tensors[1][..., :1, :], *tensors[2:])
    assert not taken


def test_hostile_arguments_are_named() -> None:
    images, weight, bias = torch.zeros(1, 3, 3, 4), torch.zeros(5, 4, 3, 3), torch.zeros(4)
    planes = [torch.zeros(4, 4) for _ in range(16)]
    for_weight = [torch.zeros(5, 4) for _ in range(16)]
    hostile = [
        ("images must", lambda: RAW.winograd_input(images[0], planes)),
        ("images must", lambda: RAW.winograd_input(images.double(), planes)),
        ("images must be contiguous", lambda: RAW.winograd_output_gradient(images.transpose(1, 2), planes)),
        ("planes must be 16", lambda: RAW.winograd_input(images, planes[1:])),
        ("planes must have the shape", lambda: RAW.winograd_output([*planes[1:], torch.zeros(4, 5)], bias, images)),
        ("bias must", lambda: RAW.winograd_output(planes, bias[1:], images)),
        ("weight must", lambda: RAW.winograd_weight(weight[..., :2], False, for_weight)),
        ("planes must have the shape", lambda: RAW.winograd_weight(weight, True, for_weight)),
        ("weight must be contiguous", lambda: RAW.winograd_weight_gradient(for_weight, weight.transpose(2, 3))),
    ]
    for message, call in hostile:
        with pytest.raises(RuntimeError, match=message):
            call()
