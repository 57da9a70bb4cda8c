"""`doctor` says of the Triton backend whether it runs, and if not, why and what to do."""

import builtins
from typing import Any

import pytest
import torch
from rich.console import Console

from gwsss_fast import doctor


def told() -> str:
    """The table of backends as text."""
    console = Console(width=160)
    with console.capture() as captured:
        console.print(doctor.backends_table())
    return captured.get()


def triton_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if "│ triton" in line]


def test_interpreted_kernels_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert any("usable" in line for line in triton_lines(told()))


def test_a_machine_without_a_gpu_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lines = triton_lines(told())
    assert any("no CUDA GPU is visible to PyTorch" in line for line in lines)
    assert all("no CUDA GPU" in line or "no kernel for this backend" in line for line in lines)


def test_a_missing_triton_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "triton":
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert any("pip install triton" in line for line in triton_lines(told()))
