"""Which values of a configuration make sense."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from gwsss_fast.config.sections import Config
from gwsss_fast.errors import GwsssError

MOST, MOST_SEED = 2**31 - 1, 2**63 - 1  # what every library below takes as a whole number, and as a seed

_AT_LEAST: dict[str, float] = {
    "threads": 0, "seed": 0, "max_steps": 1, "data.workers": 0, "data.cache_mb": 0, "data.seed": 0,
    "data.train_limit": 1, "data.val_limit": 1, "data.bad_image_limit": 0,
    "training.accumulate": 1, "training.nonfinite_limit": 0, "training.keep": 1, "training.profile": 0,
    "model.graph_channels": 1, "model.steps": 0, "model.reduction": 1,
    "classifier.epochs": 1, "classifier.plain_epochs": 0, "classifier.steps_per_epoch": 1, "classifier.groups": 1,
    "classifier.group_size": 1, "classifier.size": 16, "classifier.color_jitter": 0, "classifier.backbone_lr": 0,
    "classifier.graph_lr": 0, "classifier.message_lr_factor": 0, "classifier.bias_lr_factor": 0,
    "classifier.momentum": 0, "classifier.weight_decay": 0, "classifier.step_epochs": 1, "classifier.step_factor": 0,
    "classifier.poly_power": 0, "classifier.warmup_steps": 0, "classifier.checkpoint_every": 1,
    "cam.size": 16, "cam.rounds": 1, "cam.groups": 1,
    "pseudo.threshold": 0, "pseudo.alpha": 0, "pseudo.conflict": 0, "pseudo.salient": 0, "pseudo.raise_above": 0,
    "pseudo.min_foreground": 0,
    "segmenter.iterations": 1, "segmenter.batch": 1, "segmenter.crop": 16, "segmenter.color_jitter": 0,
    "segmenter.lr": 0, "segmenter.head_lr_factor": 0, "segmenter.head_bias_lr_factor": 0, "segmenter.momentum": 0,
    "segmenter.weight_decay": 0, "segmenter.poly_power": 0, "segmenter.checkpoint_every": 1,
}  # fmt: skip
_AT_MOST: dict[str, float] = {"pseudo.threshold": 1, "pseudo.min_foreground": 1}
_ABOVE_ZERO = ("classifier.clip_norm", "segmenter.clip_norm", "cam.scales", "evaluate.scales", "segmenter.rates")


def get_field(config: Config, key: str) -> Any:
    """Value of a dotted key such as `classifier.epochs`."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def check(config: Config, source: str = "configuration") -> Config:
    """Return `config` when its values make sense; GwsssError names `source`, key and value otherwise."""
    _check_numbers(config, source, "")
    for key, smallest in _AT_LEAST.items():
        value = get_field(config, key)
        if value is not None and value < smallest:
            raise GwsssError(f"{source}: {key} = {value} must be at least {smallest}")
    for key, largest in _AT_MOST.items():
        value = get_field(config, key)
        if value > largest:
            raise GwsssError(f"{source}: {key} = {value} must be at most {largest}")
    for key in _ABOVE_ZERO:
        value = get_field(config, key)
        if isinstance(value, tuple) and (not value or min(value) <= 0):
            raise GwsssError(f"{source}: {key} = {list(value)} must hold one or more numbers above 0")
        if isinstance(value, float) and value <= 0:
            raise GwsssError(f"{source}: {key} = {value} must be above 0")
    for key in ("classifier.scale", "segmenter.scales"):
        low, high = get_field(config, key)
        if not 0 < low <= high:
            raise GwsssError(f"{source}: {key} = {[low, high]} must be two rising numbers above 0")
    _check_together(config, source)
    return config


def _check_numbers(section: Any, source: str, prefix: str) -> None:
    """Every number is finite, and every whole number one that a machine holds."""
    for field in fields(section):
        value, key = getattr(section, field.name), f"{prefix}{field.name}"
        if is_dataclass(value):
            _check_numbers(value, source, f"{key}.")
            continue
        most = MOST_SEED if field.name == "seed" else MOST
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise GwsssError(f"{source}: {key} = {number} must be a finite number")
            if isinstance(number, int) and number > most:
                raise GwsssError(f"{source}: {key} = {number} must be at most {most}")


def _check_together(config: Config, source: str) -> None:
    """What a value asks of others."""
    options = config.classifier
    if config.data.decode == "device" and config.data.cache_dir is not None:
        raise GwsssError(f"{source}: data.decode device keeps no decoded images; leave out data.cache_dir")
    if min(options.loss_weights) < 0 or max(options.loss_weights) == 0:
        raise GwsssError(
            f"{source}: classifier.loss_weights = {list(options.loss_weights)} must not be negative and not all 0"
        )
    if options.nesterov and options.momentum == 0:
        raise GwsssError(f"{source}: classifier.nesterov needs classifier.momentum above 0")
    if config.cam.oaa and (options.mode != "squash" or options.flip):
        raise GwsssError(
            f"{source}: cam.oaa accumulates the maps of whole images, so it needs classifier.mode squash "
            "and classifier.flip False"
        )
    if config.pseudo.maps_list is not None and config.pseudo.maps is None:
        raise GwsssError(f"{source}: pseudo.maps_list says how maps from elsewhere are named; give pseudo.maps too")
