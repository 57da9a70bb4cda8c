"""Whom an operation is measured against, on the same inputs. A peer that cannot run says why."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.harness import plain, restarts
from benchmarks.harness.cases import Function, Operation
from benchmarks.harness.timing import time_limit_in
from gwsss_fast import ops
from gwsss_fast.ops import dispatch

FUSED = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
}
MOST_COMPILED_NODES = 4
"""torch.compile unrolls the reference's loop over edges; more nodes than this take it minutes."""
SMALL_TILES = {
    **{"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_M1": 32, "BLOCK_N1": 32, "BLOCK_M2": 32, "BLOCK_N2": 32},
    **{"num_warps": 8, "num_stages": 1},
}


class UnusableError(Exception):
    """A peer cannot run these inputs; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A way to compute an operation. ours: it is one of our backends. build(tensors) gives the function, or raises."""

    name: str
    ours: bool
    build: Callable[[list[Tensor]], Function]


def peers(operation: Operation, tensors: list[Tensor], compiled: bool = True) -> list[Peer]:
    """Our backends that can run these tensors, then the peers; without torch.compile when `compiled` is False."""
    chosen = dispatch.choose(operation.name, *tensors)
    found = [Peer(name, True, _backend(operation, name, chosen)) for name in operation.backends(tensors)]
    found.append(Peer("eager", False, lambda x: operation.exact))
    batched = operation.plain is not operation.exact
    if batched:
        found.append(Peer("batched", False, lambda x: operation.plain))
    if operation.name in ("attention", "co_attention"):
        found += [Peer(name, False, _fused(operation, backend)) for name, backend in FUSED.items()]
        if compiled:  # without the compiler it is a plain product of N x N scores, which says nothing of FlexAttention
            found.append(Peer("flex attention", False, _flex(operation)))
    if compiled and batched:
        found.append(Peer("compiled batched", False, lambda x: compiled_function(operation.plain)))
    if compiled:
        found.append(Peer("compiled eager", False, _compiled_reference(operation)))
    return [peer for peer in found if f"{operation.name}: {peer.name}" not in restarts.left_out]


def _backend(operation: Operation, name: str, chosen: str) -> Callable[[list[Tensor]], Function]:
    """The choice of "auto" is called as users call it; others are forced, which costs the host some microseconds."""

    def forced(*tensors: Tensor) -> Any:
        with ops.backend(name):
            return operation.call(*tensors)

    return lambda tensors: operation.call if name == chosen else forced


def compiled_function(function: Function) -> Function:
    """By torch.compile for these very shapes, with a backward pass that can be timed again and again."""
    torch._functorch.config.donated_buffer = False  # type: ignore[attr-defined]
    return torch.compile(function, dynamic=False)


def _compiled_reference(operation: Operation) -> Callable[[list[Tensor]], Function]:
    def build(tensors: list[Tensor]) -> Function:
        if operation.name == "co_attention" and tensors[0].shape[1] > MOST_COMPILED_NODES:
            raise UnusableError(f"not tried: it unrolls all edges of {tensors[0].shape[1]} nodes")
        if operation.name == "edge_readout" and tensors[0].shape[1] > MOST_COMPILED_NODES:
            raise UnusableError(f"not tried: it unrolls all pairs of {tensors[0].shape[1]} nodes")
        return compiled_function(operation.exact)

    return build


def _attending(operation: Operation, attend: Function) -> Function:
    """`attend(q, k, v)` as the operation: for co-attention over all edges in one batch, then the sum."""
    if operation.name == "attention":
        return attend

    def messages(p: Tensor, q: Tensor, g: Tensor) -> Tensor:
        return plain.sum_of_senders(attend(*plain.edges(p, q, g, operation.option)), g)

    return messages


def _fused(operation: Operation, backend: SDPBackend) -> Callable[[list[Tensor]], Function]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return plain.fused(q, k, v)

    def build(tensors: list[Tensor]) -> Function:
        function = _attending(operation, attend)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                function(*tensors)
            except RuntimeError as error:
                reasons = [str(warning.message).split(" (Triggered")[0] for warning in told]
                reasons = [reason for reason in reasons if not reason.endswith("because:")]
                raise UnusableError("; ".join(dict.fromkeys(reasons)) or first_line(error)) from error
        return function

    return build


def _flex(operation: Operation) -> Callable[[list[Tensor]], Function]:
    """Its own tiles first, then small ones: values of 512 channels do not fit with the first on every card."""

    def build(tensors: list[Tensor]) -> Function:
        if tensors[0].shape[1] == 1 and operation.name == "co_attention":
            raise UnusableError("no edges")
        attend: Any = compiled_function(flex_attention)
        reasons = []
        for options in ({}, SMALL_TILES):
            function = _attending(operation, _with_options(attend, dict(options)))
            try:
                function(*tensors)
            except Exception as error:  # the compiler's own errors have no common type
                if (limit := time_limit_in(error)) is not None:
                    raise limit from error
                reasons.append(first_line(error))
            else:
                return function
        raise UnusableError("; ".join(reasons))

    return build


def _with_options(attend: Function, options: dict[str, Any]) -> Function:
    return lambda q, k, v: attend(q, k, v, scale=1.0, kernel_options=options or None)


def first_line(error: BaseException, most: int = 200) -> str:
    """An exception as one short line; a time limit by its own name, whatever it was wrapped in."""
    error = time_limit_in(error) or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:most]
