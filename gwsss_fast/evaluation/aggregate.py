"""Scores of several seeds: mean, spread, confidence interval, and whether a difference is more than spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gwsss_fast.errors import GwsssError

Direction = Literal["agrees", "opposite", "no difference within the spread", "one seed only"]


@dataclass(frozen=True)
class Aggregate:
    """What several seeds say. std (n - 1) and half, half the width of the interval of the mean, are NaN for one."""

    values: tuple[float, ...]
    mean: float
    std: float
    half: float

    @property
    def interval(self) -> tuple[float, float]:
        """Lowest and highest mean of the confidence interval."""
        return self.mean - self.half, self.mean + self.half


def aggregate(values: Sequence[float], confidence: float = 0.95) -> Aggregate:
    """Mean, standard deviation and Student's interval of the mean: mean +- t(n - 1) std / sqrt(n).

    Raises GwsssError for no values, values that are not finite, or a confidence outside 0..1.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
        raise GwsssError(f"aggregate needs a list of finite numbers, one a seed; got {list(values)}")
    if not 0 < confidence < 1:
        raise GwsssError(f"confidence lies between 0 and 1, got {confidence}")
    if numbers.size == 1:
        return Aggregate((float(numbers[0]),), float(numbers[0]), float("nan"), float("nan"))
    from scipy.stats import t  # takes most of a second, which no other command should wait for

    std = float(numbers.std(ddof=1))
    half = float(t.ppf(0.5 + confidence / 2, numbers.size - 1)) * std / numbers.size**0.5
    return Aggregate(tuple(numbers.tolist()), float(numbers.mean()), std, half)


def direction(differences: Sequence[float], expected: float, confidence: float = 0.95) -> Direction:
    """Whether differences, one a seed, have the sign of `expected`, beyond what their own spread explains.

    The spread is Student's interval of their mean; while it holds 0 there is no difference to speak of.
    """
    found = aggregate(differences, confidence)
    if len(found.values) == 1:
        return "one seed only"
    if abs(found.mean) <= found.half or expected == 0:
        return "no difference within the spread"
    return "agrees" if (found.mean > 0) == (expected > 0) else "opposite"
