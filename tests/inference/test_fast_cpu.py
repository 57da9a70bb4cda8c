"""Networks prepared for a CPU are the networks they were made from, whatever layers these have."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.segmenter_on_cpu import labels, photographs
from gwsss_fast import DeepLabV2
from gwsss_fast.inference import fast_cpu
from gwsss_fast.inference.fast_cpu import CheckedSegmenter, FastSegmenter, PackedASPP, PackedConvolution, prepare
from gwsss_fast.models.base import freeze_batch_norm
from gwsss_fast.models.deeplab import MultiScale, segmentation_loss
from gwsss_fast.models.resnet101 import ResNet101

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norm that does something: random statistics and factors."""
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1)
            nn.init.normal_(layer.bias, std=0.1)
    return model.eval()


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    body = ResNet101((1, 2, 1, 1))
    freeze_batch_norm(body)
    return with_statistics(DeepLabV2(5, body, rates=(1, 4)))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("size", [(33, 41), (17, 20), (1, 1)])
def test_a_network_of_residual_blocks_is_wholly_fused(size: tuple[int, int]) -> None:
    """Convolutions are all that is left of it besides pooling and the first change of memory format."""
    model, images = small_resnet(), torch.randn(2, 3, *size)
    fast = FastSegmenter(model, "fp32")
    assert fast.prepared
    kinds = {type(layer) for layer in fast.model.modules() if not [*layer.children()]}
    assert kinds == {PackedConvolution, PackedASPP, nn.MaxPool2d}
    with torch.inference_mode():
        wanted = model(images)
    assert relative(fast(images), wanted) < 1e-5
    assert relative(FastSegmenter(model, "bf16")(images), wanted) < 0.03


@pytest.mark.parametrize("body", ["tiny", "vgg16"])
def test_other_bodies(body: str) -> None:
    torch.manual_seed(0)
    model, images = DeepLabV2(3, body, rates=(1, 2)).eval(), torch.randn(1, 3, 40, 33)
    fast = FastSegmenter(MultiScale(model).eval() if body == "tiny" else model, "fp32")
    assert fast.prepared
    with torch.inference_mode():
        wanted = MultiScale(model).eval()(images) if body == "tiny" else model(images)
    assert relative(fast(images), wanted) < 1e-5


def near(logits: Tensor, gap: float) -> nn.Module:
    """A network whose two logits are `gap` apart, alternately one and the other ahead, on top of `logits`."""

    class Near(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 1, bias=False)
            nn.init.constant_(self.convolution.weight, 1 / 3)
            with torch.no_grad():
                self.convolution.weight[1] *= 1 + gap

        def forward(self, x: Tensor) -> Tensor:
            return self.convolution(x) + logits

    return Near().eval()


@pytest.mark.parametrize(("gap", "precision"), [(0.0003, "fp32"), (0.5, "bf16")])
def test_bf16_is_used_where_the_first_images_come_out_the_same(gap: float, precision: str) -> None:
    model, images = near(torch.zeros(1), gap), torch.randn(3, 3, 24, 24)
    checked = CheckedSegmenter(model)
    with torch.inference_mode():
        wanted = model(images)
    for _ in range(2):
        assert checked.precision == "fp32"
        assert relative(checked(images), wanted) < 1e-6
    assert checked.precision == precision
    assert (checked.exact is None, checked.fast is None) == (precision == "bf16", precision == "fp32")
    error = relative(checked(images), wanted)
    assert error < 1e-6 if precision == "fp32" else 1e-5 < error < 1e-2


PHOTOGRAPHS = os.environ.get("GWSSS_TEST_DATA")


@pytest.mark.parametrize("data", ["embedded", PHOTOGRAPHS or "none"])
def test_a_trained_network_keeps_its_labels(data: str, finished: tuple[Path, Path]) -> None:
    """A small network learns six images; what `auto` makes of them and of others agrees with float32."""
    if data == "none":
        pytest.skip("GWSSS_TEST_DATA does not name a folder of VOC layout")
    pairs = photographs(str(finished[0]) if data == "embedded" else data, 97)
    model = learnt(pairs[:6])
    images = [image for image, _ in pairs]
    fast, plain, auto = FastSegmenter(model, "bf16"), FastSegmenter(model, "fp32"), CheckedSegmenter(model)
    wanted = labels(plain, images)
    assert len(wanted.unique()) > 2
    assert float((labels(fast, images) == wanted).float().mean()) >= 0.995
    assert float((labels(auto, images) == wanted).float().mean()) >= 0.995
    assert auto.precision == "bf16"


def learnt(pairs: list[tuple[Tensor, Tensor]]) -> nn.Module:
    torch.manual_seed(0)
    model = DeepLabV2(21, "tiny", rates=(1, 2, 3))
    images, masks = (torch.cat(each) for each in zip(*pairs, strict=True))
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        segmentation_loss(model(images), masks).backward()
        optimiser.step()
    return model.eval()


class Activated(nn.BatchNorm2d):
    """As timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Odd(nn.Module):
    """What must not be fused as if it were the plain thing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.d = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.e = nn.Conv2d(3, 3, 3, padding="same", bias=False)
        self.norm, self.activated = nn.BatchNorm2d(3), Activated(3)
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shared = self.a(x)
        x = self.norm(shared) + shared  # the convolution's own value is used too
        y = 0.5 - self.activated(self.b(x))
        y = F.relu(y + y)  # a sum with itself
        z = self.c(y) + self.same(y)  # another name for y, which is read again below
        z = torch.add(self.d(z), z, alpha=2) + self.c(z) * y
        return F.relu(self.e(z) + 1) + self.a(z)  # layers used twice


def test_what_looks_alike_is_left_alone() -> None:
    torch.manual_seed(0)
    model, images = with_statistics(Odd()), torch.randn(1, 3, 20, 21)
    fast = FastSegmenter(model, "fp32")
    assert fast.prepared
    with torch.inference_mode():
        assert relative(fast(images), model(images)) < 1e-5


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        return y + F.relu(x, inplace=True) + self.convolution(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("kind", [Overwriting, Branching])
def test_what_cannot_be_prepared_runs_as_it_is(kind: type[nn.Module]) -> None:
    model = kind().eval()
    assert prepare(model, torch.float32) is None
    fast = FastSegmenter(model, "bf16")
    assert fast.model is model


def test_a_prepared_network_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = fast_cpu.folded
    monkeypatch.setattr(fast_cpu, "folded", lambda *given: tuple(1.1 * x for x in folded(*given)))
    fast = FastSegmenter(small_resnet(), "fp32")
    assert not fast.prepared
    assert type(fast.model) is DeepLabV2
