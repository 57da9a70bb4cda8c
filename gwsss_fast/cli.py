"""The console script `gwsss-fast <verb>`, and what all commands share: options, exit status, one clear message."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import tyro

from gwsss_fast.config import closest
from gwsss_fast.errors import GwsssError

VERBS = {
    "train": "train",
    "cam": "cam",
    "pseudo": "pseudo",
    "evaluate": "evaluate",
    "report": "report_run",
    "check-data": "check_data",
    "doctor": "doctor",
}
USAGE = f"usage: gwsss-fast VERB [OPTIONS]\n\nverbs: {', '.join(VERBS)}\n`gwsss-fast VERB --help` lists the options."
BAD_INPUT, INTERRUPTED = 2, 130
_Arguments = TypeVar("_Arguments")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `gwsss-fast VERB OPTIONS` and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else BAD_INPUT
    verb = arguments[0].replace("_", "-")
    if verb not in VERBS:
        print(f"error: unknown verb {arguments[0]!r}{closest(verb, list(VERBS))}", file=sys.stderr)
        return BAD_INPUT
    return importlib.import_module(f"gwsss_fast.{VERBS[verb]}").main(arguments[1:]) or 0


def run(body: Callable[[], None]) -> int:
    """Call `body`; bad input and a refusing disk become one line on stderr and status 2, Ctrl-C becomes 130."""
    try:
        body()
    except GwsssError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; continue with --resume", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"error: cannot read or write{where}: {error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def parse(kind: type[_Arguments], default: _Arguments, arguments: Sequence[str], prog: str, text: str) -> _Arguments:
    """Fill `kind` from the command line. `--help` prints the options and exits 0.

    Raises GwsssError with one line for an unknown option or a bad value.
    """
    stream = io.StringIO()
    try:
        with contextlib.redirect_stderr(stream):
            values = [_value(item) for item in arguments]
            return tyro.cli(kind, default=default, args=values, prog=prog, description=text)
    except SystemExit as end:
        if not end.code:
            raise
        raise GwsssError(f"{_problem(stream.getvalue(), default)} (`{prog} --help` lists the options)") from None


def option_names(values: Any, prefix: str = "") -> list[str]:
    """The long options of a (nested) dataclass of arguments; the field `config` lends its fields to its owner."""
    names: list[str] = []
    hints = get_type_hints(type(values), include_extras=True)
    for field in fields(values):
        for note in getattr(hints[field.name], "__metadata__", ()):
            names += getattr(note, "aliases", None) or ()
        value, name = getattr(values, field.name), f"{prefix}{field.name.replace('_', '-')}"
        if is_dataclass(value):
            names += option_names(value, prefix if field.name == "config" else f"{name}.")
        else:
            names.append(f"--{name}")
    return names


def _value(item: str) -> str:
    """`true`, `false` and `null` as tyro spells them."""
    return {"true": "True", "false": "False", "null": "None"}.get(item.lower(), item)


def _problem(text: str, values: Any) -> str:
    """What tyro prints in a box, as one line: the part above its rule, and the nearest option to an unknown one."""
    lines = [re.sub(r"^[│╭╰ ]+|[│╮╯ ]+$", "", line) for line in text.splitlines()[1:]]
    rule = next((i for i, line in enumerate(lines) if re.fullmatch("─+", line)), len(lines))
    problem = " ".join(line for line in lines[:rule] if line).rstrip(".")
    unknown = re.search(r"(?<=Unrecognized options: )--[^\s,=]+", problem)
    if unknown is None:
        return problem
    near = closest(unknown.group(0), option_names(values))
    return f"unknown option {unknown.group(0)}{near if 'did you mean' in near else ''}"
