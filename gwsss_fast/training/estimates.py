"""How long a run will take on this machine, from trials of a few steps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gwsss_fast.config import Config
from gwsss_fast.training.classifier import steps_per_epoch

FEW, MORE = 4, 20  # steps, and images of a group's multiple, of the two trials; their difference has no start-up in it


@dataclass(frozen=True)
class Rates:
    """Seconds of one step or one image of each stage; `plain` and `graph` are the classifier's steps.

    group_size: images K of a group in the trials.
    """

    plain: float
    graph: float
    cam: float
    pseudo: float
    segmenter: float
    evaluate: float
    group_size: int

    @property
    def words(self) -> str:
        """Where they come from."""
        return (
            f"trials of {FEW} and {MORE} steps and images of each stage on this machine, just now: "
            f"{1000 * self.plain:.0f} ms a step without the graph, {1000 * self.graph:.0f} ms with it, "
            f"{1000 * self.cam:.0f} ms the maps of an image, {1000 * self.segmenter:.0f} ms a step of stage 2"
        )


def measure_rates(config: Config, trial: Callable[[Sequence[str]], None]) -> Rates:
    """Rates of a configuration; `trial` runs all stages of it with the options given."""
    size = config.classifier.group_size

    def seconds(count: int, plain: bool) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--output", str(Path(folder) / "run"), "--max-steps", str(count)]
            words += ["--data.train-limit", str(max(count, size)), "--data.val-limit", str(count), "--epochs", "4"]
            words += ["--classifier.plain-epochs", "3" if plain else "0"]
            words += ["--classifier.steps-per-epoch", str(count)]
            trial([*words, *(("--stage", "classifier") if plain else ())])
            return dict(json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))["seconds"])

    first, later = seconds(max(FEW, size), False), seconds(max(FEW, size) + MORE - FEW, False)
    plain = [seconds(count, True)["classifier"] for count in (FEW, MORE)]
    rate = {name: max(later[name] - first.get(name, 0), 0) / (MORE - FEW) for name in later}
    return Rates(
        plain=max(plain[1] - plain[0], 0) / (MORE - FEW),
        graph=rate["classifier"],
        **{name: rate.get(name, 0.0) for name in ("cam", "pseudo", "segmenter", "evaluate")},
        group_size=size,
    )


def estimate(config: Config, counts: tuple[int, int, int], rates: Rates, stage: str, skip: Sequence[str] = ()) -> float:
    """Seconds of `stage`, or of all but those in `skip`. counts: training, scored and validation images.

    Steps and maps take time in proportion to the images of a group; other options of the network count for nothing.
    """
    options = config.classifier
    share = options.group_size / rates.group_size
    limit = config.max_steps or 10**9
    steps = min(options.epochs * steps_per_epoch(options, counts[0]), limit)
    plain = (
        steps
        if config.model.steps == 0
        else min(round(options.plain_epochs * steps_per_epoch(options, counts[0])), steps)
    )
    images = max(counts[:2])
    seconds = {
        "classifier": (plain * rates.plain + (steps - plain) * rates.graph) * share,
        "cam": images * rates.cam,
        "pseudo": images * rates.pseudo,
        "segmenter": min(config.segmenter.iterations, limit) * rates.segmenter,
        "evaluate": counts[2] * rates.evaluate,
    }
    return sum(value for name, value in seconds.items() if stage in ("all", name) and name not in skip)
