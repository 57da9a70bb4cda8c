"""The configuration of a run: what can be set (sections.py), to which values (checks.py), files (yaml_files.py)."""

from gwsss_fast.config.checks import check, get_field
from gwsss_fast.config.paths import absolute_paths
from gwsss_fast.config.sections import (
    CamConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    PseudoConfig,
    SegmenterConfig,
    TrainingConfig,
)
from gwsss_fast.config.yaml_files import (
    closest,
    differences,
    load_config,
    preset_names,
    read_config,
    to_yaml,
    write_config,
)

__all__ = [
    "CamConfig",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "ModelConfig",
    "PseudoConfig",
    "SegmenterConfig",
    "TrainingConfig",
    "absolute_paths",
    "check",
    "closest",
    "differences",
    "get_field",
    "load_config",
    "preset_names",
    "read_config",
    "to_yaml",
    "write_config",
]
