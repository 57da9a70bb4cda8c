"""`ops.dense_crf`: mean field of a fully connected CRF with Gaussian edges."""

import numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gwsss_fast import reference
from gwsss_fast.errors import GwsssError
from gwsss_fast.native import dense_crf as native
from gwsss_fast.ops import dispatch, native_kernels

OPTIONS = ("sxy_gaussian", "w_gaussian", "sxy_bilateral", "srgb", "w_bilateral", "iterations")
MOST_ITERATIONS = 1000  # it settles in ten
MOST_LABELS = 65535
MOST_PIXELS = (2**31 - 1) // 6  # a pixel has six corners on the lattice, which are counted in 32 bits
_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

dispatch.register("dense_crf", "reference", dispatch.Kernel(reference.dense_crf, reference.dense_crf_backward))
native_kernels.register("dense_crf", "cpp")
native_kernels.register("dense_crf", "cuda")


@torch.library.custom_op("gwsss_fast::dense_crf", mutates_args=())
def _dense_crf(
    prob: Tensor,
    image: Tensor,
    sxy_gaussian: float,
    w_gaussian: float,
    sxy_bilateral: float,
    srgb: float,
    w_bilateral: float,
    iterations: int,
    backend: str,
) -> Tensor:
    _check_nan(prob)
    options = _options(sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations)
    with _fine_lattices_refused():
        return dispatch.kernel("dense_crf", backend).forward(prob, image, **options)


@_dense_crf.register_fake
def _(prob, image, sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations, backend):  # type: ignore[no-untyped-def]
    return prob.new_empty(prob.shape)


@torch.library.custom_op("gwsss_fast::dense_crf_backward", mutates_args=())
def _dense_crf_backward(
    grad: Tensor,
    prob: Tensor,
    image: Tensor,
    sxy_gaussian: float,
    w_gaussian: float,
    sxy_bilateral: float,
    srgb: float,
    w_bilateral: float,
    iterations: int,
    backend: str,
) -> Tensor:
    options = _options(sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations)
    with _fine_lattices_refused():
        return dispatch.kernel("dense_crf", backend).backward(grad, prob, image, **options)


@_dense_crf_backward.register_fake
def _(grad, prob, image, sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations, backend):  # type: ignore[no-untyped-def]
    return prob.new_empty(prob.shape)


def _check_nan(prob: Tensor) -> None:
    # The largest of values with a NaN is NaN: one pass that writes nothing.
    dispatch.check(prob.numel() == 0 or not bool(prob.amax().isnan()), "dense_crf: prob holds NaN")


@contextmanager
def _fine_lattices_refused() -> Iterator[None]:
    """Only the lattice knows whether a width is too small for it; every backend says so in the same words."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if "a lattice so fine" not in str(error):
            raise
        raise GwsssError(str(error).partition("\n")[0]) from error


def _options(*values: float) -> dict[str, float]:
    return dict(zip(OPTIONS, values, strict=True))


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    prob, image, *ctx.options = inputs
    ctx.save_for_backward(prob, image)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    grad_prob = dispatch.without_autocast(_dense_crf_backward, grad, *ctx.saved_tensors, *ctx.options)
    return grad_prob, *(None for _ in range(len(ctx.options) + 1))


_dense_crf.register_autograd(_backward, setup_context=_save)


def dense_crf(
    prob: Tensor,
    image: Tensor,
    *,
    sxy_gaussian: float,
    w_gaussian: float,
    sxy_bilateral: float,
    srgb: float,
    w_bilateral: float,
    iterations: int,
) -> Tensor:
    """Marginals of a fully connected CRF after `iterations` mean-field updates (Kraehenbuhl and Koltun, 2011).

    prob: (L, H, W), label probabilities; image: (H, W, 3) uint8. The smoothness kernel has the position width
    `sxy_gaussian` (pixels) and Potts weight `w_gaussian`; the appearance kernel `sxy_bilateral` (pixels), `srgb` (grey
    levels) and `w_bilateral`. Returns (L, H, W) in prob's dtype, computed in float32; differentiable in prob. Raises
    GwsssError when an argument does not fit.
    """
    options = (sxy_gaussian, w_gaussian, sxy_bilateral, srgb, w_bilateral, iterations)
    _check(prob, image, *options)
    backend = dispatch.choose("dense_crf", prob, image)
    return dispatch.without_autocast(_dense_crf, prob, image, *map(float, options[:-1]), iterations, backend)


def dense_crf_images(probs: Sequence[Tensor], images: Sequence[Tensor], **options: float) -> list[Tensor]:
    """`dense_crf` of several images, of any sizes, with the same `options`; without gradients.

    On the CPU as many images as there are threads run by the side of each other where there are more than two, as one
    image does not keep many threads busy. Results are the same. Raises GwsssError as `dense_crf` does.
    """
    dispatch.check(
        len(probs) == len(images), f"dense_crf_images: {len(probs)} probs but {len(images)} images; pass as many"
    )
    pairs = [*zip(probs, images, strict=True)]
    for prob, image in pairs:
        _check(prob, image, **options)
    if not pairs or any(dispatch.choose("dense_crf", *pair) != "cpp" for pair in pairs):
        return [dense_crf(prob.detach(), image, **options) for prob, image in pairs]  # type: ignore[arg-type]
    for prob in probs:
        _check_nan(prob)
    with _fine_lattices_refused():
        return native.dense_crf_images([prob.detach() for prob in probs], list(images), **options)


def _check(
    prob: Tensor,
    image: Tensor,
    sxy_gaussian: float,
    w_gaussian: float,
    sxy_bilateral: float,
    srgb: float,
    w_bilateral: float,
    iterations: float,
) -> None:
    """Raises GwsssError for an argument that does not fit."""
    dispatch.check(
        prob.is_floating_point() and prob.dim() == 3 and prob.shape[0] > 0,
        f"dense_crf: prob must be floating point (L, H, W) with L >= 1, not {prob.dtype} {tuple(prob.shape)}",
    )
    dispatch.check(
        image.dtype == torch.uint8 and image.shape == (*prob.shape[1:], 3),
        f"dense_crf: image must be uint8 {(*prob.shape[1:], 3)}, not {image.dtype} {tuple(image.shape)}",
    )
    labels, pixels = prob.shape[0], prob.shape[1] * prob.shape[2]
    dispatch.check(labels <= MOST_LABELS, f"dense_crf: prob has {labels} labels; {MOST_LABELS} is the limit")
    dispatch.check(pixels <= MOST_PIXELS, f"dense_crf: prob has {pixels} pixels; {MOST_PIXELS} is the limit")
    dispatch.check(
        isinstance(iterations, numbers.Integral) and 0 <= iterations <= MOST_ITERATIONS,
        f"dense_crf: iterations is {iterations!r}; it must be an integer from 0 to {MOST_ITERATIONS}",
    )
    dispatch.check(
        image.device == prob.device,
        f"dense_crf: image is on {image.device} but prob is on {prob.device}; move one of them",
    )
    for name, weight in (("w_gaussian", w_gaussian), ("w_bilateral", w_bilateral)):
        dispatch.check(abs(weight) <= _LARGEST, f"dense_crf: {name} is {weight}; it must be a finite number in float32")
    for name, width in (("sxy_gaussian", sxy_gaussian), ("sxy_bilateral", sxy_bilateral), ("srgb", srgb)):
        dispatch.check(
            _SMALLEST <= width <= _LARGEST,
            f"dense_crf: {name} is {width}; it must be a number above zero, and finite, in float32",
        )
