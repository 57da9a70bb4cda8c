"""`checkpoint_steps`: the same numbers from less memory."""

import pytest
import torch
from torch import Tensor

from gwsss_fast import GroupGNN, group_loss, ops
from gwsss_fast.ops import dispatch

GROUPS, NODES, CHANNELS, CLASSES = 2, 3, 12, 4


def build(checkpoint_steps: bool) -> GroupGNN:
    torch.manual_seed(0)
    return GroupGNN(CHANNELS, CLASSES, steps=3, graph_gradient="full", checkpoint_steps=checkpoint_steps)


def train_step(gnn: GroupGNN, compiled: bool = False) -> tuple[list[Tensor], int]:
    """Loss and gradients, and the bytes that the forward pass kept for the backward pass."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(GROUPS, NODES, CHANNELS, 5, 4, generator=generator).requires_grad_()
    labels = torch.randint(0, 2, (GROUPS, NODES, CLASSES), generator=generator)
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def loss_of(x: Tensor) -> Tensor:
        return group_loss(gnn(x), labels)

    torch.manual_seed(2)  # of graph dropout's draws
    if compiled:
        loss = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(features)
    else:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = loss_of(features)
    loss.backward()
    grads = [x.grad for x in (features, *gnn.parameters()) if x.grad is not None]
    return [loss.detach(), *grads], sum(kept.values())


def test_the_same_numbers_from_less_memory() -> None:
    (plain, much), (again, little) = train_step(build(False)), train_step(build(True))
    assert len(plain) == len(again)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert little < 0.6 * much


def test_the_second_time_runs_on_the_backend_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    choose = dispatch.choose

    def note(operation: str, *tensors: Tensor) -> str:
        chosen.append(choose(operation, *tensors))
        return chosen[-1]

    monkeypatch.setattr(dispatch, "choose", note)
    gnn = build(True)
    gnn.backend = "reference"
    train_step(gnn)
    assert set(chosen) == {"reference"}
    assert len(chosen) > 3 * 4  # co-attention, self-attention, ConvGRU and dropout of three steps, and again
    chosen.clear()
    with ops.backend("reference"):
        loss = group_loss(build(True)(torch.randn(1, 2, CHANNELS, 3, 3)), torch.ones(1, 2, CLASSES))
    loss.backward()
    assert set(chosen) == {"reference"}


@pytest.mark.parametrize("checkpoint_steps", [False, True])
def test_it_compiles_without_a_graph_break(checkpoint_steps: bool) -> None:
    torch.compiler.reset()
    (plain, _), (compiled, _) = train_step(build(checkpoint_steps)), train_step(build(checkpoint_steps), compiled=True)
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other)


def test_eval_needs_nothing_kept() -> None:
    gnn = build(True).eval()
    features = torch.randn(GROUPS, NODES, CHANNELS, 5, 4)
    torch.testing.assert_close(gnn(features).logits, build(False).eval()(features).logits, rtol=0, atol=0)
