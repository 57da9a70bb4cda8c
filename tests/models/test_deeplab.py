import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss
from torch import nn
from torch.nn import functional as F

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.backbones import build_backbone
from gwsss_fast.models.deeplab import (
    ASPP,
    DeepLabV2,
    LargeFovASPP,
    MultiScale,
    has_statistics,
    predict_probabilities,
    segmentation_loss,
)
from gwsss_fast.models.resnet101 import ResNet101


@pytest.mark.parametrize(("body", "size"), [("resnet101", (41, 41)), ("vgg16", (40, 40)), ("tiny", (41, 41))])
def test_sizes(body, size):
    with torch.device("meta"):
        model = DeepLabV2(21, body=body)
        assert model(torch.empty(2, 3, 321, 321)).shape == (2, 21, *size)
    assert isinstance(model.aspp, LargeFovASPP if body == "vgg16" else ASPP)


def test_head_is_the_sum_of_its_branches():
    torch.manual_seed(0)
    model = DeepLabV2(4, body="tiny", rates=(1, 3)).double().eval()
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    features = F.pad(model.body(images), (3, 3, 3, 3))
    expected = torch.zeros(2, 4, 5, 7, dtype=torch.float64)
    for rate, branch in zip((1, 3), model.aspp.branches, strict=True):
        expected += branch.bias.view(1, -1, 1, 1)
        for row in range(3):
            for column in range(3):
                top, left = 3 + (row - 1) * rate, 3 + (column - 1) * rate
                window = features[:, :, top : top + 5, left : left + 7]
                expected += torch.einsum("oc,bchw->bohw", branch.weight[:, :, row, column], window)
    torch.testing.assert_close(model(images), expected)


def test_vgg_head_is_the_sum_of_its_branches():
    torch.manual_seed(0)
    head = LargeFovASPP(8, 3, (1, 2)).double().eval()
    features = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    pooled = F.pad(features, (1, 1, 1, 1), value=float("-inf")).unfold(2, 3, 1).unfold(3, 3, 1).amax((-2, -1))
    expected = torch.zeros(1, 3, 5, 6, dtype=torch.float64)
    for rate, branch in zip((1, 2), head.branches, strict=True):
        x = F.conv2d(pooled, branch.fc6.weight, branch.fc6.bias, padding=rate, dilation=rate).clamp_min(0)
        for layer in (branch.fc7, branch.fc8):
            x = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias.view(1, -1, 1, 1)
            x = x.clamp_min(0) if layer is branch.fc7 else x
        expected += x
    torch.testing.assert_close(head(features), expected)
    assert branch.fc6.weight.shape == (1024, 8, 3, 3)
    assert branch.fc7.weight.shape == (1024, 1024, 1, 1)
    assert [layer.p for layer in head.modules() if isinstance(layer, nn.Dropout)] == [0.5] * 4


def test_initialisation():
    torch.manual_seed(0)
    for head, last in ((ASPP(64, 5), "branches.0"), (LargeFovASPP(16, 5), "branches.0.fc8")):
        assert float(head.get_submodule(last).weight.detach().std()) == pytest.approx(0.01, rel=0.1)
        assert all(bool((p == 0).all()) for name, p in head.named_parameters() if name.endswith("bias"))
        assert len(head.branches) == 4


def batch_normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU())


def test_parameter_groups():
    model = DeepLabV2(3, body="tiny", rates=(1, 2))
    groups = {group["name"]: group for group in model.parameter_groups(2.5e-4, 5e-4)}
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert rates == {"body": (2.5e-4, 5e-4), "head": (2.5e-3, 5e-4), "head biases": (5e-3, 0.0)}
    assert [p.shape for p in groups["head biases"]["params"]] == [(3,), (3,)]
    assert [p.shape for p in groups["head"]["params"]] == [(3, 128, 3, 3)] * 2
    assert len(groups["body"]["params"]) == len(list(model.body.parameters()))
    frozen = DeepLabV2(3, body=batch_normed(), frozen_batch_norm=True)
    assert len(frozen.parameter_groups(1, 0)[0]["params"]) == 1  # the convolution


def test_batch_norm_is_frozen_where_it_has_learnt():
    def trained() -> nn.Sequential:
        body = batch_normed()
        body(torch.randn(2, 3, 16, 16))
        return body

    def learns(body: nn.Module, frozen: bool | None = None) -> bool:
        model = DeepLabV2(3, body=body, frozen_batch_norm=frozen).train()
        return next(layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)).training

    assert not has_statistics(batch_normed())
    assert has_statistics(trained())
    assert learns(batch_normed())
    assert not learns(trained())
    assert not learns(batch_normed(), frozen=True)
    assert learns(trained(), frozen=False)


def test_any_module_can_be_the_body():
    model = DeepLabV2(3, body=nn.Conv2d(3, 6, 4, stride=4))
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 3, 8, 12)
    with torch.device("meta"):
        assert isinstance(DeepLabV2(3, body=build_backbone("vgg16", "none")).aspp, LargeFovASPP)
        assert isinstance(DeepLabV2(3, body=ResNet101()).aspp, ASPP)


def test_bad_arguments():
    with pytest.raises(GwsssError, match="num_classes is 1"):
        DeepLabV2(1, body="tiny")
    with pytest.raises(GwsssError, match="rates"):
        DeepLabV2(2, body="tiny", rates=())
    with pytest.raises(GwsssError, match="unknown backbone"):
        DeepLabV2(2, body="resnet7")


def test_checkpoint_round_trip(tmp_path):
    torch.manual_seed(0)
    model = DeepLabV2(3, body="tiny")
    model(torch.randn(2, 3, 32, 32))
    torch.save({"model": model.state_dict()}, tmp_path / "last.pt")
    other = DeepLabV2(3, body="tiny", weights=str(tmp_path / "last.pt")).eval()
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(other(images), model.eval()(images))
    fewer = DeepLabV2(2, body="tiny", weights=str(tmp_path / "last.pt"))
    assert "without aspp.branches.0.weight" in fewer.initialised_from


def test_loss_is_the_mean_over_valid_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    target = torch.randint(0, 4, (2, 5, 6)).to(torch.uint8)
    target[:, 1:3] = 255
    loss = segmentation_loss(logits, target)
    valid = target.flatten() != 255
    probabilities = logits.detach().double().softmax(1).permute(0, 2, 3, 1).reshape(-1, 4)[valid]
    expected = log_loss(target.flatten()[valid], probabilities, labels=range(4))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert not logits.grad[:, :, 1:3].any()


def test_loss_reduces_the_target_as_pillow_does():
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 41, 40)
    target = torch.randint(0, 3, (1, 321, 320))
    image = Image.fromarray(target[0].numpy().astype(np.uint8)).resize((40, 41), Image.Resampling.NEAREST)
    reduced = torch.from_numpy(np.array(image))[None].long()
    torch.testing.assert_close(segmentation_loss(logits, target), F.cross_entropy(logits, reduced))
    large = F.interpolate(logits, size=(321, 320), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmentation_loss(logits, target, "logits"), F.cross_entropy(large, target))


@pytest.mark.parametrize("resize", ["target", "logits"])
def test_loss_without_a_valid_pixel_is_zero(resize):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    target = torch.full((2, 32, 32), 255)
    for given in (logits, [logits, logits[:, :, :2]]):
        logits.grad = None
        loss = segmentation_loss(given, target, resize)
        assert loss.item() == 0
        loss.backward()
        assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_loss_in_half_precision_is_computed_in_single():
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.float16)  # 90,000 ln 2 is near the end of float16's range
    logits[:, 0] = 4
    loss = segmentation_loss(logits, torch.ones(1, 300, 300))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(np.log1p(np.exp(4)), rel=1e-5)


def test_loss_refuses_other_shapes():
    with pytest.raises(GwsssError, match=r"pass \(B, classes, h, w\)"):
        segmentation_loss(torch.zeros(1, 2, 4, 4), torch.zeros(2, 4, 4))


def test_multi_scale():
    torch.manual_seed(0)
    base = DeepLabV2(3, body="tiny", rates=(1,)).eval()
    model = MultiScale(base)
    images = torch.randn(1, 3, 64, 48)
    logits = model.train()(images)
    assert [tuple(x.shape[-2:]) for x in logits] == [(8, 6), (6, 5), (4, 3), (8, 6)]
    losses = [segmentation_loss(x, torch.ones(1, 64, 48)) for x in logits]
    torch.testing.assert_close(segmentation_loss(logits, torch.ones(1, 64, 48)), sum(losses))
    model.eval()
    parts = []
    for size in ((64, 48), (48, 36), (32, 24)):
        small = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        parts.append(F.interpolate(base(small), size=(8, 6), mode="bilinear", align_corners=False))
    torch.testing.assert_close(model(images), torch.stack(parts).amax(0))
    assert model.parameter_groups(1.0, 0.1)[2]["lr"] == 20


class Ramp(nn.Module):
    """Logits that depend on the column and on the input: not the same mirrored."""

    def forward(self, images):
        x = F.avg_pool2d(images, 4)
        column = torch.arange(x.shape[-1], dtype=x.dtype)
        return torch.stack([x[:, 0] + column, x[:, 1] * column, x[:, 2]], 1)


def test_predicted_probabilities():
    torch.manual_seed(0)
    image = torch.randn(3, 24, 32)
    model = Ramp().train()

    def once(images):
        logits = F.interpolate(model(images), size=(24, 32), mode="bilinear", align_corners=False)
        return logits.softmax(1)

    torch.testing.assert_close(predict_probabilities(model, image), once(image[None])[0])
    mirrored = once(image[None].flip(-1)).flip(-1)
    expected = (once(image[None]) + mirrored) / 2
    torch.testing.assert_close(predict_probabilities(model, image[None], flip=True), expected)
    half = F.interpolate(image[None], size=(12, 16), mode="bilinear", align_corners=False)
    both = predict_probabilities(model, image, scales=(1, 0.5))
    torch.testing.assert_close(both, (once(image[None])[0] + once(half)[0]) / 2)
    torch.testing.assert_close(both.sum(0), torch.ones(24, 32))
    assert model.training
    assert not both.requires_grad


def test_predicting_with_bad_arguments():
    for image, scales in ((torch.zeros(1, 8, 8), (1,)), (torch.zeros(3, 8, 8), ()), (torch.zeros(3, 8, 8), (0,))):
        with pytest.raises(GwsssError):
            predict_probabilities(Ramp(), image, scales)
