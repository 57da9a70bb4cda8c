"""The whole graph step on the Triton backend, under the interpreter where there is no GPU: the literal equations with
every gradient, against float64, compiled, exported, checkpointed and under autocast."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gwsss_fast import GroupGNN, GroupOutput, group_loss, ops

if not ops.available()["co_attention"]["triton"]:
    pytest.skip(str(ops.available()["co_attention"]["triton"]), allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHANNELS, CLASSES = 20, 3
OTHER = {"gru_kernel_size": 3, "reverse": "directed", "score": "bilinear"}
TINY = 1e-6
FACTOR = 3.0  # of plain PyTorch's own error, for gradients


@pytest.fixture(autouse=True)
def on_triton() -> Iterator[None]:
    torch.compiler.reset()
    with ops.backend("triton"):
        yield


def build(**options: object) -> GroupGNN:
    torch.manual_seed(0)
    # A soft threshold of dropout would let rounding choose what is dropped.
    wanted = {"steps": 2, "graph_gradient": "full", "drop_rate": None, **options}
    return GroupGNN(CHANNELS, CLASSES, **wanted).to(DEVICE)  # type: ignore[arg-type]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def labels(nodes: int) -> Tensor:
    return torch.randint(0, 2, (1, nodes, CLASSES), generator=torch.Generator().manual_seed(2)).to(DEVICE)


def step(gnn: GroupGNN, features: Tensor, compiled: bool = False) -> list[Tensor]:
    """Loss and gradients of a training step."""

    wanted = labels(features.shape[1])

    def loss_of(x: Tensor) -> Tensor:
        return group_loss(gnn(x), wanted)

    features = features.detach().requires_grad_()
    gnn.zero_grad()
    torch.manual_seed(3)  # of graph dropout's draws
    loss = torch.compile(loss_of, fullgraph=True, backend="aot_eager")(features) if compiled else loss_of(features)
    loss.backward()
    grads = [x.grad.clone() for x in (features, *gnn.parameters()) if x.grad is not None]
    return [loss.detach(), *grads]


def errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    return [float((a.double() - b).abs().max()) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize(
    ("dtype", "options"), [(None, {}), (torch.bfloat16, {}), (None, OTHER), (torch.float16, OTHER)], ids=str
)
def test_a_training_step(dtype: torch.dtype | None, options: dict[str, object]) -> None:
    """Loss and every gradient, in fp32 and under autocast, as near to float64 as plain PyTorch in that precision."""
    gnn, x = build(**options), draw(1, 3, CHANNELS, 5, 4)
    with ops.backend("reference"):
        wanted = step(build(**options).double(), x.double())

    def run() -> list[Tensor]:
        with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=dtype is not None):
            return step(gnn, x)

    found = run()
    with ops.backend("reference"):
        plain = run()
    assert len(found) == len(wanted)
    scale = [float(value.abs().max()) for value in wanted]
    for ours, theirs, size in zip(errors(found, wanted), errors(plain, wanted), scale, strict=True):
        # Where plain PyTorch is right by luck, half a unit of its precision is allowed.
        tiny = TINY if dtype is None else torch.finfo(dtype).eps / 2
        assert ours <= FACTOR * theirs + tiny * max(size, 1.0)


def test_graph_dropout_drops_the_same() -> None:
    """With dropout drawing the same numbers both backends give the same step."""
    x = draw(1, 3, CHANNELS, 5, 4)
    found = step(build(drop_rate=0.5), x)
    with ops.backend("reference"):
        wanted = step(build(drop_rate=0.5), x)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("checkpoint_steps", [False, True])
def test_compiled_without_a_graph_break(checkpoint_steps: bool) -> None:
    gnn, x = build(drop_rate=0.5, checkpoint_steps=checkpoint_steps), draw(1, 3, CHANNELS, 5, 4)
    for one, other in zip(step(gnn, x, compiled=True), step(gnn, x), strict=True):
        torch.testing.assert_close(one, other)


def test_export_keeps_the_backend_and_takes_any_size() -> None:
    gnn = build().eval()
    free = {axis: torch.export.Dim.DYNAMIC for axis in (0, 1, 3, 4)}
    program = torch.export.export(gnn, (draw(2, 3, CHANNELS, 4, 6),), dynamic_shapes={"features": free})
    assert "'triton'" in program.graph_module.print_readable(print_output=False)
    x = draw(3, 2, CHANNELS, 5, 7)
    found, wanted = program.module()(x), gnn(x)
    assert isinstance(found, GroupOutput)
    torch.testing.assert_close(found.maps, wanted.maps)
    torch.testing.assert_close(found.logits, wanted.logits)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
def test_a_step_captured_as_a_cuda_graph() -> None:
    gnn, x = build(), draw(1, 3, CHANNELS, 5, 4).requires_grad_()
    wanted = labels(3)

    def loss_of() -> Tensor:
        return group_loss(gnn(x), wanted)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            gnn.zero_grad()
            loss_of().backward()
    torch.cuda.current_stream().wait_stream(side)
    gnn.zero_grad(set_to_none=True)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = loss_of()
        loss.backward()
    fresh = draw(1, 3, CHANNELS, 5, 4) * 0.5
    with torch.no_grad():
        x.copy_(fresh)
    graph.replay()
    found = [loss, x.grad, *(parameter.grad for parameter in gnn.parameters())]
    wanted_step = step(build(), fresh)
    assert sum(value is not None for value in found) == len(wanted_step)
    for value, expected in zip((x for x in found if x is not None), wanted_step, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_kernels_run_on_the_device_of_their_tensors() -> None:
    """The current device is another one."""
    gnn, x = build().to("cuda:1"), draw(1, 3, CHANNELS, 5, 4).to("cuda:1")
    with torch.cuda.device(0), torch.no_grad():
        found = gnn(x).maps
    with ops.backend("reference"), torch.no_grad():
        torch.testing.assert_close(found, gnn(x).maps, rtol=1e-3, atol=1e-4)
