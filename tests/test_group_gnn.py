"""GroupGNN and group_loss as a user of the package meets them. (Their equations: tests/equations.)"""

import copy
import inspect
import pickle
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from gwsss_fast import GroupGNN, GroupOutput, GwsssError, group_loss
from gwsss_fast.config import load_config
from gwsss_fast.training.build import graph_options

CHANNELS, CLASSES = 8, 3
PAPER = graph_options(load_config("paper").model)
LITERAL = {**PAPER, "reduction": 2}
SETTINGS = pytest.mark.parametrize("settings", [{}, LITERAL], ids=["defaults", "literal"])
# Every option of the constructor with values other than its default.
VALUES: dict[str, list[Any]] = {
    "steps": [0, 1, 2],
    "reduction": [1, 2, 100],
    "drop_rate": [None, 0.0, 1.0],
    "drop_threshold": [0.0, 1.0],
    "gru_kernel_size": [3],
    "reverse": ["directed"],
    "score": ["bilinear"],
    "temperature": [1.0],
    "centred": [False],
    "aggregate": ["sum"],
    "tied": [False],
    "gate_bias": [0.0, 2.0],
    "drop_scale": ["literal"],
    "drop_per_node": [True],
    "drop_eval": ["importance"],
    "node_scale": ["literal"],
    "graph_gradient": ["full", "state", "none"],
    "self_edge": [False],
    "edge_supervision": [False],
    "checkpoint_steps": [True],
    "backend": ["reference", "aten"],
}
BAD: list[tuple[str, Any]] = [
    ("in_channels", 0),
    ("num_classes", 0),
    ("steps", -1),
    ("reduction", 0),
    ("gru_kernel_size", 2),
    ("reverse", "transposed"),
    ("score", "dot"),
    ("aggregate", "max"),
    ("drop_scale", "none"),
    ("drop_eval", "drop"),
    ("node_scale", "max"),
    ("graph_gradient", "half"),
    ("num_classes", 2.5),
    ("drop_rate", 1.5),
    ("drop_threshold", -0.1),
    ("temperature", 0.0),
    ("gate_bias", float("nan")),
    ("backend", "x"),
]


def build(**options: Any) -> GroupGNN:
    torch.manual_seed(0)
    return GroupGNN(CHANNELS, CLASSES, **options)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_labels(groups: int, nodes: int) -> Tensor:
    return (torch.rand(groups, nodes, CLASSES, generator=torch.Generator().manual_seed(2)) < 0.5).float()


def tensors(out: GroupOutput) -> Iterator[tuple[str, Tensor]]:
    for field in fields(out):
        value = getattr(out, field.name)
        if value is not None:
            yield field.name, value


def assert_equal(first: GroupOutput, second: GroupOutput) -> None:
    found, expected = dict(tensors(first)), dict(tensors(second))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def assert_trains(gnn: GroupGNN, x: Tensor) -> None:
    """Outputs, loss and gradients of one training step are finite."""
    x = x.clone().requires_grad_()
    out = gnn(x)
    for name, value in tensors(out):
        assert torch.isfinite(value).all(), name
    assert torch.isfinite(out.cams()).all()
    loss = group_loss(out, draw_labels(*out.logits.shape[:2]))
    assert torch.isfinite(loss)
    loss.backward()
    for name, value in {"features": x, **dict(gnn.named_parameters())}.items():
        assert value.grad is None or torch.isfinite(value.grad).all(), name


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 5, 2), (3, 5, 2, 2), (2, 4, 1, 1), (1, 1, 1, 1)], ids=str)
@SETTINGS
def test_groups_and_maps_may_have_any_size(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    b, k, h, w = shape
    gnn = build(**settings)
    out = gnn(draw(b, k, CHANNELS, h, w))
    assert out.logits.shape == out.initial_logits.shape == (b, k, CLASSES)
    assert out.edge_logits is not None
    assert out.edge_logits.shape == (b, k, k, CLASSES)
    assert out.maps.shape == out.initial_maps.shape == out.cams().shape == (b, k, CLASSES, h, w)
    assert out.features.shape == (b, k, CHANNELS, h, w)
    torch.testing.assert_close(out.logits, out.maps.mean((-2, -1)))
    torch.testing.assert_close(out.initial_logits, out.initial_maps.mean((-2, -1)))
    assert 0 <= out.cams().min() <= out.cams().max() <= 1


def test_one_module_takes_one_size_after_the_other() -> None:
    gnn = build().eval()
    for shape in [(2, 3, CHANNELS, 4, 6), (1, 1, CHANNELS, 3, 3), (2, 3, CHANNELS, 4, 6)]:
        assert_equal(gnn(draw(*shape)), copy.deepcopy(gnn)(draw(*shape)))


def test_one_group_may_come_without_its_batch_dimension() -> None:
    gnn, x = build().eval(), draw(4, CHANNELS, 3, 5)
    assert_equal(gnn(x), gnn(x[None]))
    assert group_loss(gnn(x), draw_labels(1, 4)[0]) == group_loss(gnn(x), draw_labels(1, 4))


def test_groups_of_a_batch_do_not_meet() -> None:
    gnn, x = build().eval(), draw(3, 2, CHANNELS, 4, 4)
    whole = gnn(x)
    torch.testing.assert_close(gnn(x[1:2]).maps, whole.maps[1:2])
    changed = x.clone()
    changed[0] += 1
    torch.testing.assert_close(gnn(changed).maps[1:], whole.maps[1:])


def test_memory_layout_does_not_matter() -> None:
    gnn, x = build().eval(), draw(2, 3, CHANNELS, 4, 6)
    expected = gnn(x)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 3))
    for view in (last, draw(2, 3, CHANNELS, 4, 12)[..., ::2].copy_(x), x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(view, x)
        torch.testing.assert_close(gnn(view).maps, expected.maps)


@pytest.mark.parametrize(
    "shape", [(CHANNELS, 4, 4), (2, CHANNELS + 1, 4, 4), (2, 0, CHANNELS, 4, 4), (2, 3, CHANNELS, 0, 4)], ids=str
)
def test_other_features_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GwsssError, match="features must be"):
        build()(torch.zeros(shape))
    with pytest.raises(GwsssError, match="weights torch"):
        build()(draw(3, CHANNELS, 4, 4).double())


def test_every_option_is_tried_below() -> None:
    parameters = inspect.signature(GroupGNN).parameters
    assert list(VALUES) == list(parameters)[2:]
    for name, values in VALUES.items():
        assert any(value != parameters[name].default for value in values), name
        assert f"{name}" in (GroupGNN.__doc__ or "")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_every_option_trains(name: str, value: Any) -> None:
    gnn = build(**{name: value})
    assert_trains(gnn, draw(2, 3, CHANNELS, 3, 4))
    assert_equal(gnn.eval()(draw(2, 3, CHANNELS, 3, 4)), gnn(draw(2, 3, CHANNELS, 3, 4)))


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_option_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(GwsssError, match=rf"{name} is {value!r}"):
        GroupGNN(**{"in_channels": CHANNELS, "num_classes": CLASSES, name: value})
    with pytest.raises(TypeError, match="colour"):
        build(colour="red")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(GwsssError, match="'numpy'"):
        build(backend="numpy")(draw(2, CHANNELS, 3, 3))


def test_steps_0_is_a_plain_classifier() -> None:
    out = build(steps=0)(draw(2, 3, CHANNELS, 4, 4))
    assert torch.equal(out.logits, out.initial_logits)
    assert torch.equal(out.maps, out.initial_maps)
    assert out.edge_logits is None


def test_eval_has_no_edge_logits_and_no_chance() -> None:
    gnn, x = build(), draw(2, 3, CHANNELS, 4, 4)
    torch.manual_seed(3)
    trained = gnn(x)
    assert trained.edge_logits is not None
    gnn.eval()
    first = gnn(x)
    torch.manual_seed(4)
    assert_equal(first, gnn(x))
    assert first.edge_logits is None
    assert group_loss(first, draw_labels(2, 3)) != group_loss(trained, draw_labels(2, 3))


def test_training_repeats_with_the_seed() -> None:
    gnn, x = build(drop_rate=0.5, drop_per_node=True).train(), draw(4, 3, CHANNELS, 4, 4)
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(gnn(x))
    assert_equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0].maps, outputs[2].maps)


@pytest.mark.parametrize("nodes", [1, 3])
@SETTINGS
def test_every_parameter_gets_a_gradient(nodes: int, settings: dict[str, Any]) -> None:
    """So that data-parallel training needs no search for unused parameters; with neighbours none is all zero either."""
    gnn = build(**settings)
    group_loss(gnn(draw(2, nodes, CHANNELS, 4, 4)), draw_labels(2, nodes)).backward()
    lacking = [name for name, value in gnn.named_parameters() if value.grad is None]
    assert lacking == []
    idle = {name for name, value in gnn.named_parameters() if value.grad is not None and not value.grad.any()}
    assert idle == (set() if nodes > 1 else {"co_attention.p.weight", "co_attention.q.weight"})


@pytest.mark.parametrize("training", [True, False])
def test_compile_without_a_graph_break(training: bool) -> None:
    torch.compiler.reset()
    gnn, x, labels = build(steps=2).train(training), draw(2, 3, CHANNELS, 3, 4), draw_labels(2, 3)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        out = gnn(x)
        return group_loss(out, labels), out.cams()

    def run(function: Any) -> list[Tensor]:
        gnn.zero_grad()
        torch.manual_seed(5)
        features = x.clone().requires_grad_()
        loss, cams = function(features)
        loss.backward()
        found = [value.grad.clone() for value in (features, *gnn.parameters()) if value.grad is not None]
        return [loss.detach(), cams.detach(), *found]

    expected = run(step)
    found = run(torch.compile(step, fullgraph=True, backend="aot_eager"))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_export_of_eval_takes_any_size() -> None:
    gnn = build(steps=2).eval()
    free = {axis: torch.export.Dim.DYNAMIC for axis in (0, 1, 3, 4)}
    program = torch.export.export(gnn, (draw(2, 3, CHANNELS, 4, 6),), dynamic_shapes={"features": free})
    for shape in [(2, 3, CHANNELS, 4, 6), (3, 2, CHANNELS, 5, 7)]:
        found, expected = program.module()(draw(*shape)), gnn(draw(*shape))
        assert isinstance(found, GroupOutput)
        for name, value in tensors(expected):
            torch.testing.assert_close(getattr(found, name), value)


@SETTINGS
def test_autocast_to_16_bits(settings: dict[str, Any]) -> None:
    """Values within bfloat16's 8 bits of precision, a loss in float32, gradients in the parameters' type.

    Without dropout, whose threshold rounding may cross.
    """
    gnn, x, labels = build(**{**settings, "drop_rate": None}), draw(2, 3, CHANNELS, 4, 4), draw_labels(2, 3)
    expected = gnn(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = gnn(x)
        loss = group_loss(out, labels)
    assert out.logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    for name in ("logits", "initial_logits", "maps"):
        torch.testing.assert_close(getattr(out, name).float(), getattr(expected, name), rtol=0.1, atol=0.05)
    loss.backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in gnn.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_module_of_another_precision(dtype: torch.dtype) -> None:
    gnn = build().to(dtype)
    out = gnn(draw(2, 3, CHANNELS, 4, 4).to(dtype))
    assert {value.dtype for _, value in tensors(out)} == {dtype}
    assert_trains(gnn, draw(2, 3, CHANNELS, 4, 4).to(dtype))


@pytest.mark.parametrize("scale", ["literal", "preserve"])
@pytest.mark.parametrize("autocast", [False, True])
def test_maps_that_are_dropped_as_a_whole(scale: str, autocast: bool) -> None:
    """delta_r = 0 always takes the dropping branch; delta_d = 0 leaves no position of features that are positive."""
    gnn = build(drop_rate=0.0, drop_threshold=0.0, drop_scale=scale)
    assert gnn.dropout is not None
    g = draw(2, 3, 12, CHANNELS).abs()
    assert not gnn.dropout(g).any()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_trains(gnn, draw(2, 3, CHANNELS, 3, 4).abs())


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e4])
@pytest.mark.parametrize("autocast", [False, True])
@SETTINGS
def test_features_of_extreme_size(size: float, autocast: bool, settings: dict[str, Any]) -> None:
    gnn = build(**settings)
    for drop_rate in (0.0, 1.0):
        assert gnn.dropout is not None
        gnn.dropout.drop_rate = drop_rate
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert_trains(gnn.train(), size * draw(2, 3, CHANNELS, 4, 4))
            assert all(torch.isfinite(value).all() for _, value in tensors(gnn.eval()(size * draw(2, CHANNELS, 4, 4))))


def test_the_state_survives() -> None:
    """state_dict, deepcopy and pickle give modules that are no longer connected to the first."""
    gnn, x = build().eval(), draw(2, 3, CHANNELS, 4, 4)
    expected = gnn(x)
    torch.manual_seed(9)
    other = GroupGNN(CHANNELS, CLASSES).eval()
    assert not torch.equal(other(x).maps, expected.maps)
    other.load_state_dict(gnn.state_dict())
    copies = [other, copy.deepcopy(gnn), pickle.loads(pickle.dumps(gnn))]
    with torch.no_grad():
        for parameter in gnn.parameters():
            parameter.add_(1)
    for module in copies:
        assert_equal(module(x), expected)


def test_a_state_does_not_load_into_another_shape() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        GroupGNN(CHANNELS, CLASSES + 1).load_state_dict(build().state_dict())


def test_the_loss_takes_labels_of_any_number_type() -> None:
    out, labels = build()(draw(2, 3, CHANNELS, 4, 4)), draw_labels(2, 3)
    expected = group_loss(out, labels)
    for kind in (torch.bool, torch.int64, torch.uint8, torch.float64):
        assert torch.equal(group_loss(out, labels.to(kind)), expected)


def test_what_the_loss_refuses() -> None:
    out, labels = build()(draw(2, 3, CHANNELS, 4, 4)), draw_labels(2, 3)
    for wrong in (labels[:, :2], labels[..., :2], labels[0]):
        with pytest.raises(GwsssError, match="labels must be"):
            group_loss(out, wrong)
    with pytest.raises(GwsssError, match="reduction is 'none'"):
        group_loss(out, labels, reduction="none")
    with pytest.raises(GwsssError, match="weights"):
        group_loss(out, labels, (0.7, 0.3))


def test_the_paper_preset_builds_the_paper() -> None:
    config = load_config("paper")
    gnn = GroupGNN(512, 20, **graph_options(config.model))
    assert (gnn.steps, config.classifier.group_size, config.classifier.sampling) == (3, 4, "greedy")
    assert gnn.co_attention.p.weight.shape == gnn.co_attention.q.weight.shape == (128, 512)
    assert (gnn.co_attention.reverse, gnn.co_attention.score, gnn.co_attention.aggregate) == (
        "transpose",
        "bilinear",
        "sum",
    )
    assert not torch.equal(gnn.co_attention.p.weight, gnn.co_attention.q.weight)
    assert gnn.self_edge is not None
    assert gnn.self_edge.f.weight.shape == (128, 512)
    assert gnn.self_edge.score == "bilinear"
    assert gnn.dropout is not None
    assert (gnn.dropout.drop_rate, gnn.dropout.drop_threshold) == (0.8, 0.7)
    assert (gnn.dropout.scale, gnn.dropout.per_node, gnn.dropout.evaluation) == ("literal", False, "identity")
    assert gnn.update.weight.shape == (3 * 512, 2 * 512, 1, 1)
    assert gnn.edges is not None
    assert (gnn.node_scale, gnn.graph_gradient) == ("literal", "full")
    assert config.classifier.loss_weights == (0.7, 0.1, 0.2)
    bias = gnn.update.bias.detach()[:512]  # of the update gate: drawn around zero, neither closed nor open
    assert bias.abs().max() < 0.1


def test_the_authors_preset_builds_the_column_of_their_code() -> None:
    config = load_config("authors-code")
    gnn = GroupGNN(512, 20, **graph_options(config.model))
    assert (config.classifier.group_size, config.classifier.sampling) == (3, "one-common")
    assert (config.classifier.size, config.classifier.mode, config.classifier.flip) == (256, "squash", False)
    assert config.classifier.color_jitter > 0
    assert gnn.co_attention.p.weight.shape == (256, 512)
    assert gnn.co_attention.reverse == "directed"
    assert gnn.self_edge is None
    assert gnn.edges is None
    assert config.classifier.loss_weights == pytest.approx((1 / 6, 0.4 / 6, 0))
    assert (config.classifier.bias_lr_factor, config.classifier.nesterov, config.cam.oaa) == (2, True, True)
    changed = {"reduction", "reverse", "self_edge", "edge_supervision"}
    assert {name for name in PAPER if PAPER[name] != graph_options(config.model)[name]} == changed
