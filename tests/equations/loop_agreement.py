"""Compare an operation of the package with its loop version: values, and gradients against finite differences."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from gwsss_fast import ops

Outputs = np.ndarray | tuple[np.ndarray, ...]
BACKENDS = ("reference", "auto")
STEP = 1e-5  # central differences: error about STEP^2 times the third derivative, and 1e-16 / STEP from rounding


def as_tuple(outputs: object) -> tuple:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def numeric_gradient(
    loop: Callable[..., Outputs], inputs: Sequence[np.ndarray], which: int, cotangents: Sequence[np.ndarray]
) -> np.ndarray:
    """d sum(cotangent * output) / d inputs[which] by central differences of the loop version."""

    def contracted(changed: np.ndarray) -> float:
        arguments = [changed if n == which else array for n, array in enumerate(inputs)]
        outputs = as_tuple(loop(*arguments))
        return sum(float((t * o).sum()) for t, o in zip(cotangents, outputs, strict=True))

    gradient = np.zeros_like(inputs[which])
    for index in np.ndindex(gradient.shape):
        up, down = inputs[which].copy(), inputs[which].copy()
        up[index] += STEP
        down[index] -= STEP
        gradient[index] = (contracted(up) - contracted(down)) / (2 * STEP)
    return gradient


def assert_same(
    op: Callable[..., object],
    loop: Callable[..., Outputs],
    inputs: Sequence[np.ndarray],
    *,
    seed: int = 0,
    gradients: bool = True,
) -> None:
    """Both functions take the same arrays, `op` as float64 tensors; raise AssertionError where they differ.

    The op is compared as the reference and as whatever the package would choose by itself.
    """
    expected = as_tuple(loop(*inputs))
    rng = np.random.default_rng(seed + 1000)
    cotangents = [rng.normal(size=e.shape) for e in expected]
    numeric = [numeric_gradient(loop, inputs, n, cotangents) for n in range(len(inputs))] if gradients else []
    for backend in BACKENDS:
        tensors = [torch.from_numpy(array.copy()).requires_grad_(gradients) for array in inputs]
        with ops.backend(backend):
            actual = as_tuple(op(*tensors))
            compare_values(actual, expected)
            if gradients:
                total = sum((a * torch.from_numpy(t)).sum() for a, t in zip(actual, cotangents, strict=True))
                compare_gradients(torch.autograd.grad(total, tensors, allow_unused=True), numeric)


def compare_values(actual: tuple, expected: tuple, rtol: float = 1e-10) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float64
        assert tuple(a.shape) == e.shape
        np.testing.assert_allclose(a.detach().numpy(), e, rtol=rtol, atol=rtol / 10)


def compare_gradients(
    found: Sequence[torch.Tensor | None], numeric: Sequence[np.ndarray], rtol: float = 1e-6, atol: float = 1e-7
) -> None:
    for which, (gradient, expected) in enumerate(zip(found, numeric, strict=True)):
        actual = np.zeros_like(expected) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=f"gradient of input {which}")
