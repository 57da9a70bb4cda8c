"""The dense CRF on a GPU: the same results as on the CPU, then its time against its peers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.dense_crf import HEIGHT, WIDTH, probabilities, pydensecrf2, scene
from benchmarks.gpu.checks import Check
from benchmarks.harness import records
from benchmarks.harness.peers import first_line
from benchmarks.harness.records import Record
from benchmarks.harness.restarts import BrokenGpuError, broken
from benchmarks.harness.timing import Timer, Times, interleave, peak_bytes, wall_clock
from gwsss_fast import ops
from gwsss_fast.labels.crf import PRESETS, CrfPreset
from gwsss_fast.ops import dispatch

LABELS = 21
ALLOWED = {"marginals": 1e-3, "gradient": 1e-3}
"""Largest difference from the CPU; the gradient's as a part of its largest value."""


def marginals(prob: Tensor, image: Tensor, preset: CrfPreset, backend: str) -> Tensor:
    """The operation on a backend; the choice of "auto" is called as users call it, forcing costs the host some time."""
    options = {name: value for name, value in asdict(preset).items() if name != "gt_prob"}
    chosen = dispatch.choose("dense_crf", prob, image) == backend
    with nullcontext() if chosen else ops.backend(backend):
        return ops.dense_crf(prob, image, **options)


def both(prob: Tensor, image: Tensor, preset: CrfPreset, backend: str) -> tuple[Tensor, Tensor]:
    """Marginals and a gradient, on the CPU."""
    leaf = prob.detach().clone().requires_grad_()
    result = marginals(leaf, image, preset, backend)
    (result * torch.linspace(-1, 1, len(prob), device=prob.device)[:, None, None]).sum().backward()
    assert leaf.grad is not None
    return result.detach().cpu(), leaf.grad.cpu()


def failures(ours: tuple[Tensor, Tensor], again: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> list[str]:
    """What is wrong: not the same twice, too far from the CPU, or other labels."""
    found = []
    if not all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)):
        found.append("two runs on the same inputs differ")
    for name, value, truth, scale in zip(ALLOWED, ours, wanted, (1.0, float(wanted[1].abs().max())), strict=True):
        error = float((value - truth).abs().max()) / max(scale, 1e-12)
        if not error <= ALLOWED[name]:
            found.append(f"{name}: differs from the CPU by {error:.1e}, allowed {ALLOWED[name]:.0e}")
    equal = float((ours[0].argmax(0) == wanted[0].argmax(0)).float().mean())
    if equal < 0.999:
        found.append(f"{100 * equal:.2f} % of the labels are those of the CPU")
    return found


def checks(device: str, labels: int = LABELS) -> list[Check]:
    """Each preset against the CPU's library, where both can run here."""

    def check(name: str, picture: np.ndarray, prob: np.ndarray) -> Check:
        def run() -> list[str]:
            given = torch.as_tensor(prob), torch.as_tensor(picture)
            there = [x.to(device) for x in given]
            try:
                ours, again = (both(there[0], there[1], PRESETS[name], "cuda") for _ in range(2))
            except Exception as error:
                if broken():
                    raise BrokenGpuError("dense_crf: cuda", first_line(error)) from error
                raise
            return failures(ours, again, both(given[0], given[1], PRESETS[name], "cpp"))

        return Check("dense CRF", f"{name}, {picture.shape[1]}x{picture.shape[0]}", run)

    image, prob = scene(), probabilities(labels)
    found = [check(name, image, prob) for name in PRESETS]
    odd = np.s_[:37, :53]
    return [*found, *(check(name, image[odd].copy(), prob[:, :37, :53].copy()) for name in PRESETS)]


def measure(device: str, timer: Timer, rounds: int, preset: str = "psa") -> list[Record]:
    """One line a peer, those of the CPU by the wall clock. Images take turns: few lattices are kept."""
    pictures, prob = [np.roll(scene(), 16 * number, axis=1) for number in range(4)], probabilities(LABELS)
    here, there = torch.as_tensor(prob), torch.as_tensor(prob).to(device)

    def on(backend: str, values: Tensor) -> list[Callable[[], Any]]:
        images = [torch.as_tensor(picture).to(values.device) for picture in pictures]
        return [lambda image=image: marginals(values, image, PRESETS[preset], backend) for image in images]

    peers: dict[str, tuple[bool, Timer, int, Callable[[], list[Callable[[], Any]]]]] = {
        "cuda": (True, timer, rounds, lambda: on("cuda", there)),
        "reference": (True, timer, 2, lambda: on("reference", there)),
        "cpp on the CPU": (False, wall_clock, 5, lambda: on("cpp", here)),
        "pydensecrf2": (False, wall_clock, 2, lambda: [lambda: pydensecrf2(prob, pictures[0], PRESETS[preset])]),
    }
    base = {"operation": "dense_crf", "pass": preset, "size": f"{WIDTH}x{HEIGHT}, {LABELS} labels", "dtype": "float32"}
    lines = []
    for name, (own, clock, count, make) in peers.items():
        line: Record = {**base, "peer": name, "ours": own}
        try:
            calls = make()
            peak = peak_bytes(calls[0], device if clock is timer else "cpu")
            line |= _times(interleave({name: calls}, clock, count)[name]) | {"peak_bytes": peak}
        except Exception as error:  # a peer that is not there or cannot run must not cost the others
            line["reason"] = first_line(error)
            if broken():
                raise BrokenGpuError(f"dense_crf: {name}", line["reason"]) from error
        lines.append(line)
    return lines


def _times(times: Times) -> Record:
    return {
        **{"p20_ms": times.p20, "p50_ms": times.p50, "p80_ms": times.p80, "host_ms": times.host, "count": times.count}
    }


def ratio(lines: list[Record]) -> str:
    """What the progress says of them."""
    known = {line["peer"]: line["p50_ms"] for line in lines if "p50_ms" in line}
    own = records.ours(lines)
    if own is None:
        return "not timed"
    others = ", ".join(f"{name} {time / own['p50_ms']:.0f}x" for name, time in known.items() if name != own["peer"])
    return f"{own['peer']} {own['p50_ms']:.2f} ms; {others}"
