import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet, resnet101
from torchvision.models.vgg import vgg16

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.backbones import build_backbone, freeze_batch_norm
from gwsss_fast.models.base import evaluating
from gwsss_fast.models.resnet38 import ResNet38
from gwsss_fast.models.resnet101 import ResNet101

VGG_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@pytest.mark.parametrize(
    ("name", "channels", "odd"),
    [("vgg16", 512, (28, 14)), ("resnet101", 2048, (29, 15)), ("resnet38", 4096, (29, 15)), ("tiny", 128, (29, 15))],
)
def test_sizes(name, channels, odd):
    with torch.device("meta"):  # shapes without the work
        backbone = build_backbone(name, "none")
        assert (backbone.out_channels, backbone.stride, backbone.initialised_from) == (channels, 8, "random")
        assert backbone(torch.empty(2, 3, 224, 224)).shape == (2, channels, 28, 28)
        assert backbone(torch.empty(1, 3, 225, 119)).shape == (1, channels, *odd)


@pytest.mark.parametrize(
    ("name", "original", "dropped"), [("vgg16", vgg16, "classifier."), ("resnet101", resnet101, "fc.")]
)
def test_parameters_are_torchvisions(name, original, dropped):
    with torch.device("meta"):
        ours = {key: x.shape for key, x in build_backbone(name, "none").named_parameters()}
        theirs = {key: x.shape for key, x in original().named_parameters() if not key.startswith(dropped)}
    assert ours == theirs


def test_vgg16_equals_its_description():
    torch.manual_seed(0)
    backbone = build_backbone("vgg16", "none").double()
    convolutions = iter([layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)])
    image = torch.randn(1, 3, 33, 41, dtype=torch.float64)
    x = image
    for stage, channels in enumerate(VGG_CHANNELS, start=1):
        for width in channels:
            layer = next(convolutions)
            rate = 2 if stage == 5 else 1
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=rate, dilation=rate))
            assert x.shape[1] == width
        if stage < 4:
            x = F.max_pool2d(x, 2)
        elif stage == 4:  # 3x3 around each position: -inf beyond the rim
            padded = F.pad(x, (1, 1, 1, 1), value=float("-inf"))
            x = padded.unfold(2, 3, 1).unfold(3, 3, 1).amax((-2, -1))
    torch.testing.assert_close(backbone(image), x)


def test_resnet_holds_the_strided_network():
    """Every fourth position of the dilated network is a position of torchvision's stride-32 one."""
    torch.manual_seed(0)
    blocks = (1, 2, 2, 2)
    original = ResNet(Bottleneck, list(blocks)).double().eval()
    ours = ResNet101(blocks).double().eval()
    missing, unexpected = ours.load_state_dict(original.state_dict(), strict=False)
    assert missing == []
    assert unexpected == ["fc.weight", "fc.bias"]
    image = torch.randn(1, 3, 70, 64, dtype=torch.float64)
    original.avgpool, original.fc = nn.Identity(), nn.Identity()
    expected = original(image).view(1, 2048, 3, 2)
    torch.testing.assert_close(ours(image)[..., ::4, ::4], expected)


def published_resnet38_shapes():
    """Convolutions and batch norms of model A1 in "Wider or Deeper", with AffinityNet's names."""
    shapes = {"conv1a.weight": (64, 3, 3, 3)}
    norms = {}
    plain = [(2, 3, 64, 128, 128), (3, 3, 128, 256, 256), (4, 6, 256, 512, 512), (5, 3, 512, 512, 1024)]
    for stage, count, before, middle, after in plain:
        for index in range(count):
            block = f"b{stage}" + (f"_{index}" if index else "")
            here = before if index == 0 else after
            shapes[f"{block}.conv_branch2a.weight"] = (middle, here, 3, 3)
            shapes[f"{block}.conv_branch2b1.weight"] = (after, middle, 3, 3)
            if index == 0:
                shapes[f"{block}.conv_branch1.weight"] = (after, here, 1, 1)
            norms |= {f"{block}.bn_branch2a": here, f"{block}.bn_branch2b1": middle}
    for block, sizes in (("b6", (1024, 512, 1024, 2048)), ("b7", (2048, 1024, 2048, 4096))):
        shapes[f"{block}.conv_branch2a.weight"] = (sizes[1], sizes[0], 1, 1)
        shapes[f"{block}.conv_branch2b1.weight"] = (sizes[2], sizes[1], 3, 3)
        shapes[f"{block}.conv_branch2b2.weight"] = (sizes[3], sizes[2], 1, 1)
        shapes[f"{block}.conv_branch1.weight"] = (sizes[3], sizes[0], 1, 1)
        norms |= dict(zip((f"{block}.bn_branch{x}" for x in ("2a", "2b1", "2b2")), sizes[:3], strict=True))
    norms["bn7"] = 4096
    for name, size in norms.items():
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{statistic}"] = (size,)
        shapes[f"{name}.num_batches_tracked"] = ()
    return shapes


def test_resnet38_has_the_published_parameters():
    with torch.device("meta"):
        state = ResNet38().state_dict()
    assert {key: tuple(x.shape) for key, x in state.items()} == published_resnet38_shapes()


def test_resnet38_equals_its_description():
    torch.manual_seed(0)
    model = ResNet38(width=2).double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2.0)
    state = model.state_dict()

    def norm(x, name):
        keys = (f"{name}.{key}" for key in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *(state[key] for key in keys)))

    def conv(x, name, stride=1, rate=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=rate * (weight.shape[-1] // 2), dilation=rate)

    def block(x, name, stride=1, first=1, rate=1):
        entry = norm(x, f"{name}.bn_branch2a")
        changes = f"{name}.conv_branch1.weight" in state
        shortcut = conv(entry, f"{name}.conv_branch1", stride) if changes else x
        bottle = f"{name}.conv_branch2b2.weight" in state
        y = conv(entry, f"{name}.conv_branch2a", stride, 1 if bottle else first)
        y = conv(norm(y, f"{name}.bn_branch2b1"), f"{name}.conv_branch2b1", 1, rate)
        if bottle:
            y = conv(norm(y, f"{name}.bn_branch2b2"), f"{name}.conv_branch2b2")
        return shortcut + y

    image = torch.randn(1, 3, 37, 29, dtype=torch.float64)
    x = conv(image, "conv1a")
    for stage, count in ((2, 3), (3, 3), (4, 6)):
        x = block(x, f"b{stage}", stride=2)
        for index in range(1, count):
            x = block(x, f"b{stage}_{index}")
    x = block(x, "b5", first=1, rate=2)
    for index in (1, 2):
        x = block(x, f"b5_{index}", first=2, rate=2)
    x = norm(block(block(x, "b6", rate=4), "b7", rate=4), "bn7")
    assert x.shape == (1, 128, 5, 4)
    torch.testing.assert_close(model(image), x)


def test_tiny_sees_31_pixels():
    model = build_backbone("tiny").eval()
    assert model.initialised_from == "random"
    for i, layer in enumerate(model.features):
        if isinstance(layer, nn.GroupNorm):  # its statistics see the whole map; the convolutions see 31 pixels
            model.features[i] = nn.Identity()
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    features = model(image)
    assert features.min() == 0
    features[0, :, 8, 8].sum().backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (64 - 15, 64 + 15)


def test_tiny_gives_an_image_the_same_features_in_any_company():
    model = build_backbone("tiny").train()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


def test_frozen_batch_norm_stays_frozen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    assert freeze_batch_norm(model) == 2
    assert freeze_batch_norm(model) == 2  # twice does no harm
    keys = set(model.state_dict())
    for network in (model.train(), copy.deepcopy(model).train()):
        before = {key: x.clone() for key, x in network.state_dict().items()}
        network(torch.randn(4, 3, 32, 32)).sum().backward()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert not layer.training
                assert layer.weight.grad is None
                assert layer.bias.grad is None
        assert all(torch.equal(x, before[key]) for key, x in network.state_dict().items())
        assert network.training
        assert network[0].weight.grad is not None
    assert set(model.state_dict()) == keys


def test_evaluating_gives_every_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model[1][0].eval()
    modes = [layer.training for layer in model.modules()]
    with evaluating(model):
        assert not any(layer.training for layer in model.modules())
    assert [layer.training for layer in model.modules()] == modes


@pytest.mark.parametrize("name", ["vgg", "", ":", "tiny:", ":build"])
def test_unknown_name(name):
    with pytest.raises(GwsssError, match="unknown backbone"):
        build_backbone(name)
