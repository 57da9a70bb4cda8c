"""Which backend runs, and what is said about it."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gwsss_fast import GwsssError, ops
from gwsss_fast.launch import edge_tiles
from gwsss_fast.ops import dispatch, triton_kernels


def test_integers_are_refused_for_what_they_are() -> None:
    g = torch.ones(1, 2, 3, 4, dtype=torch.int64)
    for call in (lambda: ops.edge_readout(g), lambda: ops.graph_dropout(g, torch.zeros(1), 0.5, 0.5)):
        with pytest.raises(GwsssError, match="g must be floating point"):
            call()


def test_more_edges_than_a_grid_takes_are_refused() -> None:
    assert triton_kernels.refuse_many(65535) is None
    assert "at most 65535" in str(triton_kernels.refuse_many(65536))
    many, enough = torch.empty(16, 64, 1, 1, device="meta"), torch.empty(15, 64, 1, 1, device="meta")
    refuse = dispatch.kernel("edge_readout", "triton").refuse
    assert "65536 nodes or edges" in str(refuse(many))
    assert refuse(enough) is None
    nodes = torch.empty(4096, 16, 1, 1, device="meta")
    assert "65536 nodes or edges" in str(dispatch.kernel("graph_dropout", "triton").refuse(nodes, nodes))


def test_a_graph_compiled_for_a_gpu_holds_the_choice_and_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that only say that they are on a GPU: what the choice asks of it is asked once, while tracing."""

    @torch.compiler.allow_in_graph  # as PyTorch takes its own
    def capability(device: torch.device) -> tuple[int, int]:
        return 9, 0

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    kernel = dataclasses.replace(dispatch.kernel("attention", "triton"), missing=lambda: None)
    monkeypatch.setitem(dispatch._registry["attention"], "triton", kernel)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode():
        tensors = [torch.empty(1, 2, 16, 8, device="cuda:0", requires_grad=True) for _ in range(3)]
        torch.compile(ops.attention, backend=backend, fullgraph=True)(*tensors)
    (graph,) = graphs
    called = [node for node in graph.graph.nodes if node.op == "call_function"]
    (ours,) = [node for node in called if node.target is torch.ops.gwsss_fast.attention.default]
    assert ours.args[-1] == "triton"
    assert not [node for node in called if "capability" in str(node.target)]


def test_a_gpu_user_who_gets_no_kernel_is_told_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensor = SimpleNamespace(device=SimpleNamespace(type="cuda"))  # no GPU is needed to be told
    kernels = {
        "triton": dispatch.Kernel(print, print, refuse=lambda *x: "D is 300; 256 is the limit"),
        "aten": dispatch.Kernel(print, print),
    }
    monkeypatch.setitem(dispatch._registry, "edge_readout", kernels)
    monkeypatch.setitem(dispatch._preference, "edge_readout", ("triton", "aten"))
    monkeypatch.setattr(dispatch, "_announced", set())
    with caplog.at_level("WARNING", "gwsss_fast"):
        assert [dispatch.choose("edge_readout", tensor) for _ in range(2)] == ["aten", "aten"]  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [
        "edge_readout runs on plain PyTorch (aten): triton: D is 300; 256 is the limit"
    ]


def test_wide_factors_in_tf32_fit_small_cards() -> None:
    """At 32 positions of the partner they need 104 KiB of the 99 there are."""
    sizes = {card: edge_tiles.weighted(256, 1024, "tf32", card, False).blocks["BLOCK_N"] for card in ("sm_89", "sm_90")}
    assert sizes == {"sm_89": 16, "sm_90": 32}


def test_copies_have_a_tiles_work_to_hide_behind_where_three_stages_fit() -> None:
    for card, rank, arithmetic, stages in (
        *(("sm_90", 128, "16-bit", 3), ("sm_80", 128, "16-bit", 3), ("sm_90", 16, "16-bit", 3)),
        *(("sm_90", 256, "16-bit", 2), ("sm_100", 128, "16-bit", 2), ("sm_89", 128, "16-bit", 2)),
        *(("sm_90", 5, "16-bit", 2), ("sm_90", 128, "ieee", 2), ("sm_90", 128, "tf32", 2)),
    ):
        tiles = edge_tiles.weighted(rank, 512, arithmetic, card, False, True)
        assert tiles.num_stages == stages, (card, rank, arithmetic)


class Watching(TorchDispatchMode):
    """Sees every operator that is called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_a_call_that_nobody_sees_spares_the_operator() -> None:
    x, leaf = torch.ones(2), torch.ones(2, requires_grad=True)
    assert dispatch.unobserved(x, torch.nn.Parameter(x, requires_grad=False))
    assert not dispatch.unobserved(x, leaf)
    assert dispatch.unobserved(x, leaf, gradients=True)
    assert not dispatch.unobserved(x, torch.empty(2, device="meta"))
    assert not dispatch.unobserved(x, torch.Tensor.as_subclass(x, type("Own", (torch.Tensor,), {})))
    with torch.no_grad():
        assert dispatch.unobserved(x, leaf)
    with Watching():
        assert not dispatch.unobserved(x)
    with torch.device("cpu"):  # a mode that sees functions
        assert not dispatch.unobserved(x)
    with FakeTensorMode():
        assert not dispatch.unobserved(torch.empty(2))
    with torch.autograd.forward_ad.dual_level():
        assert not dispatch.unobserved(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not dispatch.unobserved(x)
    found = []

    def asking(y: torch.Tensor) -> torch.Tensor:
        found.extend([dispatch.unobserved(x), dispatch.unobserved(x, gradients=True)])
        return y.sum()

    torch.vmap(asking)(x)
    torch.jit.trace(asking, x, check_trace=False)
    torch.func.grad(asking)(x)
    torch.compile(asking, backend="eager")(x)
    assert len(found) >= 6
    assert not any(found)


def test_graph_dropout_is_the_operator_where_somebody_sees_it() -> None:
    g, r = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).transpose(1, 2), torch.tensor([0.1, 0.9])
    with Watching() as watching:
        seen = ops.graph_dropout(g, r)
    assert "gwsss_fast::graph_dropout" in watching.seen
    leaf = g.detach().requires_grad_()
    trained = ops.graph_dropout(leaf, r)
    assert trained.grad_fn.name() == "GraphDropoutBackward"
    with Watching():
        watched = ops.graph_dropout(leaf, r)
    assert "gwsss_fast_graph_dropout" in watched.grad_fn.name()
    direct = ops.graph_dropout(g, r)
    compiled = torch.compile(ops.graph_dropout, backend="eager", fullgraph=True)(g, r)
    for value in (trained, watched, direct, compiled):
        assert torch.equal(value, seen)
        assert value.is_contiguous()
    assert not direct.requires_grad
    grads = [torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in (trained, watched)]
    with Watching() as watching:
        grads += [torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in (trained, watched)]
    assert watching.seen.count("gwsss_fast::graph_dropout_backward") == 2
    assert all(torch.equal(grad, grads[0]) for grad in grads)


def test_gradients_of_gradients_are_refused_not_lost() -> None:
    leaf = torch.ones(1, 1, 3, 2, requires_grad=True)
    for context in (nullcontext(), Watching()):
        with context:
            out = ops.graph_dropout(leaf, torch.zeros(1))
            for result in (out.square().sum(), out.sum()):
                (grad,) = torch.autograd.grad(result, leaf, create_graph=True)
                with pytest.raises(RuntimeError):
                    grad.sum().backward()


def test_autocast_is_switched_off_where_it_is_on() -> None:
    x = torch.ones(2, 2)
    assert dispatch.without_autocast(torch.mm, x, x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dispatch.without_autocast(torch.mm, x, x).dtype == torch.float32
        assert torch.mm(x, x).dtype == torch.bfloat16
