import pytest
import torch
from torch import nn

from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupGNN
from gwsss_fast.losses import group_loss
from gwsss_fast.models.group_classifier import GroupClassifier
from gwsss_fast.models.tiny import Tiny


def classifier(channels=128, **options):
    torch.manual_seed(0)
    return GroupClassifier(Tiny(), GroupGNN(channels, 3, steps=2, **options))


def test_output_and_training_step():
    model = classifier(channels=16)
    images = torch.randn(2, 3, 3, 40, 32)
    out = model(images)
    assert out.logits.shape == (2, 3, 3)
    assert out.edge_logits.shape == (2, 3, 3, 3)
    assert out.maps.shape == out.initial_maps.shape == (2, 3, 3, 5, 4)
    assert out.features.shape == (2, 3, 16, 5, 4)
    group_loss(out, torch.ones(2, 3, 3)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_one_group_needs_no_batch_axis():
    model = classifier().eval()
    images = torch.randn(3, 3, 32, 32)
    one, batch = model(images), model(images[None])
    torch.testing.assert_close(one.logits.reshape(3, 3), batch.logits[0])


@pytest.mark.parametrize(("channels", "kind"), [(128, nn.Identity), (16, nn.Sequential)])
def test_features_are_the_images_own_and_channels_last(channels, kind):
    model = classifier(channels).eval()
    assert isinstance(model.project, kind)
    images = torch.randn(2, 3, 3, 33, 40)
    nodes = model.features(images)
    assert nodes.shape == (2, 3, channels, 5, 5)
    assert nodes.permute(0, 1, 3, 4, 2).is_contiguous()
    assert nodes.min() >= 0
    alone = model.backbone(images[1, 2][None])
    if channels == 16:
        convolution = model.project[0]
        alone = torch.einsum("oc,bchw->bohw", convolution.weight[:, :, 0, 0], alone)
        alone = (alone + convolution.bias.view(1, -1, 1, 1)).clamp_min(0)
    torch.testing.assert_close(nodes[1, 2], alone[0], rtol=1e-4, atol=1e-5)
    out = model(images)
    torch.testing.assert_close(out.logits, model.gnn(nodes).logits)


def test_projection_starts_with_kaiming():
    weight = classifier(channels=64).project[0].weight
    assert float(weight.detach().std()) == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 4, 32, 32), (1, 2, 1, 32, 32), (1, 1, 1, 3, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(GwsssError, match=r"pass \(B, K, 3, H, W\)"):
        classifier()(torch.zeros(shape))


def test_parameter_groups():
    model = classifier(channels=16)
    groups = model.parameter_groups(0.001, 0.01)
    rates = [("backbone", 0.001), ("graph", 0.01), ("messages", 0.01)]
    assert [(group["name"], group["lr"]) for group in groups] == rates
    assert "weight_decay" not in groups[0]
    groups = model.parameter_groups(0.001, 0.01, message_lr_factor=0.5, bias_lr_factor=2.0, weight_decay=5e-4)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("backbone", 0.001),
        ("backbone biases", 0.002),
        ("graph", 0.01),
        ("graph biases", 0.02),
        ("messages", 0.005),
        ("messages biases", 0.01),
    ]
    assert all(group["weight_decay"] == 5e-4 for group in groups)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    assert {p.ndim for group in groups[1::2] for p in group["params"]} == {1}
    fresh = [*model.project.parameters(), *model.gnn.initial_readout.parameters()]
    assert {id(p) for group in groups[2:4] for p in group["params"]} == {id(p) for p in fresh}
    model.backbone.requires_grad_(False)
    assert [group["name"] for group in model.parameter_groups(0.1, 0.1)] == ["graph", "messages"]
    torch.optim.SGD(groups, lr=0.1)
