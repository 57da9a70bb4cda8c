"""Reading and writing configurations as YAML: presets, a user's own files, and the config.yaml of a run.

A file holds only what differs from its base. `extends: NAME` names the base, a preset or a file beside it; without it
the defaults of the dataclasses are the base. Values under `pretrained:` hold when the backbone is not `tiny`, which
learns from scratch and wants other sizes and learning rates than a pretrained network.
"""

from __future__ import annotations

import difflib
import types
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from gwsss_fast import files
from gwsss_fast.config.checks import check
from gwsss_fast.config.sections import Config
from gwsss_fast.errors import GwsssError

PRESETS = Path(__file__).parents[1] / "presets"
_Section = TypeVar("_Section")


def preset_names() -> list[str]:
    """Names of the presets that come with the package, such as `quick` and `ablation/k-2`."""
    names = (path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))
    return sorted(names, key=lambda name: ("/" in name, name))


def load_config(preset: str | Path, backbone: str | None = None) -> Config:
    """The configuration of a preset's name or of a YAML file, with everything it extends.

    backbone: the one that will be used in place of the preset's. Raises GwsssError for an unknown preset, key or type;
    the message names the file and the closest valid name.
    """
    config = _load(_find(preset, Path()), (), backbone)
    return check(config, str(preset))


def read_config(text: str, source: str, base: Config | None = None) -> Config:
    """`base` (default: the dataclasses' defaults) with the values of YAML `text`; `source` is named in errors."""
    return _merge(base or Config(), _parse(text, source), source, "")


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, section by section. The run's folder is left out: a copy goes elsewhere."""
    values = asdict(config)
    del values["output"]
    top = {key: value for key, value in values.items() if not isinstance(value, dict)}
    parts = [top, *({key: value} for key, value in values.items() if isinstance(value, dict))]
    return "\n".join(yaml.dump(part, Dumper=_Dumper, sort_keys=False) for part in parts)


class _Dumper(yaml.SafeDumper):
    """One line a key; lists within the line."""


_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))


def write_config(config: Config, path: str | Path) -> None:
    """Write `to_yaml(config)`, atomically."""
    files.write_text(path, to_yaml(config))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value) of every field that differs."""
    return {key: (a, b) for (key, a), (_, b) in zip(_flat(asdict(old)), _flat(asdict(new)), strict=True) if a != b}


def closest(name: str, names: list[str]) -> str:
    """`; did you mean X?` for an unknown name, or the list of names when none is near."""
    near = [each for each in names if each.startswith(f"{name}-")]  # `export` for `export-model`
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; choose from {', '.join(names)}"


def _find(preset: str | Path, beside: Path) -> Path:
    name = str(preset)
    for candidate in (PRESETS / f"{name}.yaml", beside / name, beside / f"{name}.yaml"):
        if candidate.is_file() and candidate.suffix in (".yaml", ".yml"):
            return candidate
    if Path(name).suffix in (".yaml", ".yml") or ("/" in name and Path(name).parent.is_dir()):
        raise GwsssError(f"preset file {name} does not exist; presets are {', '.join(preset_names())}")
    raise GwsssError(f"unknown preset {name!r}{closest(name, preset_names())}")


def _load(path: Path, seen: tuple[Path, ...], backbone: str | None) -> Config:
    path = path.resolve()
    if path in seen:
        raise GwsssError(
            f"{path}: extends itself through {' -> '.join(p.name for p in (*seen, path))}; break the circle"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GwsssError(f"cannot read {path}: {error}") from error
    values = _parse(text, str(path))
    base, pretrained = values.pop("extends", None), values.pop("pretrained", None)
    model = values.get("model")
    backbone = backbone or (model.get("backbone") if isinstance(model, dict) else None)
    config = Config() if base is None else _load(_find(base, path.parent), (*seen, path), backbone)
    config = _merge(config, values, str(path), "")
    if pretrained is not None and (backbone or config.model.backbone) != "tiny":
        if not isinstance(pretrained, dict):
            raise GwsssError(f"{path}: pretrained is a section; write its keys indented below it")
        config = _merge(config, pretrained, str(path), "pretrained.")
    return config


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise GwsssError(f"{source}: not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise GwsssError(f"{source}: expected `key: value` lines, got {type(values).__name__}")
    return values


def _merge(section: _Section, values: dict[str, Any], source: str, prefix: str) -> _Section:
    """`section` with `values` put in, every key and type checked."""
    hints = get_type_hints(type(section))
    names = [f.name for f in fields(section)]  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            raise GwsssError(f"{source}: unknown key {prefix}{key}{closest(f'{key}', names)}")
        current = getattr(section, key)
        if is_dataclass(current):
            if not isinstance(value, dict):
                raise GwsssError(f"{source}: {prefix}{key} is a section; write its keys indented below it")
            changed[key] = _merge(current, value, source, f"{prefix}{key}.")
        else:
            changed[key] = _convert(value, hints[key], f"{source}: {prefix}{key} = {value!r}")
    return replace(section, **changed)  # type: ignore[type-var]


def _convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as type `kind`; GwsssError beginning with `where` when it is of another type."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        return _convert(value, kind, where)
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise GwsssError(f"{where} is not one of {', '.join(map(str, get_args(kind)))}")
    if origin is tuple:
        items, inner = (list(value) if isinstance(value, (list, tuple)) else None), get_args(kind)
        if items is None or (inner[-1] is not Ellipsis and len(items) != len(inner)):
            raise GwsssError(f"{where} must be a list of {'' if inner[-1] is Ellipsis else f'{len(inner)} '}numbers")
        return tuple(_convert(item, inner[0], where) for item in items)
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    raise GwsssError(f"{where} must be {_NAMES.get(kind, str(kind))}")


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found
