"""Triton's interpreter, which runs kernels on the CPU, made twice as fast."""

from typing import Any


def search_less() -> None:
    """Whenever one kernel function calls another, the interpreter looks through all of `triton.language` for functions
    that it has not replaced by its own. From the second call of the same function on there are none."""
    from triton.runtime import interpreter

    known: set[Any] = set()

    def call_inside_a_start(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.fn not in known:
            interpreter._patch_lang(self.fn)
            known.add(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = call_inside_a_start
