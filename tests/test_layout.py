"""The plan of the house as a test: who may import whom, and how long a file or a function may be.

Imports point down only. An import counts wherever it stands: at the top, inside a function, under TYPE_CHECKING, or
as `import_module("...")` with a literal name.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

FLOOR = {"errors", "files"}
JOB = {"distributed"}
BACKENDS = {"reference", "aten", "launch", "native"}
MODULE = {"layers", "GroupGNN", "losses"}
PIPELINE = {"training", "labels", "export", "report"}
COMMANDS = {
    "__main__",
    "cli",
    "train",
    "cam",
    "pseudo",
    "evaluate",
    "localize",
    "predict",
    "export_model",
    "report_run",
    "reproduce",
    "check_data",
    "doctor",
    "serve",
}
BELOW_MODELS = FLOOR | JOB | {"ops"} | MODULE
BELOW_PIPELINE = BELOW_MODELS | {"models", "data", "evaluation", "config"}
BELOW_COMMANDS = BELOW_PIPELINE | PIPELINE | {"inference", "serving"}

# room -> rooms of the package it may import, besides itself. A room is a folder or a file directly in the package.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "distributed": {"errors"},
    "reference": set(),
    "kernels": set(),
    "launch": FLOOR | {"kernels"},  # allocates what a Triton kernel writes, and starts it
    "aten": set(),
    "native": FLOOR,
    "ops": FLOOR | BACKENDS,
    "layers": FLOOR | {"ops"},
    "GroupGNN": FLOOR | {"ops", "layers"},
    "losses": FLOOR | {"ops", "GroupGNN"},  # the loss takes the module's output
    "models": BELOW_MODELS,
    "data": FLOOR,
    "evaluation": FLOOR,
    "config": FLOOR,
    "presets": set(),
    **{room: BELOW_PIPELINE for room in PIPELINE},
    "inference": BELOW_PIPELINE | PIPELINE,
    "serving": BELOW_PIPELINE | PIPELINE | {"inference"},
    # Commands may import everything below, and each other (`train` runs the later stages).
    **{room: BELOW_COMMANDS | COMMANDS for room in COMMANDS},
    "doctor": BELOW_COMMANDS | COMMANDS | {"native"},  # it shows what was built, and builds it on request
    "__init__": BELOW_MODELS | {"models", "data", "evaluation", "inference"},
}

# Folders beside the package: they import it, and nothing of it imports them.
OUTSIDE = {"benchmarks", "tests"}

# Rooms that may import only these packages besides the standard library and the rooms above.
ONLY_EXTERNAL = {
    "errors": set(),
    "files": set(),
    "reference": {"torch"},
    "aten": {"torch"},
    "kernels": {"triton"},
    "launch": {"torch", "triton"},
}


def module_name(path: Path, root: Path) -> str:
    """Dotted name under which the file is installed: kernels/ becomes gwsss_fast.kernels."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "gwsss_fast")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def room_of(module: str) -> str:
    """First part of the name below the package; the package itself is `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def package_files(root: Path) -> list[Path]:
    return sorted([*(root / "gwsss_fast").rglob("*.py"), *(root / "kernels").rglob("*.py")])


def absolute_base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The module a `from ... import` names, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    keep = len(parts) - node.level + (1 if is_package else 0)
    return ".".join(parts[:keep] + ([node.module] if node.module else []))


def imports_of(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import of the file; names imported from the bare package become its rooms."""
    module = module_name(path, root)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(node, module, path.name == "__init__.py")
            if base != "gwsss_fast":
                yield node.lineno, base
                continue
            for name in node.names:
                is_room = name.name in ALLOWED
                yield node.lineno, f"gwsss_fast.{name.name}" if is_room else base
        elif isinstance(node, ast.Call) and called_name(node) in ("import_module", "__import__") and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                yield node.lineno, target.value


def called_name(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def import_violations(root: Path) -> list[str]:
    """One line for every import that the tables do not allow, as `file:line: room imports module`."""
    found = []
    for path in package_files(root):
        room = room_of(module_name(path, root))
        where = path.relative_to(root).as_posix()
        if room not in ALLOWED:
            found.append(f"{where}: {room} has no row in the table of rooms")
            continue
        for line, target in imports_of(path, root):
            top = target.split(".")[0]
            if top == "gwsss_fast":
                # `from gwsss_fast import __version__` names the package itself, which imports the models.
                if room_of(target) not in ALLOWED[room] | {room} | ({"__init__"} if room in COMMANDS else set()):
                    found.append(f"{where}:{line}: {room} imports {target}")
            elif top in OUTSIDE or (top not in sys.stdlib_module_names and top not in ONLY_EXTERNAL.get(room, {top})):
                found.append(f"{where}:{line}: {room} imports {target}")
    return found


def source_files(root: Path) -> list[Path]:
    folders = ("gwsss_fast", "kernels", "tests", "benchmarks", "csrc")
    suffixes = (".py", ".cpp", ".cu", ".cuh", ".h", ".hpp")
    files = [path for folder in folders for path in (root / folder).rglob("*") if path.suffix in suffixes]
    return sorted([*files, *root.glob("*.py")])


def length_violations(root: Path) -> list[str]:
    found = []
    for path in source_files(root):
        where = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > MAX_FILE_LINES:
            found.append(f"{where}: {lines} lines")
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(text, filename=str(path))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{where}:{node.lineno}: {node.name} has {length} lines")
    return found


def test_imports_point_down_only() -> None:
    assert package_files(ROOT)
    violations = import_violations(ROOT)
    assert not violations, "\n".join(violations)


def test_files_and_functions_stay_short() -> None:
    violations = length_violations(ROOT)
    assert not violations, "\n".join(violations)


def test_the_table_has_no_cycle() -> None:
    """Outside the commands, following allowed imports never leads back."""

    def reach(room: str, path: tuple[str, ...]) -> None:
        assert room not in path, " -> ".join((*path, room))
        for other in ALLOWED[room]:
            reach(other, (*path, room))

    for room in ALLOWED.keys() - COMMANDS:
        reach(room, ())


@pytest.mark.parametrize(
    ("file", "source", "caught"),
    [
        ("gwsss_fast/ops/x.py", "from gwsss_fast.layers.attention import A", True),
        ("gwsss_fast/ops/x.py", "def f():\n    from gwsss_fast import layers", True),
        ("gwsss_fast/ops/x.py", "from ..models import weights", True),
        ("gwsss_fast/ops/x.py", "from .. import models", True),
        ("gwsss_fast/ops/x.py", "import importlib\nimportlib.import_module('gwsss_fast.models')", True),
        ("gwsss_fast/ops/x.py", "from gwsss_fast import __version__", True),
        ("gwsss_fast/ops/x.py", "from gwsss_fast import reference\nfrom .dispatch import f\nimport numpy", False),
        ("gwsss_fast/data/x.py", "if TYPE_CHECKING:\n    import gwsss_fast.models.weights as w", True),
        ("gwsss_fast/evaluation/x.py", "import torch\nfrom gwsss_fast.labels import maps", True),
        ("gwsss_fast/evaluation/__init__.py", "from .segmentation import f\nfrom ..errors import GwsssError", False),
        ("gwsss_fast/reference/x.py", "import numpy", True),
        ("gwsss_fast/reference/x.py", "import torch\nimport math\nfrom torch.nn import functional as F", False),
        ("gwsss_fast/labels/x.py", "from gwsss_fast.models import weights\nfrom gwsss_fast import data", False),
        ("gwsss_fast/labels/x.py", "from gwsss_fast import train", True),
        ("gwsss_fast/train.py", "from gwsss_fast import __version__, cam\nfrom gwsss_fast.labels import maps", False),
        ("kernels/x.py", "import torch", True),
        ("kernels/x.py", "import triton.language as tl\nfrom gwsss_fast.kernels import common", False),
        ("gwsss_fast/report/x.py", "from benchmarks import records", True),
        ("gwsss_fast/attic/x.py", "", True),
    ],
)
def test_the_import_check_sees(tmp_path: Path, file: str, source: str, caught: bool) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert bool(import_violations(tmp_path)) == caught


def test_the_length_check_sees(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    path = tmp_path / "kernels" / "x.py"
    path.write_text("def f():\n" + "    pass\n" * 59 + "\n" * 340)
    assert not length_violations(tmp_path)
    path.write_text("def f():\n" + "    pass\n" * 60 + "\n" * 340)
    assert len(length_violations(tmp_path)) == 2
