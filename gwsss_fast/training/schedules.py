"""Learning rate as a pure function of the step, so that a checkpoint needs no scheduler state."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[int], float]


def step_decay(interval: int, factor: float) -> Schedule:
    """Times `factor` every `interval` steps."""
    return lambda step: factor ** (step // interval)


def poly(total: int, power: float) -> Schedule:
    """(1 - step / total)^power."""
    return lambda step: max(1 - step / total, 0.0) ** power


def constant() -> Schedule:
    """Always 1."""
    return lambda step: 1.0


def warm_up(schedule: Schedule, steps: int) -> Schedule:
    """`schedule`, rising linearly to it over the first `steps` steps."""
    return lambda step: schedule(step) * min((step + 1) / steps, 1.0) if steps else schedule(step)
