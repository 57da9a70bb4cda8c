"""The loop that both stages share: steps, learning rates, processes, checkpoints, and stopping without harm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gwsss_fast import distributed
from gwsss_fast.config import TrainingConfig
from gwsss_fast.errors import GwsssError
from gwsss_fast.GroupGNN import GroupGNN
from gwsss_fast.models.keyed_dropout import key_dropout, set_keys
from gwsss_fast.models.precision import autocast
from gwsss_fast.models.synced_batch_norm import set_idle, synchronise_batch_norm
from gwsss_fast.training.checkpoint_folder import remove_unfinished
from gwsss_fast.training.checkpoints import restore_random_states
from gwsss_fast.training.guards import Skips, Statistics, out_of_memory, own_gradients
from gwsss_fast.training.logs import Reporter, TrainingLog, say
from gwsss_fast.training.parts import Part, Share, keys_of_rows, split
from gwsss_fast.training.profiling import Profile
from gwsss_fast.training.saving import Means, resume, save
from gwsss_fast.training.schedules import Schedule
from gwsss_fast.training.signals import Stop, deferred_interrupt

ROWS = 500  # rows of a log, about: a row is the mean over as many steps as keep to this

# A part of a batch -> its contribution to the batch's loss, first, and to further numbers of the log: summed over the
# parts of a process and averaged over the processes, they are those of the batch (see Part.weight).
LossFunction = Callable[[Part], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Trainer:
    """Everything a training holds while it runs.

    name: of the stage, for messages and log files. total, epoch_steps: optimiser steps in all and per epoch. schedule:
    factor on each parameter group's first learning rate. record: what the checkpoint says besides (config, classes,
    initialised_from). state: gives further content that changes while training; all processes call it. best: the
    number of the log whose mean over an epoch decides which is the best. images: the names of what a share holds. seed:
    of ordinary dropout.
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
    options: TrainingConfig = field(default_factory=TrainingConfig)
    record: dict[str, Any] = field(default_factory=dict)
    state: Callable[[], dict[str, Any]] = dict
    best: str = "loss"
    images: Callable[[Share], list[str]] = lambda share: []
    console: Console | None = None
    seed: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parts = self.options.accumulate
        self.skips = Skips(self.name, self.options.nonfinite_limit)
        self.dropout = key_dropout(self.model)
        self.network: nn.Module = self.model  # what the loss calls: compiled, and joined to the other processes
        self.best_mean = math.inf
        self.row, self.epoch = Means(), Means()  # what the next row of the log and the epoch hold so far
        self.random: dict[str, Any] | None = None  # states to start with
        self.saved: int | None = None  # the step of the newest checkpoint

    def resume(self) -> dict[str, Any]:
        """Continue from the newest checkpoint that can be read and return its content; {} when there is none.

        Raises GwsssError when it does not fit the model.
        """
        return resume(self)

    def fit(self, batches: Callable[[int], Iterable[Share]], loss: LossFunction, columns: tuple[str, ...] = ()) -> None:
        """Train to `total` steps and write the complete checkpoint.

        batches: gives this process's share of each batch from a step on, always the same ones. columns: names of the
        further numbers of `loss`. Ctrl-C and SIGTERM end the step at hand, write a checkpoint and raise
        KeyboardInterrupt (Terminated). A step whose loss or gradient is not finite changes nothing; raises GwsssError
        when too many were skipped; the last checkpoint stays as it is.
        """
        names = ("loss", *columns, *self._learning_rates())
        log = TrainingLog(self.logs, self.name, names, self.step) if distributed.is_main() else None
        distributed.on_main(lambda: remove_unfinished(self.checkpoint.parent))
        self._join()
        try:
            with deferred_interrupt() as stop, Reporter(self.name, self.total, self.step, self.console) as bar:
                self._fit(batches, loss, log, bar, stop)
                self.save(complete=True)
                if stop.take(distributed.add(torch.tensor(stop.flags())).tolist()):  # it came with the last save
                    raise stop.kind
        finally:
            if log is not None:
                log.close()

    def _fit(
        self,
        batches: Callable[[int], Iterable[Share]],
        loss: LossFunction,
        log: TrainingLog | None,
        bar: Reporter,
        stop: Stop,
    ) -> None:
        self.model.train()
        iterator = iter(batches(self.step))
        if self.random is not None:  # last, since building things may have drawn numbers
            restore_random_states(self.random)
        elif distributed.rank() > 0:  # whatever a network draws by itself differs from process to process
            torch.manual_seed(torch.initial_seed() + distributed.rank())
        every, statistics = max(self.total // ROWS, 1), Statistics(self.model)
        profile = Profile(
            self.options.profile,
            None if self.options.compile or self.options.cuda_graphs else self.model,
            self.device,
            self.logs,
            self.name,
        )
        while self.step < self.total:
            with profile.phase("data"):
                share = next(iterator, None)
            if share is None:
                raise RuntimeError(f"{self.name}: the batches ended at step {self.step} of {self.total}")
            values, stopping = self._step(share, loss, stop, profile, statistics)
            profile.next_step(self.tell)
            self.step += 1
            if values is not None:
                self.row.add(values)
                self.epoch.add(values)
                bar.advance(f"loss {values['loss']:.4f}")
            else:
                bar.advance("skipped")
            if self.step % every == 0 or self.step == self.total:
                row = {**self.row.take(), **self._learning_rates()}
                if log is not None:
                    log.write(self.step, row)
            if stopping:
                self.save()
                raise stop.kind
            due = self.step % self.checkpoint_every == 0 or self.step % self.epoch_steps == 0
            if due and self.step < self.total:
                self.save()
        profile.finish(self.tell)

    def _step(
        self, share: Share, loss: LossFunction, stop: Stop, profile: Profile, statistics: Statistics
    ) -> tuple[dict[str, float] | None, bool]:
        """One optimiser step: the numbers for the log, None when it was skipped, and whether any process shall stop."""
        factor = self.schedule(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        statistics.keep()
        while True:
            self.optimizer.zero_grad()  # to None; apex's takes no argument
            try:
                sums = self._backward(share, loss, profile)
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._split_more(len(share.rows), error)
            if self.device.type == "cuda":  # the error is gone by now, and with it the tensors that it held
                torch.cuda.empty_cache()
            statistics.restore()
        with profile.phase("optimiser"):
            self.scaler.unscale_(self.optimizer)
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            *own, length = torch.stack([*sums.values(), norm]).tolist()  # one wait for the device
            finite = all(map(math.isfinite, own))
            whole = finite and math.isfinite(length)
            norm_alone = not whole and all(bool(gradient.isfinite().all()) for gradient in gradients)
            flags = [*stop.flags(), not whole, norm_alone]
            shared = distributed.add(torch.tensor([*flags, *own], dtype=torch.float64)).tolist()
            numbers = dict(zip(sums, (number / distributed.size() for number in shared[4:]), strict=True))
            stopping = stop.take(shared[:2])
            if shared[2]:
                statistics.restore()
                # What fp16's scaler looks for, an overflow of single gradients at a large scale, is no fault.
                sought = self.scaler.is_enabled() and self.scaler.get_scale() > 1 and not shared[3]
                if not sought or not math.isfinite(numbers["loss"]):
                    self.skips.note(
                        self.step + 1, numbers["loss"], self.images(share), finite, self.tell, self._advice()
                    )
                self.scaler.update()
                return None, stopping
            if self.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_norm, norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return numbers, stopping

    def _backward(self, share: Share, loss: LossFunction, profile: Profile) -> dict[str, Tensor]:
        """Gradients of the share's loss, part by part; the numbers of the log, summed."""
        sums: dict[str, Tensor] = {}
        parts = split(share, self.parts, self.device)
        if distributed.size() > 1:
            set_idle(self.model, share.idle)
        for number, part in enumerate(parts, 1):
            if self.dropout:
                set_keys(self.dropout, keys_of_rows(part.rows.tolist(), self.seed, self.step))
            joined = isinstance(self.network, DistributedDataParallel) and number < len(parts)
            with self.network.no_sync() if joined else nullcontext():  # type: ignore[operator]
                with autocast(self.device, self.precision), profile.phase("loss"):
                    total, more = loss(part)
                with profile.phase("backward"):
                    self.scaler.scale(total).backward()
            if self.options.cuda_graphs and number == 1 < len(parts):
                own_gradients(self.model)
            for name, value in {"loss": total, **more}.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return sums

    def _split_more(self, items: int, error: RuntimeError) -> None:
        """After the device ran out of memory: smaller parts from now on. Raises GwsssError where nothing is left."""
        advice = "lower --groups, --group-size or the images' size, or set --model.checkpoint-steps true"
        if distributed.size() > 1:  # the others wait for this process's gradients
            raise GwsssError(
                f"{self.name}: out of memory; set --training.accumulate {2 * self.parts}, or {advice}"
            ) from error
        if self.parts >= items:
            raise GwsssError(f"{self.name}: out of memory with one item at a time; {advice}") from error
        self.parts = min(2 * self.parts, items)
        self.tell(f"{self.name}: out of memory at step {self.step + 1}; going on in {self.parts} parts a step")

    def _join(self) -> None:
        """Compile the network and join it to the other processes, as the options say."""
        if distributed.size() > 1 and self.options.sync_batch_norm:
            layers, others = synchronise_batch_norm(self.model)
            if layers and self.options.compile:
                raise GwsssError(
                    "--compile cannot see through batch norm over several processes; set --training.sync-batch-norm "
                    "false, or freeze batch norm"
                )
            if others:
                self.tell(f"{self.name}: {', '.join(sorted(others))} sees only the images of its own process")
        self.network = self.model
        if self.options.cuda_graphs and self.options.compile:
            raise GwsssError("--compile and training.cuda_graphs exclude one another; choose one")
        if self.options.cuda_graphs:
            if self.device.type != "cuda":
                raise GwsssError("training.cuda_graphs needs a GPU; leave it out, or use --compile")
            for module in self.model.modules():
                if isinstance(module, GroupGNN):
                    module.compile(fullgraph=True, mode="reduce-overhead")  # in place: its parameters keep their names
        if self.options.compile:
            self.network = torch.compile(self.model, fullgraph=True)  # type: ignore[assignment]
        if distributed.size() > 1:
            device = [self.device.index] if self.device.type == "cuda" else None
            # A training without the graph, or without the edges' loss, leaves parameters unused.
            options = {"broadcast_buffers": False, "find_unused_parameters": True, "gradient_as_bucket_view": True}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of a new name that PyTorch 2.11 does not have yet
                self.network = DistributedDataParallel(self.network, device, **options)  # type: ignore[arg-type]

    def tell(self, text: str) -> None:
        """One line to the person at the terminal."""
        if distributed.is_main():
            say(self.console or Console(stderr=True), text)

    def _advice(self) -> str:
        return (
            f"lower the learning rate, set clip_norm, or use another precision than {self.precision}; the last "
            f"checkpoint is {self.checkpoint}"
        )

    def save(self, complete: bool = False) -> None:
        """Write the checkpoint, in process 0. Raises GwsssError when a weight is not finite or the disk refuses."""
        save(self, complete)

    def _learning_rates(self) -> dict[str, float]:
        return {f"lr_{group.get('name', i)}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
