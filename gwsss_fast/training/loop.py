"""The loop that both stages share: steps, learning rates, checkpoints, and stopping without harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from gwsss_fast.errors import GwsssError
from gwsss_fast.models.precision import autocast
from gwsss_fast.training.checkpoints import (
    check_finite,
    load_checkpoint,
    random_states,
    restore_model,
    restore_random_states,
    save_checkpoint,
)
from gwsss_fast.training.logs import Reporter, TrainingLog
from gwsss_fast.training.schedules import Schedule

ROWS = 500  # rows of a log, about: a row is the mean over as many steps as keep to this

# A batch -> the loss to minimise, first, and further numbers for the log.
LossFunction = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Trainer:
    """Everything a training holds while it runs.

    name: of the stage, for messages and log files. total, epoch_steps: optimiser steps in all and per epoch. schedule:
    factor on each parameter group's first learning rate. record: what the checkpoint says besides (config, classes,
    initialised_from). state: gives further content that changes while training.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    total: int
    epoch_steps: int
    checkpoint: Path
    logs: Path
    device: torch.device
    precision: str = "fp32"
    clip_norm: float | None = None
    checkpoint_every: int = 500
    record: dict[str, Any] = field(default_factory=dict)
    state: Callable[[], dict[str, Any]] = dict
    console: Console | None = None
    step: int = 0

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self._random: dict[str, Any] | None = None

    def resume(self) -> dict[str, Any]:
        """Continue from the checkpoint and return its content. Raises GwsssError when it does not fit the model."""
        content = load_checkpoint(self.checkpoint)
        restore_model(self.model, content, self.checkpoint)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            self.step, self._random = int(content["step"]), content["random"]
        except (KeyError, ValueError) as error:
            raise GwsssError(
                f"checkpoint {self.checkpoint} cannot be continued: {error}; use another --output"
            ) from error
        return content

    def fit(self, batches: Callable[[int], Iterable[Any]], loss: LossFunction, columns: tuple[str, ...] = ()) -> None:
        """Train to `total` steps and write the complete checkpoint.

        batches: gives the batches from a step on, always the same ones. columns: names of the further numbers of
        `loss`. Ctrl-C ends the step at hand, writes a checkpoint and raises KeyboardInterrupt. Raises GwsssError for a
        loss that is not finite; the last checkpoint stays as it is.
        """
        lr_columns = tuple(f"lr_{group.get('name', i)}" for i, group in enumerate(self.optimizer.param_groups))
        log = TrainingLog(self.logs, self.name, ("loss", *columns, *lr_columns), self.step)
        try:
            with deferred_interrupt() as interrupted, Reporter(self.name, self.total, self.step, self.console) as bar:
                self._fit(batches, loss, log, bar, interrupted)
                self.save(complete=True)
        finally:
            log.close()

    def _fit(
        self,
        batches: Callable[[int], Iterable[Any]],
        loss: LossFunction,
        log: TrainingLog,
        bar: Reporter,
        interrupted: threading.Event,
    ) -> None:
        self.model.train()
        iterator = iter(batches(self.step))
        if self._random is not None:  # last, since building things may have drawn numbers
            restore_random_states(self._random)
        every, means = max(self.total // ROWS, 1), _Means()
        while self.step < self.total:
            batch = next(iterator, None)
            if batch is None:
                raise RuntimeError(f"{self.name}: the batches ended at step {self.step} of {self.total}")
            values = self._step(batch, loss)
            self.step += 1
            means.add(values)
            if self.step % every == 0 or self.step == self.total:
                log.write(self.step, {**means.take(), **self._learning_rates()})
            bar.advance(f"loss {values['loss']:.4f}")
            if interrupted.is_set():
                self.save()
                raise KeyboardInterrupt
            if self.step % self.checkpoint_every == 0 or self.step % self.epoch_steps == 0:
                self.save()

    def _step(self, batch: Any, loss: LossFunction) -> dict[str, float]:
        factor = self.schedule(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            total, parts = loss(batch)
        values = {name: float(value.detach()) for name, value in {"loss": total, **parts}.items()}
        if not torch.isfinite(total):
            raise GwsssError(
                f"{self.name}: the loss is {values['loss']} at step {self.step + 1}; lower the learning rate, set "
                f"clip_norm, or use another precision than {self.precision}; the last checkpoint is {self.checkpoint}"
            )
        self.scaler.scale(total).backward()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return values

    def save(self, complete: bool = False) -> None:
        """Write the checkpoint. Raises GwsssError when a weight is not finite or the disk refuses."""
        check_finite(self.model, f"{self.name}, step {self.step}")
        save_checkpoint(
            self.checkpoint,
            {
                "stage": self.name,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "epoch": self.step // self.epoch_steps,
                "position": self.step % self.epoch_steps,
                "total": self.total,
                "complete": complete,
                "random": random_states(),
                **self.record,
                **self.state(),
            },
        )

    def _learning_rates(self) -> dict[str, float]:
        return {f"lr_{group.get('name', i)}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}


class _Means:
    """Running means of named numbers."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: dict[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that a step is never cut in half; the second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
