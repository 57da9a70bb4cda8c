"""Which backend runs an operation: a registry of kernels with the reasons why one cannot be used.

The choice is made in the public wrapper, outside the operator, and travels with the call as a string. So a compiled
graph records it, and a backward pass that runs in another thread uses the same backend as its forward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gwsss_fast.errors import GwsssError

log = logging.getLogger("gwsss_fast")

BACKENDS = ("reference", "aten", "triton", "cpp", "cuda")
ON_GPU = ("triton", "cuda")  # those whose kernels are written for GPUs
_NO_KERNEL = "this operation has no kernel for this backend in this version"
_forced = "auto"
_announced: set[str] = set()


@dataclass(frozen=True)
class Kernel:
    """A backend's functions for one operation.

    `missing()` gives the reason why it cannot be used on this machine, `refuse(*tensors)` why it cannot take these
    inputs. `only_on_request(*tensors)`: "auto" leaves it out although it could run, as with interpreted kernels.
    `pending()`: what its first use still has to do, `prepare()` does it and gives the reason if that fails.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    refuse: Callable[..., str | None] = lambda *tensors: None
    missing: Callable[[], str | None] = lambda: None
    only_on_request: Callable[..., bool] = lambda *tensors: False
    pending: Callable[[], str | None] = lambda: None
    prepare: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run an operation on this machine; true in a condition when it can.

    reasons: why not, or what the first use still has to do.
    """

    usable: bool
    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.usable

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "usable"


_registry: dict[str, dict[str, Kernel]] = {}
# The fastest first; "reference" always works and is the last resort.
_preference: dict[str, tuple[str, ...]] = {}


def register(operation: str, backend: str, kernel: Kernel) -> None:
    """Add `backend`'s kernel for `operation`."""
    _registry.setdefault(operation, {})[backend] = kernel
    order = ("cuda", "triton", "cpp", "aten", "reference")
    _preference[operation] = tuple(name for name in order if name in _registry[operation])


def forced() -> str:
    """The backend that is in force: a name of `BACKENDS`, or "auto"."""
    return _forced


def kernel(operation: str, backend: str) -> Kernel:
    """The functions of a backend that `choose` has returned."""
    return _registry[operation][backend]


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use `name` for every operation inside the block: "auto", "reference", "aten", "triton", "cpp" or "cuda".

    The choice holds for the whole process. An operation that has no kernel of that name runs as under "auto"; a
    kernel that exists but cannot take the inputs is an error that says why. Raises GwsssError for an unknown name or
    one that no operation can use here.
    """
    global _forced
    if name != "auto" and name not in BACKENDS:
        raise GwsssError(f"unknown backend {name!r}; choose from auto, {', '.join(BACKENDS)}")
    if name != "auto":
        states = [state[name] for state in available().values()]
        if not any(states):
            reasons = [str(state) for state in states if _NO_KERNEL not in state.reasons]
            raise GwsssError(f"backend {name!r} is not usable here: {(reasons or [_NO_KERNEL])[0]}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def available() -> dict[str, dict[str, Availability]]:
    """For each operation and backend: usable on this machine, or the reasons why not."""
    return {
        operation: {name: _availability(_registry[operation].get(name)) for name in BACKENDS}
        for operation in sorted(_registry)  # by name alone, which PyTorch 2.11 can trace
    }


def _availability(entry: Kernel | None) -> Availability:
    reason = _NO_KERNEL if entry is None else entry.missing()
    note = reason if entry is None or reason is not None else entry.pending()
    return Availability(reason is None, () if note is None else (note,))


def choose(operation: str, *tensors: Tensor) -> str:
    """The name of the backend that runs `operation` on these tensors: the forced one, else the fastest usable."""
    kernels = _registry[operation]
    if _forced in kernels:
        entry = kernels[_forced]
        reason = entry.missing() or entry.refuse(*tensors) or entry.prepare()
        if reason is not None:
            raise GwsssError(f"{operation}: backend {_forced!r} cannot run this: {reason}")
        return _forced
    on_cpu = tensors[0].device.type == "cpu"
    for name in _preference[operation]:
        if on_cpu and name in ON_GPU:  # interpreted kernels run there on request only
            continue
        entry = kernels[name]
        if entry.only_on_request(*tensors) or entry.missing() is not None or entry.refuse(*tensors) is not None:
            continue
        if entry.prepare() is None:
            _announce_fallback(operation, name, tensors)
            return name
    return "reference"


def _announce_fallback(operation: str, name: str, tensors: tuple[Tensor, ...]) -> None:
    """One log line, once, when a GPU user gets no kernel for GPUs, with the reasons."""
    if tensors[0].device.type != "cuda" or name in ON_GPU or torch.compiler.is_compiling() or operation in _announced:
        return
    _announced.add(operation)
    kernels = {other: kernel for other, kernel in _registry[operation].items() if other in ON_GPU}
    whys = {other: x.missing() or x.refuse(*tensors) or x.prepare() for other, x in kernels.items()}
    reasons = "; ".join(f"{other}: {why}" for other, why in whys.items()) or "it has no kernel for GPUs"
    log.warning("%s runs on plain PyTorch (%s): %s", operation, name, reasons)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast wants them: cast to its dtype when it is on for their device, else unchanged."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # PyTorch knows no autocast for meta tensors
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def without_autocast(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` with autocast off on the device of its first argument, which has been cast already."""
    device = arguments[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return function(*arguments)
    with torch.autocast(device, enabled=False):
        return function(*arguments)


def unobserved(*tensors: Tensor, gradients: bool = False) -> bool:
    """Whether nobody but the caller sees a call on these tensors, so that its function may be called in the operator's
    place: on the CPU, no gradient is asked for, autocast is off, and nothing traces, compiles, transforms or intercepts
    the call. gradients: they may be asked for.

    An operator with Python behind it costs some 25 us, and several times that where the caches are cold, which is more
    than the smaller operations themselves.
    """
    if torch.compiler.is_compiling():
        return False
    wants_gradients = not gradients and torch.is_grad_enabled()
    for x in tensors:
        if type(x) not in (Tensor, torch.nn.Parameter) or not x.is_cpu or (wants_gradients and x.requires_grad):
            return False
    return not (
        torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.jit.is_tracing()
    )


def check(condition: bool, message: str) -> None:
    """Raise GwsssError with `message`, which names the argument, unless `condition` holds."""
    if not condition:
        raise GwsssError(message)


def check_same(operation: str, **tensors: Tensor) -> None:
    """All tensors are floating, of one dtype and on one device; the message names the one that is not."""
    (first_name, first), *others = tensors.items()
    check(first.is_floating_point(), f"{operation}: {first_name} must be floating point, not {first.dtype}")
    for name, tensor in others:
        check(
            tensor.dtype == first.dtype,
            f"{operation}: {name} is {tensor.dtype} but {first_name} is {first.dtype}; cast one of them",
        )
        check(
            tensor.device == first.device,
            f"{operation}: {name} is on {tensor.device} but {first_name} is on {first.device}; move one of them",
        )
