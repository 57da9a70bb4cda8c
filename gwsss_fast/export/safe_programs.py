"""Opening a file of torch.export without executing anything in it.

torch.export.load trusts its file: it falls back to pickle, evaluates symbolic sizes as Python expressions, and lets a
graph call any function of torch by name. So what could do harm is looked for before it is called.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gwsss_fast.errors import GwsssError, first_line
from gwsss_fast.export.contents import archive_bytes, archive_names

_TARGETS = re.compile(r"torch\.ops\.(aten|higher_order)\.[\w.]+|_operator\.\w+|torch\.sym_\w+|math\.\w+")
_NUMBERS_AND_SIGNS = re.compile(r"[\w\s+\-*/%(),<>=!&|~.]*")
_WRITTEN_OUT = re.compile(r"Symbol\('([a-z]{1,4}\d+)'(?:, *\w+=(?:True|False))*\)")
_SYMBOL = re.compile(r"_?[a-z]{1,4}\d+|\d[\w.]*")
_FUNCTIONS = {
    *("Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "ModularIndexing", "Where"),
    *("CeilToInt", "FloorToInt", "RoundToInt", "TruncToInt", "ToFloat", "PowByNatural", "FloatPow", "Identity", "Abs"),
    *("Max", "Min", "floor", "ceiling", "Piecewise", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not"),
    *("Add", "Mul", "Pow", "Integer", "Rational", "Float", "Half", "One", "Zero", "NegativeOne", "Tuple"),
    *("True", "False", "oo", "int_oo", "OpaqueUnaryFn_sqrt"),
}


def load_program(path: Path) -> torch.export.ExportedProgram:
    """The exported program in `path`.

    Raises GwsssError for a file that is damaged, that this torch cannot read, or that holds a pickle, an expression or
    a call that no program exported by this package holds.
    """
    names = archive_names(path)
    _check_records(path, names)
    for name in names:
        if name.startswith("models/"):
            _check_graph(path, _json(path, name))
    try:
        with path.open("rb") as file:
            return torch.export.load(file)
    except Exception as error:  # a reader of another version raises almost anything
        reason = first_line(error)
        raise GwsssError(
            f"{path}: torch {torch.__version__} cannot read this program ({reason}); export it with this version"
        ) from error


def _check_records(path: Path, names: list[str]) -> None:
    """No pickle but the sample inputs, and those are tensors and plain containers."""
    for name in names:
        if name.endswith(".pt") and name.startswith("data/sample_inputs/"):
            try:
                content = archive_bytes(path, name)
                if content:
                    torch.load(io.BytesIO(content), weights_only=True)
            except Exception:
                raise _refused(path, f"{name} is a pickle of more than tensors") from None
        elif name.endswith((".pt", ".pkl")) or "custom_obj" in name or "opaque_obj" in name:
            raise _refused(path, f"{name} is a pickle")
        elif name.endswith("_config.json") and any(_is_pickled(*pair) for pair in _pairs(_json(path, name))):
            raise _refused(path, f"{name} names a pickle")


def _is_pickled(key: str, value: Any) -> bool:
    return key == "use_pickle" and value is not False


def _json(path: Path, name: str) -> Any:
    try:
        return json.loads(archive_bytes(path, name))
    except (ValueError, RecursionError):
        raise GwsssError(f"{path} is damaged ({name} is no JSON); copy or export it again") from None


def _check_graph(path: Path, program: Any) -> None:
    for key, value in _pairs(program):
        if key == "target" and isinstance(value, str) and not _TARGETS.fullmatch(value):
            raise _refused(path, f"it calls {value}")
        if key == "expr_str" and not (isinstance(value, str) and _harmless(value)):
            raise _refused(path, f"it evaluates {str(value)[:60]!r}")


def _harmless(expression: str) -> bool:
    """Symbols, numbers, signs and known functions; no attribute, string or name of anything else."""
    expression = _WRITTEN_OUT.sub(r"\1", expression)
    if not _NUMBERS_AND_SIGNS.fullmatch(expression) or re.search(r"[^\d\s]\.|\.[^\d\s)]|__", expression):
        return False
    return all(word in _FUNCTIONS or _SYMBOL.fullmatch(word) for word in re.findall(r"[\w.]+", expression))


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield from item.items()
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _refused(path: Path, reason: str) -> GwsssError:
    return GwsssError(f"{path} is not opened: {reason}, which no program exported by this package does")
