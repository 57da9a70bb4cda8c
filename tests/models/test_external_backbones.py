import sys

import pytest
import torch
from torch import nn

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.backbones import build_backbone
from gwsss_fast.models.external import probe

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.MaxPool2d(2))
    def forward(self, x):
        return self.layers(x)

class Fork(Net):
    def forward(self, x):
        return {"out": self.layers(x)}

class Pooled(Net):
    def forward(self, x):
        return self.layers(x).mean((2, 3))

class Failing(Net):
    def forward(self, x):
        raise ZeroDivisionError("not for this size")

def build():
    return Net()

def broken():
    raise OSError("no weights here")

def not_a_module():
    return 3

number = 7
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_backbones.py"
    path.write_text(SOURCE)
    return path


def test_function_of_a_file(file):
    name = f"{file}:build"
    backbone = build_backbone(name)
    assert (backbone.out_channels, backbone.stride) == (5, 4)
    assert backbone.initialised_from == f"as built by {name}"
    assert backbone.body.layers[1].num_batches_tracked == 0  # the dry run left no trace
    assert all(layer.training for layer in backbone.modules())
    assert backbone(torch.randn(2, 3, 20, 24)).shape == (2, 5, 5, 6)


def test_function_of_a_module(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    assert build_backbone("my_backbones:build", "none").out_channels == 5
    assert "my_backbones" in sys.modules
    del sys.modules["my_backbones"]


def test_weights_go_into_the_built_module(file, tmp_path):
    torch.manual_seed(1)
    state = build_backbone(f"{file}:build").body.state_dict()
    torch.save(state, tmp_path / "own.pth")
    backbone = build_backbone(f"{file}:build", str(tmp_path / "own.pth"))
    assert backbone.initialised_from.startswith(f"{tmp_path / 'own.pth'} (sha256 ")
    assert all(torch.equal(x, state[key]) for key, x in backbone.body.state_dict().items())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing", "has no function missing"),
        ("number", "has no function number"),
        ("broken", "cannot be built: OSError: no weights here"),
        ("not_a_module", "returns int; it must return a torch.nn.Module"),
        ("Fork", "returns dict; it must return one feature map"),
        ("Pooled", r"returns a tensor of shape \(1, 5\); it must return one feature map"),
        ("Failing", "fails on an image .* ZeroDivisionError: not for this size"),
    ],
)
def test_function_that_is_no_backbone(file, function, message):
    with pytest.raises(GwsssError, match=message):
        build_backbone(f"{file}:{function}")


def test_import_that_fails(tmp_path):
    with pytest.raises(GwsssError, match=r"nowhere.py does not exist"):
        build_backbone(f"{tmp_path}/nowhere.py:build")
    with pytest.raises(GwsssError, match=r"importing no_such_module_here fails: ModuleNotFoundError"):
        build_backbone("no_such_module_here:build")
    (tmp_path / "half.py").write_text("def build(:\n")
    before = set(sys.modules)
    with pytest.raises(GwsssError, match=r"importing .*half.py fails: SyntaxError"):
        build_backbone(f"{tmp_path}/half.py:build")
    assert not {name for name in set(sys.modules) - before if name.startswith("gwsss_fast_backbone_")}


def test_probe_rounds_the_stride():
    assert probe(nn.Conv2d(3, 4, 8, stride=8), "exact") == (4, 8)
    assert probe(nn.Conv2d(3, 4, 11, stride=8), "without padding") == (4, 8)  # 27 positions


def test_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state, tmp_path / "timm.pth")
    backbone = build_backbone("timm:test_resnet", str(tmp_path / "timm.pth"))
    assert backbone.stride == 8
    assert backbone.initialised_from.startswith(f"{tmp_path / 'timm.pth'} (sha256 ")
    assert backbone.eval()(torch.randn(1, 3, 64, 72)).shape == (1, backbone.out_channels, 8, 9)
    ours = backbone.body.state_dict()
    assert ours
    assert all(torch.equal(x, state[key]) for key, x in ours.items())
    assert build_backbone("timm:test_vit", "none").stride == 16
    assert build_backbone("timm:test_resnet@16", "none").stride == 16
    with pytest.raises(GwsssError, match=r"timm:test_vit@8 has stride 16; .* stride 8$"):
        build_backbone("timm:test_vit@8", "none")
    with pytest.raises(GwsssError, match="the stride after @ is 8 or 16"):
        build_backbone("timm:test_resnet@32", "none")
    with pytest.raises(GwsssError, match="timm has no model no_such_net"):
        build_backbone("timm:no_such_net", "none")
    with pytest.raises(GwsssError, match=r"gone.pth does not exist"):
        build_backbone("timm:test_resnet", str(tmp_path / "gone.pth"))


def test_timm_weights_that_do_not_fit(tmp_path):
    pytest.importorskip("timm")
    torch.save({"stem.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(GwsssError, match=r"other.pth fits nothing: its first key is stem.weight"):
        build_backbone("timm:test_resnet", str(tmp_path / "other.pth"))


def test_timm_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(GwsssError, match=r"needs timm; install it"):
        build_backbone("timm:resnet18", "none")
