"""SGD from three makers."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from gwsss_fast.errors import GwsssError
from gwsss_fast.training.optimizers import make_sgd
from tests.training.test_loop import fit, make_trainer

OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}


def weights(kind: str) -> torch.Tensor:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    optimizer = make_sgd(kind, [{"params": [*layer.parameters()]}], torch.device("cpu"), **OPTIONS)
    for seed in range(4):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    return layer.weight.detach()


def test_the_fused_kernel_steps_like_the_plain_one() -> None:
    torch.testing.assert_close(weights("fused"), weights("torch"), rtol=1e-6, atol=1e-7)
    assert torch.equal(weights("auto"), weights("torch"))


def test_apex_only_where_nvidias_build_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another project has the package's name on the index; it lacks FusedSGD."""
    gpu, groups = torch.device("cuda"), [{"params": [nn.Parameter(torch.zeros(1))]}]
    for name in ("apex", "apex.optimizers", "amp_C"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(GwsssError, match="NVIDIA's own build of apex"):
        make_sgd("apex", groups, gpu, **OPTIONS)
    made = []
    monkeypatch.setattr(
        sys.modules["apex.optimizers"], "FusedSGD", lambda *a, **o: made.append((a, o)) or "apex", raising=False
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "amp_C", None)  # a build of Python files alone, whose FusedSGD cannot run
        assert isinstance(make_sgd("auto", groups, torch.device("cuda"), **OPTIONS), torch.optim.SGD)
    assert make_sgd("auto", groups, gpu, **OPTIONS) == "apex"
    assert made == [((groups,), OPTIONS)]
    with pytest.raises(GwsssError, match="needs a GPU"):
        make_sgd("apex", groups, torch.device("cpu"), **OPTIONS)


class FusedSGD(torch.optim.SGD):
    """With the signature of apex's where it differs from PyTorch's."""

    def zero_grad(self) -> None:  # type: ignore[override]
        super().zero_grad()


def test_a_training_asks_of_an_optimiser_what_apex_has(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, total=2)
    trainer.optimizer.__class__ = FusedSGD
    fit(trainer)
