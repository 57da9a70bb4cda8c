"""The dense CRF for GPUs: its steps run on the CPU against the CPU's own implementation, and on a GPU."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gwsss_fast import ops
from gwsss_fast.native import library
from tests.ops.test_dense_crf import NAMES, PRESETS, photograph

SIZES = [(60, 80, 3), (43, 57, 3), (41, 53, 21), (1, 1, 1), (1, 7, 2), (20, 20, 81), (33, 9, 37)]
ODD = {
    "without a position lattice": (3, 0, 20, 3, 4, 2),
    "without colours": (3, 3, 20, 3, 0, 2),
    "neither": (3, 0, 80, 13, 0, 3),
}
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible to PyTorch")


@pytest.fixture(scope="module")
def raw():
    if (reason := library.prepare()) is not None:
        pytest.skip(reason)
    return torch.ops.gwsss_fast_native


def arguments(values) -> tuple:
    return (*map(float, values[:5]), values[5])


def tensors(height: int, width: int, labels: int) -> tuple[Tensor, Tensor, Tensor]:
    prob, image = photograph(height, width, labels, seed=height + labels)
    grad = torch.randn(prob.shape, generator=torch.Generator().manual_seed(labels))
    return torch.tensor(prob), torch.tensor(image), grad


def assert_equal_enough(ours: Tensor, expected: Tensor) -> None:
    """Sums have another order, and ten updates enlarge that."""
    assert (ours.cpu() - expected).abs().max() <= 1e-4
    assert (ours.cpu().argmax(0) == expected.argmax(0)).float().mean() >= 0.999


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("height", "width"), [(43, 57), (60, 80), (1, 1), (1, 7), (120, 201)])
def test_pixels_fall_into_the_same_simplices(raw, preset, height, width):
    """Bit by bit: codes and weights of all corners. As many vertices, with those of zeros that fill a block of four."""
    image = torch.tensor(photograph(height, width, 1, seed=height)[1])
    sxy_gaussian, _, sxy_bilateral, srgb, _, _ = PRESETS[preset]
    for widths in ((sxy_gaussian, 0), (sxy_bilateral, srgb)):
        cpu, steps = (raw.dense_crf_simplices(image, *map(float, widths), steps) for steps in (False, True))
        assert torch.equal(steps[0], cpu[0])
        assert torch.equal(steps[1], cpu[1])
        assert steps[2] == cpu[2]
        assert steps[2] >= len(cpu[0].unique())


@pytest.mark.parametrize("preset", {**PRESETS, **ODD})
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_steps_give_the_marginals_of_the_cpu(raw, preset, size):
    prob, image, _ = tensors(*size)
    options = arguments({**PRESETS, **ODD}[preset])
    assert_equal_enough(raw.dense_crf_steps(prob, image, *options), raw.dense_crf(prob, image, *options))


@pytest.mark.parametrize("size", [(43, 57, 3), (31, 40, 21), (1, 7, 2)], ids=str)
@pytest.mark.parametrize("values", [PRESETS["mcis"], (2, 1, 20, 30, 2, 6), *ODD.values()], ids=str)
def test_steps_give_the_gradients_of_the_cpu(raw, values, size):
    """Also where clipped probabilities have none."""
    prob, image, grad = tensors(*size)
    prob[0, :, :3] = 0
    ours, expected = (
        function(grad, prob, image, *arguments(values))
        for function in (raw.dense_crf_steps_backward, raw.dense_crf_backward)
    )
    assert (ours[0, :, :3] == 0).all()
    assert (ours - expected).abs().max() <= 2e-4 * expected.abs().max() + 1e-6


def test_a_vertex_of_very_many_pixels(raw):
    """Its sum is taken in parts: every pixel of a flat image has the same corners, but for their positions."""
    prob, _, grad = tensors(90, 100, 5)
    image = torch.full((90, 100, 3), 77, dtype=torch.uint8)
    options = arguments((3, 3, 500, 13, 4, 3))
    assert raw.dense_crf_simplices(image, 500.0, 13.0, True)[2] < 20
    assert_equal_enough(raw.dense_crf_steps(prob, image, *options), raw.dense_crf(prob, image, *options))
    ours = raw.dense_crf_steps_backward(grad, prob, image, *options)
    expected = raw.dense_crf_backward(grad, prob, image, *options)
    assert (ours - expected).abs().max() <= 2e-4 * expected.abs().max()


def test_arguments_that_make_no_sense_are_named(raw):
    prob, image, grad = tensors(6, 7, 3)
    options = arguments(PRESETS["mcis"])
    nan = prob.clone()
    nan[1, 2, 3] = float("nan")
    for message, changed in (
        ("prob holds NaN", (nan, image, *options)),
        ("prob holds NaN", (nan, image, 3.0, 0.0, 80.0, 13.0, 0.0, 1)),
        ("prob has no labels", (prob[:0], image, *options)),
        ("prob must be float32", (prob.double(), image, *options)),
        ("prob must be contiguous", (prob.mT.contiguous().mT, image, *options)),
        ("image must be uint8", (prob, image[:3], *options)),
        ("sxy_gaussian must be", (prob, image, 0.0, *options[1:])),
        ("srgb is too small", (prob, image, *options[:3], 1e-30, *options[4:])),
        ("w_bilateral must be", (prob, image, *options[:4], float("inf"), 1)),
        ("iterations must be", (prob, image, *options[:5], -1)),
    ):
        with pytest.raises((ValueError, RuntimeError), match=message):
            raw.dense_crf_steps(*changed)
    with pytest.raises(RuntimeError, match="grad must be like prob"):
        raw.dense_crf_steps_backward(grad[:2], prob, image, *options)
    assert raw.dense_crf_steps(prob[:, :0], image[:0], *options).shape == (3, 0, 7)
    for weight in (1e30, -5.0):
        assert raw.dense_crf_steps(prob, image, 3.0, weight, *options[2:]).isfinite().all()


@on_gpu
@pytest.mark.parametrize("preset", {**PRESETS, **ODD})
@pytest.mark.parametrize("size", [*SIZES, (375, 500, 21)], ids=str)
def test_gpu_and_cpu_agree(preset, size):
    """Marginals and gradients, and the same bits twice."""
    if (reason := library.prepare_on_gpu()) is not None:
        pytest.skip(reason)
    prob, image, grad = tensors(*size)
    options = dict(zip(NAMES, {**PRESETS, **ODD}[preset], strict=True))
    found = []
    for device, backend in (("cpu", "cpp"), ("cuda", "cuda"), ("cuda", "cuda")):
        leaf = prob.to(device, copy=True).requires_grad_()
        with ops.backend(backend):
            marginals = ops.dense_crf(leaf, image.to(device), **options)
        (marginals * grad.to(device)).sum().backward()
        found.append((marginals.detach().cpu(), leaf.grad.cpu()))
    expected, ours, again = found
    assert_equal_enough(ours[0], expected[0])
    assert (ours[1] - expected[1]).abs().max() <= 1e-3 * expected[1].abs().max() + 1e-6
    assert torch.equal(ours[0], again[0])
    assert torch.equal(ours[1], again[1])


@on_gpu
def test_on_a_stream_of_its_own_and_of_other_layout():
    if (reason := library.prepare_on_gpu()) is not None:
        pytest.skip(reason)
    prob, image, _ = tensors(60, 80, 5)
    options = dict(zip(NAMES, PRESETS["psa"], strict=True))
    with ops.backend("cpp"):
        expected = ops.dense_crf(prob, image, **options)
    loose = prob.mT.contiguous().cuda().mT
    with ops.backend("cuda"), torch.cuda.stream(torch.cuda.Stream()):
        ours = ops.dense_crf(loose.double(), image.cuda(), **options)
        assert ours.dtype == torch.float64
        assert_equal_enough(ours.float(), expected)
    wrong = torch.tensor(np.full(prob.shape, np.nan, np.float32)).cuda()
    with pytest.raises(Exception, match="NaN"):
        ops.dense_crf(wrong, image.cuda(), **options)
