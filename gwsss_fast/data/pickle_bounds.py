"""Pickles of a few bytes that unfold without end, told from others without loading them."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

_MOST = 1000  # values in a tuple, those of the tuples in it counted each time they occur
_MARK = pickletools.markobject


def check_bounds(pickled: bytes) -> None:
    """Raises UnpicklingError when loading would take far more memory or time than the bytes suggest.

    - The unpickler keeps its memo in a list as long as the largest number in it, which a file is free to choose.
    - A tuple of two of a tuple of two of ...: hashing it, as the key of a dictionary, takes as long as printing it.
    Whatever else is wrong with the bytes raises what `pickletools` raises, almost anything.
    """
    stack: list[int] = []  # of each value, how many values it holds when it is a tuple, else 1; 0 for a mark
    memo: dict[int, int] = {}
    for opcode, value, _ in pickletools.genops(pickled):
        name, argument = opcode.name, value if isinstance(value, int) else None
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(memo) if argument is None else argument
            if number > len(pickled):
                raise pickle.UnpicklingError(f"it numbers a value {number}, which is refused")
            memo[number] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument or 0])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            held = _pop(stack, opcode.stack_before)
            if "TUPLE" not in name:
                held = 0
            if held > _MOST:
                raise pickle.UnpicklingError(f"it nests tuples of {held} values, which is refused")
            stack += [0 if kind is _MARK else 1 + held for kind in opcode.stack_after]


def _pop(stack: list[int], before: list[Any]) -> int:
    """Take what an operation takes off the stack; returns the sum."""
    if _MARK not in before:
        return sum(stack.pop() for _ in before)
    held = 0
    while item := stack.pop():
        held += item
    return held + sum(stack.pop() for _ in range(before.index(_MARK)))
