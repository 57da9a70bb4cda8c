"""A training into its checkpoints and out of them again."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from gwsss_fast import distributed
from gwsss_fast.errors import GwsssError
from gwsss_fast.training.checkpoint_folder import link, newest_readable, replace_checkpoint
from gwsss_fast.training.checkpoints import (
    check_finite,
    load_checkpoint,
    random_states,
    restore_model,
    save_weights,
)

if TYPE_CHECKING:
    from gwsss_fast.training.loop import Trainer

_IMPLEMENTATION = ("fused", "foreach")  # of an optimiser: today's options decide, not those of the checkpoint


class Means:
    """Running means of named numbers."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, float]) -> None:
        """One more value of each name."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, which begin anew."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps."""
        return {"sums": self.sums, "counts": self.counts}

    def restore(self, state: dict[str, dict[str, Any]]) -> None:
        """Take over the `state` of others."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


def resume(trainer: Trainer) -> dict[str, Any]:
    """`Trainer.resume`."""
    path = distributed.on_main(lambda: newest_readable(trainer.checkpoint, trainer.tell))
    if path is None:
        return {}
    content = load_checkpoint(path)
    restore_model(trainer.model, content, path)
    try:
        _restore(trainer, content)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise GwsssError(f"checkpoint {path} cannot be continued: {error}; use another --output") from error
    if content.get("is_best"):  # the process may have been killed before it was said so
        distributed.on_main(lambda: link(path, trainer.checkpoint.with_name("best.pt")))
    return content


def _restore(trainer: Trainer, content: dict[str, Any]) -> None:
    kept = [{name: group.get(name) for name in _IMPLEMENTATION} for group in trainer.optimizer.param_groups]
    trainer.optimizer.load_state_dict(content["optimizer"])
    for group, names in zip(trainer.optimizer.param_groups, kept, strict=True):
        group.update({name: value for name, value in names.items() if name in group})
    trainer.scaler.load_state_dict(content["scaler"])
    trainer.step = trainer.saved = int(content["step"])
    trainer.skips.count = int(content.get("skipped", 0))
    trainer.best_mean = float(content.get("best_mean", math.inf))
    for means, name in ((trainer.row, "row_so_far"), (trainer.epoch, "epoch_so_far")):
        if name in content:
            means.restore(content[name])
    states = [content["random"], *content.get("random_of_others", [])]
    if not all({"python", "numpy", "torch"} <= state.keys() for state in states):
        raise ValueError("its random states are incomplete")
    if len(states) == distributed.size():
        trainer.random = states[distributed.rank()]
    else:
        trainer.tell(
            f"{trainer.name}: goes on with {distributed.size()} processes where {len(states)} began; up to rounding "
            "the results are those of an unbroken training, unless the network draws numbers other than dropout's"
        )


def save(trainer: Trainer, complete: bool) -> None:
    """`Trainer.save`."""
    check_finite(trainer.model, f"{trainer.name}, step {trainer.step}")
    random, more = distributed.gather(random_states()), trainer.state()
    best = False
    if trainer.step % trainer.epoch_steps == 0 and trainer.epoch.sums:
        mean = trainer.epoch.take().get(trainer.best, math.inf)
        best, trainer.best_mean = mean < trainer.best_mean, min(mean, trainer.best_mean)
    content = {
        "stage": trainer.name,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "step": trainer.step,
        "epoch": trainer.step // trainer.epoch_steps,
        "position": trainer.step % trainer.epoch_steps,
        "total": trainer.total,
        "complete": complete,
        "skipped": trainer.skips.count,
        "is_best": best,
        "best_mean": trainer.best_mean,
        "row_so_far": trainer.row.state(),
        "epoch_so_far": trainer.epoch.state(),
        "random": random[0],
        "random_of_others": random[1:],
        **trainer.record,
        **more,
    }
    distributed.on_main(lambda: _write(trainer, content))
    trainer.saved = trainer.step


def _write(trainer: Trainer, content: dict[str, Any]) -> None:
    before = trainer.saved if trainer.saved != trainer.step else None
    replace_checkpoint(trainer.checkpoint, content, trainer.options.keep, before)
    if content["is_best"]:
        link(trainer.checkpoint, trainer.checkpoint.with_name("best.pt"))
    if content["complete"]:
        facts = {
            key: json.dumps(trainer.record[key]) for key in ("classes", "initialised_from") if key in trainer.record
        }
        save_weights(trainer.checkpoint.with_name("weights.safetensors"), trainer.model, stage=trainer.name, **facts)
