"""Names of devices."""

import pytest
import torch

from gwsss_fast.errors import GwsssError
from gwsss_fast.training.precision import choose_device


def test_a_device_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("gpu", "", "cuda:x"):
        with pytest.raises(GwsssError, match=f"device .*{name}"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(GwsssError, match="device cuda:2: PyTorch sees 2 GPUs, numbered from 0"):
        choose_device("cuda:2")
