"""Values and gradients of an operation on one backend, and the measure they are held to: float64 and plain PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gwsss_fast import ops

Results = tuple[list[Tensor], list[Tensor]]


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside the block fresh tensors hold NaN, so that what nobody writes shows in the results."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def run(
    backend: str, call: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> Results:
    """Results of `call(*inputs)` on a backend, in memory that held NaN, and the gradients of all inputs from those of
    the results."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with ops.backend(backend), poisoned_memory():
        results = call(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        slopes = torch.autograd.grad(results, leaves, [x.to(leaves[0].dtype) for x in grads])
    return [x.detach() for x in results], list(slopes)


def assert_as_good_as_plain(
    backend: str, call: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> None:
    """Errors against float64 at most twice those of the plain reference in the inputs' dtype, thrice for gradients.

    A rounding of the largest value is allowed besides (8 in float32), for results that the reference meets by luck.
    """
    dtype = inputs[0].dtype
    roundings = 8 if dtype == torch.float32 else 1
    exact = run("reference", call, [x.double() for x in inputs], grads)
    plain = run("reference", call, inputs, grads)
    ours = run(backend, call, inputs, grads)
    for factor, truths, eager, values in zip((2, 3), exact, plain, ours, strict=True):
        for number, (truth, other, value) in enumerate(zip(truths, eager, values, strict=True)):
            assert value.dtype == dtype
            tiny = roundings * torch.finfo(dtype).eps * truth.abs().max()
            error, allowed = (value - truth).abs().max(), factor * (other - truth).abs().max() + tiny
            assert error <= allowed, f"result {number} ({'value' if factor == 2 else 'gradient'}): {error} > {allowed}"
