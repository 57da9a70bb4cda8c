"""Float32 products as tf32, and what makes Triton's interpreter, which takes most of these tests' time, twice as fast.

Whenever one kernel function calls another, the interpreter looks through all of `triton.language` for functions that it
has not replaced by its own. From the second call of the same function on there are none.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

with contextlib.suppress(ImportError):
    from triton.runtime import interpreter

    known: set[Any] = set()

    def call_inside_a_start(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.fn not in known:
            interpreter._patch_lang(self.fn)
            known.add(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = call_inside_a_start


@pytest.fixture
def tf32() -> Iterator[None]:
    """float32 takes tensor cores' kernels where tf32 is allowed; the interpreter computes their products in float32."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before
