"""GroupGNN from its public outputs: all equations in sequence, against the loops with the module's own weights."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from loop_agreement import STEP, compare_values
from loops import ensembled_maps, graph_dropout
from module_loops import Options, Weights, group_gnn

import gwsss_fast
from gwsss_fast.layers import GraphDropout

PAPER: dict[str, Any] = {
    "score": "bilinear",
    "aggregate": "sum",
    "drop_scale": "literal",
    "centred": False,
    "node_scale": "literal",
    "graph_gradient": "full",
    "tied": False,
    "gate_bias": 0.0,
}
CLASSES = 3
IN_TRAINING = ("logits", "initial_logits", "edge_logits", "maps", "initial_maps", "features")
IN_EVAL = tuple(name for name in IN_TRAINING if name != "edge_logits")


def build(channels: int = 4, **options: Any) -> tuple[gwsss_fast.GroupGNN, Weights]:
    """A module in float64 whose every parameter is random, so that no term hides behind a zero or an identity."""
    gnn = gwsss_fast.GroupGNN(channels, CLASSES, reduction=2, backend="reference", **options).double()
    generator = torch.Generator().manual_seed(7)
    for parameter in gnn.parameters():
        parameter.data = 0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return gnn, {name: value.detach().numpy().copy() for name, value in gnn.state_dict().items()}


def draw(shape: tuple[int, ...] = (2, 3, 4, 2, 3), seed: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def compare(
    gnn: gwsss_fast.GroupGNN,
    weights: Weights,
    x: np.ndarray,
    options: Options,
    names: tuple[str, ...],
    rtol: float = 1e-10,
) -> None:
    out = gnn(torch.from_numpy(x))
    expected = group_gnn(x, weights, options)
    for name in names:
        compare_values((getattr(out, name),), (expected[name],), rtol)


@pytest.mark.parametrize("reverse", ["transpose", "directed"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_equations_as_written(reverse: str, steps: int) -> None:
    gnn, weights = build(steps=steps, reverse=reverse, drop_rate=None, **PAPER)
    compare(gnn.train(), weights, draw(), Options(steps=steps, reverse=reverse), IN_TRAINING)


@pytest.mark.parametrize("branch", ["importance", "drop"])
@pytest.mark.parametrize("keep_scale", [False, True])
def test_dropout_follows_every_step_but_the_last(branch: str, keep_scale: bool) -> None:
    """delta_r = 1 makes every draw take the importance branch, delta_r = 0 the dropping one."""
    settings = {**PAPER, "drop_scale": "preserve" if keep_scale else "literal"}
    rate, r = (1.0, 0.5) if branch == "importance" else (0.0, 0.5)
    gnn, weights = build(drop_rate=rate, drop_threshold=0.6, **settings)
    options = Options(r=r, drop_rate=rate, drop_threshold=0.6, keep_scale=keep_scale)
    compare(gnn.train(), weights, draw(), options, IN_TRAINING)


def test_importance_in_eval_is_an_option() -> None:
    gnn, weights = build(drop_rate=0.0, drop_eval="importance", **PAPER)
    compare(gnn.eval(), weights, draw(), Options(r=0.0), IN_EVAL)


@pytest.mark.parametrize("per_node", [False, True])
def test_dropout_draws_once_a_group_or_once_a_node(per_node: bool) -> None:
    """Each node took one of the two branches; about delta_r of the draws the importance branch."""
    g = draw((300, 2, 4, 1, 3)).reshape(300, 2, 3, 4)
    layer = GraphDropout(0.8, 0.7, per_node=per_node).train()
    torch.manual_seed(8)
    out = layer(torch.from_numpy(g)).numpy()
    importance = graph_dropout(g, np.zeros(300), 0.8, 0.7)
    drop = graph_dropout(g, np.ones(300), 0.8, 0.7)
    chosen = np.isclose(out, importance).all((2, 3))
    assert (chosen ^ np.isclose(out, drop).all((2, 3))).all()
    assert (chosen[:, 0] == chosen[:, 1]).all() == (not per_node)
    assert abs(chosen.mean() - 0.8) < 4 * 0.4 / np.sqrt(300)


def test_eval_has_no_dropout_and_no_edges() -> None:
    gnn, weights = build(drop_rate=0.0, **PAPER)
    compare(gnn.eval(), weights, draw(), Options(), IN_EVAL)
    assert gnn(torch.from_numpy(draw())).edge_logits is None


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"score": "cosine", "temperature": 5.0}, {"temperature": 5.0}),
        ({"aggregate": "mean"}, {"aggregate": "mean"}),
        ({"self_edge": False}, {"self_edge": False}),
        ({"score": "cosine", "temperature": 5.0, "centred": True}, {"temperature": 5.0, "centred": True}),
        ({"node_scale": "matched"}, {"matched_nodes": True}),
        ({"score": "cosine", "temperature": 2.0, "reverse": "directed"}, {"temperature": 2.0, "reverse": "directed"}),
    ],
    ids=str,
)
def test_options_of_the_message(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    gnn, weights = build(steps=2, drop_rate=None, **{**PAPER, **settings})
    compare(gnn.train(), weights, draw(), replace(Options(steps=2), **changes), IN_TRAINING)


def test_with_the_state_gradient_alone_other_images_get_none() -> None:
    gnn, weights = build(steps=2, drop_rate=None, **{**PAPER, "graph_gradient": "state"})
    compare(gnn.train(), weights, draw(), Options(steps=2), IN_TRAINING)
    x = torch.from_numpy(draw()).requires_grad_()
    (found,) = torch.autograd.grad(gnn(x).logits[:, 0].sum(), x)
    assert found[:, 0].abs().min() > 0
    assert torch.equal(found[:, 1:], torch.zeros_like(found[:, 1:]))


def test_without_graph_gradient_the_features_learn_from_the_intermediate_readout_alone() -> None:
    gnn, weights = build(steps=2, drop_rate=None, **{**PAPER, "graph_gradient": "none"})
    compare(gnn.train(), weights, draw(), Options(steps=2), IN_TRAINING)
    x = torch.from_numpy(draw()).requires_grad_()
    out = gnn(x)
    (found,) = torch.autograd.grad(out.logits.sum() + out.edge_logits.sum() + out.initial_logits.sum(), x)
    plain = gnn.initial_readout.weight.detach().sum(0) / 6  # 2 x 3 positions
    torch.testing.assert_close(found, plain[None, None, :, None, None].expand_as(found))


def test_kernel_of_three() -> None:
    gnn, weights = build(2, steps=2, gru_kernel_size=3, drop_rate=None, **PAPER)
    compare(gnn.train(), weights, draw((1, 2, 2, 2, 3)), Options(steps=2), IN_TRAINING)


@pytest.mark.parametrize("shape", [(2, 1, 4, 2, 3), (1, 3, 4, 1, 1), (1, 1, 4, 1, 1), (1, 2, 4, 3, 2)], ids=str)
@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_single_images_and_single_positions(shape: tuple[int, ...], aggregate: str) -> None:
    gnn, weights = build(steps=2, drop_rate=None, **{**PAPER, "aggregate": aggregate})
    compare(gnn.train(), weights, draw(shape), Options(steps=2, aggregate=aggregate), IN_TRAINING)


def test_one_group_without_a_batch_dimension() -> None:
    gnn, _ = build(**PAPER)
    x = torch.from_numpy(draw((1, 3, 4, 2, 3)))
    batched, single = gnn.eval()(x), gnn(x[0])
    torch.testing.assert_close(single.logits.reshape(batched.logits.shape), batched.logits)
    torch.testing.assert_close(single.maps.reshape(batched.maps.shape), batched.maps)


def test_ensembled_maps() -> None:
    gnn, weights = build(**PAPER)
    x = draw()
    out = gnn.eval()(torch.from_numpy(x))
    expected = group_gnn(x, weights, Options())
    cams = ensembled_maps(expected["maps"], expected["initial_maps"])
    assert cams.min() == 0
    np.testing.assert_allclose(out.cams().detach().numpy(), cams, rtol=1e-4, atol=1e-5)


def test_maps_without_a_positive_value_are_zero() -> None:
    gnn, _ = build(**PAPER)
    with torch.no_grad():
        for parameter in (gnn.initial_readout.bias, gnn.readout.bias):
            parameter.sub_(1e6)
        cams = gnn.eval()(torch.from_numpy(draw())).cams()
    assert torch.equal(cams, torch.zeros_like(cams))


@pytest.mark.parametrize("drop_rate", [0.0, 1.0])
def test_gradients_of_the_whole_module(drop_rate: float) -> None:
    """Along one random direction for the features and for each parameter, by finite differences of the loops."""
    gnn, weights = build(steps=2, drop_rate=drop_rate, **PAPER)
    options = Options(steps=2, r=0.5, drop_rate=drop_rate)
    rng = np.random.default_rng(60)
    x = draw((1, 2, 4, 2, 2))
    features = torch.from_numpy(x).requires_grad_()
    out = gnn.train()(features)
    names = ("logits", "initial_logits", "edge_logits", "maps")
    cotangents = {name: rng.normal(size=tuple(getattr(out, name).shape)) for name in names}

    def contracted(point: np.ndarray, at: Weights) -> float:
        outputs = group_gnn(point, at, options)
        return sum(float((outputs[name] * cotangents[name]).sum()) for name in names)

    total = sum((getattr(out, name) * torch.from_numpy(cotangents[name])).sum() for name in names)
    parameters = dict(gnn.named_parameters())
    found = torch.autograd.grad(total, [features, *parameters.values()])
    for name, gradient in zip(["input", *parameters], found, strict=True):
        direction = rng.normal(size=tuple(gradient.shape))
        values = []
        for step in (STEP, -STEP):
            if name == "input":
                values.append(contracted(x + step * direction, weights))
            else:
                values.append(contracted(x, {**weights, name: weights[name] + step * direction}))
        numeric = (values[0] - values[1]) / (2 * STEP)
        analytic = float((gradient.numpy() * direction).sum())
        np.testing.assert_allclose(analytic, numeric, rtol=1e-6, atol=1e-7, err_msg=name)
