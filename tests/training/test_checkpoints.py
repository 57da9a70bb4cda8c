"""Checkpoints: safe to read, whole or not there, and refused with reason when they do not fit."""

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gwsss_fast.errors import GwsssError
from gwsss_fast.training.checkpoints import (
    check_classes,
    check_finite,
    load_checkpoint,
    random_states,
    restore_model,
    restore_random_states,
    save_checkpoint,
)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_states_come_back_through_a_file_read_with_weights_only(tmp_path: Path) -> None:
    draws()
    random.gauss(0, 1)
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {}, "random": random_states()})
    expected = [draws(), draws()]
    restore_random_states(torch.load(path, weights_only=True)["random"])
    assert [draws(), draws()] == expected


def test_a_failing_write_leaves_the_old_checkpoint_and_says_what_the_system_said(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the system refuses in the middle of PyTorch's writing."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {}, "step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(GwsssError) as caught:
            save_checkpoint(path, {"model": {"weight": torch.zeros(100_000)}, "step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == f"cannot write {path}: File too large; free space or choose another folder"
    assert load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"model": Evil()}, path)
    with pytest.raises(GwsssError, match=r"evil\.pt is damaged or not a checkpoint"):
        load_checkpoint(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "damaged"), (b"PK\x03\x04 half", "damaged"), (b"a text\nof lines\n", "damaged"), (None, "does not exist")],
)
def test_a_file_that_is_none_is_named(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GwsssError, match=words):
        load_checkpoint(path)


def test_a_compressed_part_which_could_unfold_to_anything_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "whole.pt", {"model": {"weight": torch.zeros(1_000_000)}})
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in whole.namelist():
            other.writestr(name, whole.read(name))
    assert packed.stat().st_size < 20_000
    with pytest.raises(GwsssError, match="damaged or not a checkpoint"):
        load_checkpoint(packed)


def test_other_contents_and_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"weights": {}}, path)
    with pytest.raises(GwsssError, match="no `model`"):
        load_checkpoint(path)
    torch.save({"model": {}, "format": 99}, path)
    with pytest.raises(GwsssError, match="format 99"):
        load_checkpoint(path)


def test_a_model_of_another_shape_is_refused_untouched() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(GwsssError, match=r"weight has shape \(4, 3\), the model needs \(2, 3\)"):
        restore_model(model, {"model": nn.Linear(3, 4).state_dict()}, "x.pt")
    with pytest.raises(GwsssError, match="lacks bias"):
        restore_model(model, {"model": nn.Linear(3, 2, bias=False).state_dict()}, "x.pt")
    with pytest.raises(GwsssError, match="holds extra"):
        restore_model(model, {"model": {**nn.Linear(3, 2).state_dict(), "extra": torch.zeros(1)}}, "x.pt")
    assert torch.equal(model.weight, before)


def test_other_classes_are_refused() -> None:
    check_classes({"classes": ["cat", "dog"]}, ("cat", "dog"), "x.pt")
    with pytest.raises(GwsssError, match="trained for 2 classes"):
        check_classes({"classes": ["cat", "dog"]}, ("cat", "dog", "cow"), "x.pt")
    with pytest.raises(GwsssError, match="class 2 is dog, in the data set it is cow"):
        check_classes({"classes": ["cat", "dog"]}, ("cat", "cow"), "x.pt")


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = nn.Linear(2, 1)
    check_finite(model, "classifier, step 3")
    with torch.no_grad():
        model.bias[0] = float("nan")
    with pytest.raises(GwsssError, match="classifier, step 3: bias is not finite"):
        check_finite(model, "classifier, step 3")
