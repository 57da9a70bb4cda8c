import hashlib
import io
import pickle
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import _api

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.backbones import build_backbone
from gwsss_fast.models.deeplab import DeepLabV2
from gwsss_fast.models.group_classifier import GroupClassifier
from gwsss_fast.models.resnet101 import ResNet101
from gwsss_fast.models.tiny import Tiny
from gwsss_fast.models.weights import load_weights

BLOCKS = (1, 2, 2, 2)
UNITS = ("reduce", "conv3x3", "increase")


def same(model, state):
    return all(torch.equal(x, state[key]) for key, x in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {f"module.{key}": x for key, x in state.items()},
        lambda state: {"model": {f"module.backbone.{key}": x for key, x in state.items()}},
        lambda state: {key: x for key, x in state.items() if not key.endswith("num_batches_tracked")},
    ],
)
def test_containers_and_prefixes(tmp_path, wrap):
    state = Tiny().state_dict()
    path = tmp_path / "w.pth"
    torch.save(wrap(state), path)
    model = Tiny()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert load_weights(model, path) == f"{path} (sha256 {digest})"
    assert same(model, state)


class Readout(nn.Module):
    in_channels = 128

    def __init__(self):
        super().__init__()
        self.read = nn.Linear(128, 3)


def test_backbone_and_classifier_exchange_weights(tmp_path):
    classifier = GroupClassifier(Tiny(), Readout())
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    backbone = build_backbone("tiny", str(tmp_path / "classifier.pt"))
    assert backbone.initialised_from.endswith(", without gnn.read.weight, gnn.read.bias")
    assert same(backbone, classifier.backbone.state_dict())

    torch.save(Tiny().state_dict(), tmp_path / "tiny.pt")
    before = classifier.gnn.read.weight.clone()
    load_weights(classifier, tmp_path / "tiny.pt")
    assert same(classifier.backbone, torch.load(tmp_path / "tiny.pt", weights_only=True))
    assert torch.equal(classifier.gnn.read.weight, before)


def test_none_default_and_nothing_to_download():
    assert load_weights(Tiny(), "none") == "random"
    assert load_weights(Tiny(), "default") == "random"
    with torch.device("meta"), pytest.raises(GwsssError, match=r"ResNet38 has no weights to download; .*model.weights"):
        build_backbone("resnet38")


def test_offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)
    with pytest.raises(
        GwsssError, match=r"VGG16_Weights.IMAGENET1K_V1 \(URLError\); pass --model.weights PATH, or none"
    ):
        load_weights(build_backbone("vgg16", "none"), "default")


def test_torchvision_weights(monkeypatch):
    model = build_backbone("vgg16", "none")
    state = {key: torch.full((1,), 0.5).expand(x.shape) for key, x in model.state_dict().items()}
    state["classifier.0.weight"] = torch.zeros(4096, 25088)[:1]

    def download(*args, **kwargs):
        assert kwargs["weights_only"]
        assert kwargs["check_hash"]
        return state

    monkeypatch.setattr(_api, "load_state_dict_from_url", download)
    assert load_weights(model, "default") == "torchvision VGG16_Weights.IMAGENET1K_V1"
    assert all(bool((x == 0.5).all()) for x in model.parameters())


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def hostile_contents():
    unsafe = io.BytesIO()
    torch.save({"state_dict": {"x": torch.zeros(1)}, "config": Harmful()}, unsafe)
    good = io.BytesIO()
    torch.save(Tiny().state_dict(), good)
    return {
        "empty": b"",
        "text": b"not a weight file\n",
        "web page": b"<!DOCTYPE html><html></html>",
        "unsafe": unsafe.getvalue(),
        "plain pickle": pickle.dumps(Harmful(), protocol=2),
        "cut short": good.getvalue()[: len(good.getvalue()) // 2],
    }


@pytest.mark.parametrize("kind", ["empty", "text", "web page", "unsafe", "plain pickle", "cut short"])
def test_unreadable_files(tmp_path, kind, capsys):
    path = tmp_path / "bad.pth"
    path.write_bytes(hostile_contents()[kind])
    with pytest.raises(GwsssError, match=r"cannot read weight file .*bad.pth"):
        load_weights(Tiny(), path)
    assert "this must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"epoch": 3}, {}])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(GwsssError, match=r"x.pth holds no state dict"):
        load_weights(Tiny(), tmp_path / "x.pth")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "gone.pth", tmp_path):
        with pytest.raises(GwsssError, match="does not exist"):
            load_weights(Tiny(), path)


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "x.pth"
    model = Tiny()
    before = {key: x.clone() for key, x in model.state_dict().items()}

    torch.save({"stem.weight": torch.zeros(3)}, path)
    with pytest.raises(
        GwsssError, match=r"x.pth fits nothing: its first key is stem.weight, the model's is features.0"
    ):
        load_weights(model, path)

    state = Tiny().state_dict()
    state["features.3.weight"] = torch.zeros(64, 32, 5, 5)
    torch.save(state, path)
    with pytest.raises(GwsssError, match=r"x.pth: features.3.weight has shape \(64, 32, 5, 5\), .* \(64, 32, 3, 3\)"):
        load_weights(model, path)

    del state["features.3.weight"]
    torch.save(state, path)
    with pytest.raises(GwsssError, match=r"x.pth lacks the key features.3.weight"):
        load_weights(model, path)
    assert same(model, before)  # nothing was copied on the way


def deeplab_pytorch_state(classes, blocks=BLOCKS):
    """A random state dict in deeplab-pytorch's naming, with values that keep activations of moderate size."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def unit(name, before, after, kernel):
        scale = (2 / (before * kernel * kernel)) ** 0.5
        shape = (after, before, kernel, kernel)
        state[f"{name}.conv.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"{name}.bn.weight"] = torch.rand(after, generator=generator) + 0.5
        state[f"{name}.bn.bias"] = torch.randn(after, generator=generator) * 0.1
        state[f"{name}.bn.running_mean"] = torch.randn(after, generator=generator) * 0.1
        state[f"{name}.bn.running_var"] = torch.rand(after, generator=generator) + 0.5

    unit("layer1.conv1", 3, 64, 7)
    state["layer1.conv1.conv.weight"] /= 64  # inputs are grey levels
    before = 64
    for stage, count in enumerate(blocks):
        after = 256 * 2**stage
        for index in range(count):
            name = f"layer{stage + 2}.block{index + 1}"
            sizes = (before, after // 4, after // 4, after)
            for number, (part, kernel) in enumerate(zip(UNITS, (1, 3, 1), strict=True)):
                unit(f"{name}.{part}", sizes[number], sizes[number + 1], kernel)
            if index == 0:
                unit(f"{name}.shortcut", before, after, 1)
            before = after
    state["fc.weight"] = torch.zeros(classes, 2048, 1, 1)
    state["fc.bias"] = torch.zeros(classes)
    return state


def caffe_features(state, image, blocks=BLOCKS):
    """The published network on 0..255 RGB: BGR minus the mean, strides in the 1x1 convolutions, every block dilated."""
    mean = image.new_tensor([122.675, 116.669, 104.008]).view(3, 1, 1)
    # What normalised zeros are in this scale; the true network pads zeros instead, less than two grey levels off.
    rim = (255 * image.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1) - mean).flip(0)
    x = (image - mean).flip(1)
    framed = rim.expand(x.shape[0], 3, x.shape[2] + 6, x.shape[3] + 6).clone()
    framed[:, :, 3:-3, 3:-3] = x

    def unit(x, name, stride=1, rate=1, padding=None):
        weight = state[f"{name}.conv.weight"]
        padding = rate * (weight.shape[-1] // 2) if padding is None else padding
        x = F.conv2d(x, weight, stride=stride, padding=padding, dilation=rate)
        statistics = [state[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *statistics, eps=1e-5)

    x = F.max_pool2d(F.relu(unit(framed, "layer1.conv1", stride=2, padding=0)), 3, 2, 1, ceil_mode=True)
    for stage, (count, stride, rate) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
        for index in range(count):
            name = f"layer{stage + 2}.block{index + 1}"
            step = stride if index == 0 else 1
            y = F.relu(unit(x, f"{name}.reduce", stride=step))
            y = unit(F.relu(unit(y, f"{name}.conv3x3", rate=rate)), f"{name}.increase")
            x = F.relu(y + (unit(x, f"{name}.shortcut", stride=step) if index == 0 else x))
    return x


def test_published_coco_weights(tmp_path):
    state = deeplab_pytorch_state(91)
    path = tmp_path / "deeplabv1_resnet101-coco.pth"
    torch.save(state, path)
    model = DeepLabV2(7, body=ResNet101(BLOCKS), weights=str(path)).double().eval()
    assert model.initialised_from.startswith(f"{path} (sha256 ")
    assert model.initialised_from.endswith(", without fc.weight, fc.bias")
    assert not model.train().body.bn1.training  # learnt statistics are frozen
    image = torch.randint(0, 256, (1, 3, 62, 45)).double()
    expected = caffe_features({key: x.double() for key, x in state.items()}, image)
    std, mean = (image.new_tensor(x).view(3, 1, 1) for x in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
    features = model.body((image / 255 - mean) / std)
    assert features.shape == expected.shape == (1, 2048, 8, 6)
    assert expected.std() > 0.1
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)  # weights were rounded to float32

    # A checkpoint brings the layout along, into a network that was built for torchvision's.
    other = DeepLabV2(7, body=ResNet101(BLOCKS)).double().eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.body((image / 255 - mean) / std), features)
    plain = ResNet101(BLOCKS).state_dict()
    other.body.load_state_dict({key: x for key, x in plain.items() if key != "caffe_layout"})
    assert other.body.layer2[0].conv2.stride == (2, 2)


def test_published_full_weights_and_another_number_of_classes(tmp_path):
    state = {f"base.{key}": x for key, x in deeplab_pytorch_state(1, (1, 1, 1, 1)).items() if "fc" not in key}
    for branch in range(4):
        state[f"base.aspp.c{branch}.weight"] = torch.randn(5, 2048, 3, 3)
        state[f"base.aspp.c{branch}.bias"] = torch.randn(5)
    path = tmp_path / "voc.pth"
    torch.save(state, path)
    full = DeepLabV2(5, body=ResNet101((1, 1, 1, 1)), weights=str(path))
    assert full.initialised_from.endswith(")")
    for branch in range(4):
        assert torch.equal(full.aspp.branches[branch].weight, state[f"base.aspp.c{branch}.weight"])
    other = DeepLabV2(4, body=ResNet101((1, 1, 1, 1)), weights=str(path))
    assert "without aspp.branches.0.weight" in other.initialised_from
    assert torch.equal(other.body.layer4[0].conv3.weight, full.body.layer4[0].conv3.weight)
    assert float(other.aspp.branches[0].weight.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_hostile_stem(tmp_path):
    torch.save({"layer1.conv1.conv.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(GwsssError, match=r"x.pth"):
        DeepLabV2(7, body=ResNet101((1, 1, 1, 1)), weights=str(tmp_path / "x.pth"))
