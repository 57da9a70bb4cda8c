"""A whole training step of `GroupGNN`, forward, loss and backward: what the operations are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.harness import plain
from benchmarks.harness.cases import OPERATIONS, exact_attention
from benchmarks.harness.checking import PEER_FACTOR, Expected
from benchmarks.harness.peers import first_line
from benchmarks.harness.sizes import Size
from benchmarks.harness.timing import time_limit
from gwsss_fast import GroupGNN, group_loss, ops

STEP_FACTOR = 2.0
"""Wider than for one operation: each rounds what the next one reads, and a bias of 20 values has no typical error."""
DROP_RATE = 1.0
"""Every draw takes the importance branch, so that all peers compute the same whatever generator they draw from."""

EAGER: dict[str, Callable[..., Any]] = {row.name: row.exact for row in OPERATIONS if row.option in ("", "kernel 1")}
EAGER["attention"] = exact_attention
EAGER["co_attention"] = lambda p, q, g, reverse="transpose": _exact_co_attention(p, q, g, reverse)
EAGER["graph_dropout"] = lambda g, r, rate, threshold: plain.graph_dropout(g, r, rate, threshold)
BATCHED: dict[str, Callable[..., Any]] = {
    **EAGER,
    "attention": plain.attention,
    "co_attention": plain.co_attention,
    "edge_readout": plain.edge_readout,
}


def _exact_co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str) -> Tensor:
    return next(row for row in OPERATIONS if row.label == f"co_attention {reverse}").exact(p, q, g)


@dataclass(frozen=True)
class Step:
    """A model in training, its inputs, and the dtype in which it computes."""

    model: GroupGNN
    features: Tensor
    labels: Tensor
    dtype: torch.dtype

    def loss(self) -> Tensor:
        """Under autocast for 16 bits, as training runs."""
        device = self.features.device.type
        mixed = self.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(device, dtype=self.dtype) if mixed else nullcontext():
            return group_loss(self.model(self.features), self.labels)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of the features, then of every parameter."""
        inputs = [self.features, *self.model.parameters()]
        return [x.detach() for x in torch.autograd.grad(loss, inputs)]

    def run(self) -> list[Tensor]:
        """Loss and gradients."""
        loss = self.loss()
        return [loss.detach(), *self.gradients(loss)]


def build(size: Size, dtype: torch.dtype, device: str) -> Step:
    """The constructor's defaults with every gradient that the equations have, on random features; weights and features
    are float32, or float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GroupGNN(size.channels, size.classes, steps=size.steps, drop_rate=DROP_RATE, graph_gradient="full")
        model.train()
        features = torch.randn(size.groups, size.nodes, size.height, size.width, size.channels)
        labels = torch.randint(0, 2, (size.groups, size.nodes, size.classes)).float()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    nodes = features.to(device, wide).permute(0, 1, 4, 2, 3).requires_grad_()
    return Step(model.to(device, wide), nodes, labels.to(device), dtype)


@contextmanager
def functions(table: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """The layers call these instead of the operators: nothing is hidden from autograd and torch.compile."""
    with ExitStack() as stack:
        for name, function in table.items():
            stack.enter_context(mock.patch.object(ops, name, function))
        yield


Function = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class StepPeer:
    """A way to run the step. build(step) gives a function that returns loss and gradients.

    replayed: its memory is taken by build, so that of a call says nothing.
    """

    name: str
    ours: bool
    build: Callable[[Step], Function]
    replayed: bool = False


def _ours(step: Step) -> Function:
    return step.run


def _reference(step: Step) -> Function:
    def run() -> list[Tensor]:
        with ops.backend("reference"):
            return step.run()

    return run


def _with(table: dict[str, Callable[..., Any]], compiled: bool) -> Callable[[Step], Function]:
    def build(step: Step) -> Function:
        forward = torch.compile(step.loss, dynamic=False) if compiled else step.loss

        def run() -> list[Tensor]:
            with functions(table):
                loss = forward()
                return [loss.detach(), *step.gradients(loss)]

        return run

    return build


def compiled_step(step: Step) -> Function:
    """Model and loss under torch.compile, as one graph."""
    forward = torch.compile(step.loss, dynamic=False, fullgraph=True)

    def run() -> list[Tensor]:
        loss = forward()
        return [loss.detach(), *step.gradients(loss)]

    return run


def captured_step(step: Step) -> Function:
    """One CUDA graph of the whole step; its results stay in the same memory from replay to replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = step.run()

    def run() -> list[Tensor]:
        graph.replay()
        return results

    return run


def step_peers(device: str, compiled: bool = True, unrolled: bool = True) -> list[StepPeer]:
    """Ours as `auto` runs it, compiled and as a CUDA graph; then the peers.

    unrolled: also compile the eager equations, whose loops over edges torch.compile unrolls.
    """
    found = [StepPeer("auto", True, _ours)]
    if compiled:
        found.append(StepPeer("auto, compiled", True, compiled_step))
    if device.startswith("cuda"):
        found.append(StepPeer("auto, CUDA graph", True, captured_step, replayed=True))
    found.append(StepPeer("reference", True, _reference))
    found += [StepPeer("eager", False, _with(EAGER, False)), StepPeer("batched", False, _with(BATCHED, False))]
    if compiled:
        found.append(StepPeer("compiled batched", False, _with(BATCHED, True)))
    if compiled and unrolled:
        found.append(StepPeer("compiled eager", False, _with(EAGER, True)))
    return found


def expected(size: Size, dtype: torch.dtype, device: str) -> Expected:
    """Loss and gradients of the float64 reference, and of plain PyTorch in the step's dtype."""
    with ops.backend("reference"):
        exact = build(size, torch.float64, device).run()
    return Expected(exact, _with(BATCHED, False)(build(size, dtype, device))(), 1, dtype)


def ready(
    peer: StepPeer, size: Size, dtype: torch.dtype, device: str, wanted: Expected, limit: float | None = None
) -> tuple[Function | None, str | None]:
    """The peer's function, checked, or the reason why not. limit: seconds that it may take."""
    try:
        with time_limit(limit):
            run = peer.build(build(size, dtype, device))
            failures = wanted.failures(run(), STEP_FACTOR if peer.ours else PEER_FACTOR)
    except Exception as error:
        return None, first_line(error)
    return (None, f"wrong: {failures[0]}") if failures else (run, None)
