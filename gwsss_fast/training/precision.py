"""Device, threads and arithmetic of a run."""

from __future__ import annotations

import re

import torch

from gwsss_fast import distributed
from gwsss_fast.errors import GwsssError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA when a GPU is usable; of several processes each takes the GPU of its number.

    Raises GwsssError for a name that is none, when `cuda` is asked for in vain, and when a machine has fewer GPUs than
    processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise GwsssError(f"device {name!r} is not auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise GwsssError("device cuda: PyTorch sees no GPU here; use --device cpu, or see `gwsss-fast doctor`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GwsssError(f"device {name}: PyTorch sees {torch.cuda.device_count()} GPUs, numbered from 0")
    if device.type == "cuda" and distributed.size() > 1:
        own, there = distributed.local_rank(), torch.cuda.device_count()
        if own >= there:
            raise GwsssError(
                f"process {own} of this machine has no GPU: there are {there}; use torchrun --nproc-per-node {there}"
            )
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Raises GwsssError for fp16 without a GPU: its gradients underflow and nothing is won."""
    if precision == "fp16" and device.type != "cuda":
        raise GwsssError("precision fp16 needs a GPU; use bf16 or fp32 on the CPU")


def set_threads(threads: int) -> None:
    """Use so many CPU threads; 0 leaves PyTorch's choice, all cores."""
    if threads:
        torch.set_num_threads(threads)
