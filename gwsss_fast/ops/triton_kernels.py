"""Registers the Triton backend of an operation. Launchers are imported on first use: Triton may be absent."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from gwsss_fast.launch import launcher
from gwsss_fast.ops import dispatch

MOST_PROGRAMS = 65535  # of the second axis of a grid


def refuse_many(programs: int) -> str | None:
    """Why kernels with so many programs on the second axis of their grid cannot run, or None."""
    if programs > MOST_PROGRAMS:
        return f"it has {programs} nodes or edges; its kernels take at most {MOST_PROGRAMS} at a time"
    return None


def register(operation: str, refuse: Callable[..., str | None] = lambda *tensors: None) -> None:
    """Register `launch/<operation>.py`'s functions `<operation>` and `<operation>_backward` as backend "triton".

    refuse: the operation's own reasons against certain inputs, asked after those that hold for every kernel.
    """

    def call(name: str) -> Callable[..., Any]:
        return lambda *arguments: getattr(import_module(f"gwsss_fast.launch.{operation}"), name)(*arguments)

    def reasons(*tensors: Tensor) -> str | None:
        return launcher.refuse(*tensors) or refuse(*tensors)

    dispatch.register(
        operation,
        "triton",
        dispatch.Kernel(
            call(operation),
            call(f"{operation}_backward"),
            refuse=reasons,
            missing=launcher.missing,
            only_on_request=launcher.only_on_request,
        ),
    )
