"""The configuration of a run: what can be set (sections.py), and its YAML files and presets (yaml_files.py)."""

from gwsss_fast.config.sections import (
    CamConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    PseudoConfig,
    SegmenterConfig,
    check,
    get_field,
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
