"""Networks prepared for a CPU are the networks they were made from, whatever layers these have."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gwsss_fast import DeepLabV2
from gwsss_fast.inference import fast_cpu
from gwsss_fast.inference.fast_cpu import FastSegmenter, PackedASPP, PackedConvolution, prepare
from gwsss_fast.models.base import freeze_batch_norm
from gwsss_fast.models.deeplab import MultiScale
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
    return with_statistics(DeepLabV2(5, body, rates=(1, 2)))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("size", [(33, 41), (64, 64), (1, 1)])
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


class Odd(nn.Module):
    """What must not be fused as if it were the plain thing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.d = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.e = nn.Conv2d(3, 3, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shared = self.a(x)
        x = self.norm(shared) + shared  # the convolution's own value is used too
        y = self.b(x)
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
