"""The Triton kernels of attention and co-attention under the interpreter, against float64 and plain PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gwsss_fast import GroupGNN, GwsssError, ops
from gwsss_fast.launch import attention as attention_launcher
from gwsss_fast.launch import co_attention as co_attention_launcher
from gwsss_fast.launch import edges, launcher
from tests.ops.cases import dense, strided
from tests.ops.golden import poisoned_memory

# (B, K, N, D, C), reverse edge: one position, odd sizes, several tiles, more than one block of columns of C and of D.
SIZES = [
    ((1, 2, 1, 3, 7), "transpose"),
    ((2, 3, 37, 5, 20), "transpose"),
    ((1, 3, 37, 33, 20), "directed"),
    ((1, 4, 3, 18, 65), "directed"),
    ((1, 5, 2, 5, 20), "transpose"),
    ((1, 2, 3, 18, 512), "transpose"),
    ((1, 2, 35, 130, 20), "transpose"),
]
pytestmark = pytest.mark.skipif(launcher.missing() is not None, reason=str(launcher.missing()))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16]
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
both_ways = pytest.mark.parametrize("reverse", ["transpose", "directed"])


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


def plain_co_attention(p: Tensor, q: Tensor, g: Tensor, reverse: str) -> Tensor:
    """What anyone would write, in the inputs' dtype and differentiated by autograd."""
    nodes, messages = range(g.shape[1]), []
    for i in nodes:
        straight = [reverse == "directed" or i < j for j in nodes]
        sides = [(p[:, i], q[:, j]) if straight[j] else (q[:, i], p[:, j]) for j in nodes]
        messages.append(sum(plain_attention(*sides[j], g[:, j]) for j in nodes if j != i))
    return torch.stack(messages, 1)


def inputs(
    size: Sequence[int], dtype: torch.dtype, make: Callable[..., Tensor] = dense, scale: float = 1.0
) -> list[Tensor]:
    """p, q (B, K, N, D), g and the gradient of the messages (B, K, N, C)."""
    groups, nodes, positions, rank, channels = size
    generator = torch.Generator().manual_seed(7)
    widths = (rank, rank, channels, channels)
    tensors = [make((groups, nodes, positions, width), torch.float64, generator) for width in widths]
    return [_moved(x * factor, dtype) for x, factor in zip(tensors, (scale, scale, 1, 1), strict=True)]


def _moved(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x on the device of the kernels in another dtype, with the strides it has."""
    if DEVICE == "cpu":
        return x.to(dtype)
    strides = x.stride()
    room = torch.empty_strided(x.shape, strides, dtype=dtype, device=DEVICE)
    return room.copy_(x)


def with_gradients(call: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    value = call(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, grad)]


def on_triton(call: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Fresh memory holds NaN, so what is not written shows."""
    with ops.backend("triton"), poisoned_memory():
        return with_gradients(call, tensors, grad)


def assert_as_good_as_plain(
    call: Callable[..., Tensor], plain: Callable[..., Tensor], tensors: Sequence[Tensor], grad: Tensor
) -> None:
    """The rule of all operations: twice the error of plain PyTorch in the same dtype, thrice for gradients."""
    exact = with_gradients(plain, [x.double() for x in tensors], grad.double())
    eager = with_gradients(plain, tensors, grad)
    ours = on_triton(call, tensors, grad)
    epsilon = torch.finfo(grad.dtype).eps
    for number, (value, truth, other) in enumerate(zip(ours, exact, eager, strict=True)):
        assert value.dtype == grad.dtype
        assert value.shape == truth.shape
        # A rounding of the largest value is room for results that plain PyTorch meets by luck.
        tiny = (1 if epsilon > 1e-5 else 8) * epsilon * truth.abs().max()
        allowed = (3 if number else 2) * (other - truth).abs().max() + tiny
        assert (value - truth).abs().max() <= allowed, f"result {number}"


def co_attention(reverse: str) -> Callable[..., Tensor]:
    return lambda p, q, g: ops.co_attention(p, q, g, reverse=reverse)


def plain(reverse: str) -> Callable[..., Tensor]:
    return lambda p, q, g: plain_co_attention(p, q, g, reverse)


@both_dtypes
@pytest.mark.parametrize(("size", "reverse"), SIZES, ids=str)
def test_co_attention(size: tuple[int, ...], reverse: str, dtype: torch.dtype) -> None:
    *tensors, grad = inputs(size, dtype, strided, scale=size[3] ** -0.25)
    assert_as_good_as_plain(co_attention(reverse), plain(reverse), tensors, grad)


@both_dtypes
@pytest.mark.parametrize("size", [(3, 1, 1, 3, 7), (2, 1, 37, 5, 20), (1, 1, 3, 18, 512)], ids=str)
def test_attention(size: tuple[int, ...], dtype: torch.dtype) -> None:
    *tensors, grad = inputs(size, dtype, strided, scale=size[3] ** -0.25)
    assert_as_good_as_plain(ops.attention, plain_attention, tensors, grad)


def test_bfloat16() -> None:
    *tensors, grad = inputs((1, 2, 37, 5, 20), torch.bfloat16)
    assert_as_good_as_plain(co_attention("transpose"), plain("transpose"), tensors, grad)


@pytest.mark.parametrize(("residual", "message"), [(True, True), (True, False), (False, True)])
def test_the_sum_of_messages_in_one_start(residual: bool, message: bool) -> None:
    q, k, v, grad = inputs((1, 2, 37, 5, 300), torch.float16)
    addends = {"residual": v + 1} if residual else {}
    if message:
        addends["message"] = v - 2
    scale = 1 / 3

    def call(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Tensor:
        return ops.attention(q, k, v, **dict(zip(addends, others, strict=True)), message_scale=scale)

    def written_out(q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Tensor:
        scales = [1 if name == "residual" else scale for name in addends]
        return plain_attention(q, k, v) + sum(x * s for x, s in zip(others, scales, strict=True))

    assert_as_good_as_plain(call, written_out, [q, k, v, *addends.values()], grad)


@pytest.fixture
def as_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Take the tiles of a card."""
    return lambda card: monkeypatch.setattr(edges, "card_of", lambda tensor: card)


def test_many_positions_of_attention() -> None:
    *tensors, grad = inputs((1, 1, 785, 3, 4), torch.float32)
    assert_as_good_as_plain(ops.attention, plain_attention, tensors, grad)


def test_many_positions_of_co_attention(as_on: Callable[[str], None]) -> None:
    as_on("sm_100")
    *tensors, grad = inputs((1, 2, 785, 3, 4), torch.float16)
    assert_as_good_as_plain(co_attention("directed"), plain("directed"), tensors, grad)


@pytest.mark.parametrize(
    ("card", "channels"), [("sm_80", 130), ("sm_89", 130), ("sm_90", 130), ("sm_90", 520), ("sm_100", 130)]
)
def test_tiles_of_every_card(card: str, channels: int, as_on: Callable[[str], None]) -> None:
    as_on(card)
    *tensors, grad = inputs((1, 1, 70, 20, channels), torch.float16)
    assert_as_good_as_plain(ops.attention, plain_attention, tensors, grad)


@both_dtypes
def test_one_program_for_all_columns(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are programs enough, each walks over all blocks of C and finds its statistics once."""
    monkeypatch.setattr(edges, "_MULTIPROCESSORS", 1)
    *tensors, grad = inputs((1, 2, 37, 20, 300 if dtype == torch.float16 else 70), dtype)
    assert_as_good_as_plain(co_attention("transpose"), plain("transpose"), tensors, grad)
    assert_as_good_as_plain(ops.attention, plain_attention, tensors, grad)


@pytest.mark.parametrize("call", [ops.attention, co_attention("transpose"), co_attention("directed")])
def test_layouts(call: Callable[..., Tensor]) -> None:
    """Transposed rows, padded rows, slices of one projection, expanded gradients: the same bits as when packed."""
    p, q, g, grad = inputs((2, 2, 5, 4, 20), torch.float32, make=strided)
    packed = on_triton(call, [x.contiguous() for x in (p, q, g)], grad.contiguous())
    fused = torch.cat([p, q], -1)
    padded = torch.nn.functional.pad(g, (0, 3))[..., :-3]
    assert not any(x.is_contiguous() for x in (p, fused[..., :4], padded, grad))
    for tensors in ([p, q, g], [fused[..., :4], fused[..., 4:], padded]):
        for a, b in zip(on_triton(call, tensors, grad), packed, strict=True):
            assert torch.equal(a, b)
    ones = grad.new_ones(1)
    for a, b in zip(
        on_triton(call, [p, q, g], ones.expand(grad.shape)),
        on_triton(call, [p, q, g], torch.ones_like(grad)),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("call", [ops.attention, co_attention("transpose"), co_attention("directed")])
def test_two_runs_agree(call: Callable[..., Tensor]) -> None:
    *tensors, grad = inputs((1, 3, 19, 5, 20), torch.float16)
    first, second = (on_triton(call, tensors, grad) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_statistics_of_every_edge() -> None:
    """Row log-sum-exps as in the reference, zero on the diagonal."""
    p, q, g, _ = inputs((2, 3, 19, 5, 20), torch.float32)
    for reverse in ops.REVERSES:
        ours, reference = (
            torch.ops.gwsss_fast.co_attention(p, q, g, reverse, name)[1] for name in ("triton", "reference")
        )
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)
        assert not ours.diagonal(dim1=1, dim2=2).any()


def with_large_scores(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same with 32 columns more in both factors, which add 80,000 to all scores: no softmax sees that."""

    def widened(p: Tensor, q: Tensor, g: Tensor) -> Tensor:
        return call(*(torch.nn.functional.pad(x, (0, 32), value=50.0) for x in (p, q)), g)

    return widened


@pytest.mark.parametrize(
    ("call", "written_out"), [(co_attention("transpose"), plain("transpose")), (ops.attention, plain_attention)]
)
def test_scores_beyond_fp16(call: Callable[..., Tensor], written_out: Callable[..., Tensor]) -> None:
    """Scores above 65504 overflow in plain fp16. Factors of few digits make those of 80,000 exact in float32, whatever
    the order of their sums, and leave one difference from small scores: the logarithm of a row's sum is rounded by up
    to 2^-8, and its weights with it. Beyond that, the rule for fp16."""
    *tensors, grad = inputs((1, 2, 37, 5, 20), torch.float16)
    tensors[:2] = [(x * 8).round() / 8 for x in tensors[:2]]
    assert with_gradients(with_large_scores(written_out), tensors, grad)[0].isnan().all()
    exact = with_gradients(written_out, [x.double() for x in tensors], grad.double())
    half = with_gradients(written_out, tensors, grad)
    ours = on_triton(with_large_scores(call), tensors, grad)
    for number, (value, truth, plain_value) in enumerate(zip(ours, exact, half, strict=True)):
        error = (plain_value - truth).abs().max() + truth.abs().max() / 256
        assert (value - truth).abs().max() <= (3 if number else 2) * error, f"result {number}"


@both_dtypes
def test_gradients_do_not_lose_what_values_have_in_common(dtype: torch.dtype) -> None:
    """The softmax's gradient is blind to a constant added to all values, which makes its terms large."""
    p, q, g, grad = inputs((1, 2, 37, 5, 20), dtype)
    offset = (g.double() + 20).to(dtype)
    exact = with_gradients(plain("transpose"), [x.double() for x in (p, q, offset)], grad.double())
    eager = with_gradients(plain("transpose"), [p, q, offset], grad)
    ours = on_triton(co_attention("transpose"), [p, q, offset], grad)
    for value, truth, other in zip(ours[1:3], exact[1:3], eager[1:3], strict=True):
        assert (value - truth).abs().max() <= (other - truth).abs().max()


def test_a_saturated_softmax() -> None:
    """Scores in the hundreds: nearly every row has one weight of one, and gradients cancel to little."""
    p, q, g, grad = inputs((1, 2, 37, 20, 40), torch.float16, scale=4)
    assert_as_good_as_plain(co_attention("transpose"), plain("transpose"), [p, q, g], grad)


def starts_of(size: Sequence[int], dtype: torch.dtype, reverse: str = "transpose") -> tuple[list[Any], list[Any]]:
    """The recorded starts of a forward and a backward pass of co-attention."""
    groups, nodes, positions, rank, channels = size
    p, q, g = (
        torch.empty(groups, nodes, positions, width, device="meta", dtype=dtype) for width in (rank, rank, channels)
    )
    with launcher.record("sm_90") as forward:
        _, row_lse = co_attention_launcher.co_attention(p, q, g, reverse)
    with launcher.record("sm_90") as backward:
        co_attention_launcher.co_attention_backward(g, p, q, g, row_lse, reverse)
    return forward, backward


@both_ways
def test_one_start_and_no_matrix_of_positions(reverse: str) -> None:
    forward, backward = starts_of((2, 4, 10_000, 8, 16), torch.float16, reverse)
    assert [start.kernel.__name__ for start in forward] == ["messages"]
    assert len(backward) == 3
    for start in forward + backward:
        assert max(x.numel() for x in start.arguments if isinstance(x, Tensor)) <= 2 * 4 * 10_000 * 16


def test_a_lone_node_gets_nothing_and_starts_nothing() -> None:
    assert starts_of((2, 1, 37, 5, 20), torch.float32) == ([], [])
    *tensors, grad = inputs((2, 1, 37, 5, 20), torch.float32)
    assert not any(x.any() for x in on_triton(co_attention("transpose"), tensors, grad))


def test_nothing_is_added_atomically() -> None:
    for module in (attention_launcher, co_attention_launcher):
        assert "atomic_" not in inspect.getsource(module.kernels)


def test_full_float32_is_the_default() -> None:
    (forward, _) = starts_of((1, 2, 37, 5, 20), torch.float32)
    assert {start.constants["PRECISION"] for start in forward} == {"ieee"}


@pytest.mark.usefixtures("tf32")
def test_tf32_is_an_option() -> None:
    """With tiles of its own."""
    size = (1, 2, 37, 5, 20)
    assert {start.constants["PRECISION"] for start in starts_of(size, torch.float32)[0]} == {"tf32"}
    assert {start.constants["PRECISION"] for start in starts_of(size, torch.float16)[0]} == {"ieee"}
    *tensors, grad = inputs(size, torch.float32)
    assert_as_good_as_plain(co_attention("transpose"), plain("transpose"), tensors, grad)


@pytest.mark.parametrize(
    ("rank", "channels", "reason"), [(257, 8, "256 channels, not 257"), (4, 1025, "1024 channels")]
)
def test_what_the_kernels_refuse(rank: int, channels: int, reason: str) -> None:
    p, _, g, _ = inputs((1, 2, 3, rank, channels), torch.float32)
    for call in (ops.attention, ops.co_attention):
        with ops.backend("triton"), pytest.raises(GwsssError, match=reason):
            call(p, p, g)
        assert call(p, p, g).shape == g.shape


@pytest.mark.parametrize("settings", [{}, {"aggregate": "sum", "reverse": "directed"}, {"self_edge": False}], ids=str)
def test_group_gnn_on_these_kernels(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    gnn = GroupGNN(12, 3, steps=2, drop_rate=None, edge_supervision=False, graph_gradient="full", **settings)
    features = torch.randn(2, 3, 12, 3, 4)
    results = []
    for name in ("reference", "triton"):
        gnn.backend = name
        out = gnn(features)
        results.append(
            [out.logits, *torch.autograd.grad(out.logits.square().sum(), list(gnn.parameters()), allow_unused=True)]
        )
    for a, b in zip(*results, strict=True):
        if a is not None or b is not None:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
