"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gwsss_fast import distributed, files

WARM_UP = 3  # steps that are not measured: the first ones build, tune and fill caches
PARTS = {
    "backbone": "backbone",
    "body": "backbone",
    "gnn": "graph",
    "aspp": "head",
}  # submodules of both stages' networks
ORDER = ("data", "backbone", "graph", "head", "loss", "backward", "optimiser")


class Profile:
    """Times the phases of `steps` training steps, waiting for the device at each change; then tells, and writes them
    into NAME.profile.json (seconds a step) and a trace of one step into NAME.trace.json.

    model: its backbone, graph and head are measured on their own, "loss" is the rest of the forward pass; None, as for
    a compiled one, leaves the forward pass whole. With 0 steps all of it does nothing.
    """

    def __init__(self, steps: int, model: nn.Module | None, device: torch.device, folder: Path, name: str) -> None:
        self.steps = steps if distributed.is_main() else 0
        self.device = device
        self.trace, self.summary = folder / f"{name}.trace.json", folder / f"{name}.profile.json"
        self.seconds: dict[str, float] = defaultdict(float)
        self.done, self.handles = 0, []
        self.stack: list[tuple[str, float]] = []
        self.recorder: Any = None
        if self.steps and model is not None:
            for name, module in model.named_modules():
                if name.rpartition(".")[2] in PARTS and name.count(".") <= 1:
                    phase = PARTS[name.rpartition(".")[2]]
                    self.handles.append(module.register_forward_pre_hook(lambda *_, phase=phase: self._enter(phase)))
                    self.handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The block belongs to phase `name`, but for what inner phases take."""
        if not self.steps:
            yield
            return
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    def next_step(self, tell: Callable[[str], None]) -> None:
        """A step has ended; after the last one `tell` gets the table, a line a phase."""
        if not self.steps:
            return
        self.done += 1
        if self.done == WARM_UP:
            self.seconds.clear()
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.recorder = torch.profiler.profile(activities=activities)
            self.recorder.start()
        elif self.done == WARM_UP + 1:  # one step: traces are large, and recording slows what is timed
            self._write_trace()
            self.seconds.clear()
        elif self.done == WARM_UP + 1 + self.steps:
            self.finish(tell)

    def finish(self, tell: Callable[[str], None]) -> None:
        """Tell and write what was measured so far, once."""
        if not self.steps:
            return
        if self.recorder is not None:
            self._write_trace()
        measured = self.done - WARM_UP - 1
        if measured > 0:
            means = {name: self.seconds[name] / measured for name in ORDER if name in self.seconds}
            files.write_json(self.summary, means)
            for line in table(dict(self.seconds), measured):
                tell(line)
            tell(f"trace of one step: {self.trace}")
        else:
            tell(f"profile: {self.done} steps are too few, the first {WARM_UP + 1} are not measured")
        for handle in self.handles:
            handle.remove()
        self.steps = 0

    def _write_trace(self) -> None:
        self.recorder.stop()
        with files.atomic_path(self.trace) as temporary:
            self.recorder.export_chrome_trace(str(temporary))
        self.recorder = None

    def _enter(self, name: str) -> None:
        now = self._now()
        if self.stack:
            outer, since = self.stack[-1]
            self.seconds[outer] += now - since
        self.stack.append((name, now))

    def _leave(self) -> None:
        now = self._now()
        name, since = self.stack.pop()
        self.seconds[name] += now - since
        if self.stack:
            self.stack[-1] = (self.stack[-1][0], now)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def table(seconds: dict[str, float], steps: int) -> list[str]:
    """Milliseconds a step and share of each phase, then their sum."""
    total = sum(seconds.values())
    lines = [
        f"  {name:10} {1000 * seconds[name] / steps:9.1f} ms {100 * seconds[name] / total:5.1f} %"
        for name in ORDER
        if name in seconds
    ]
    return [f"time of a step, mean of {steps}:", *lines, f"  {'all':10} {1000 * total / steps:9.1f} ms"]
