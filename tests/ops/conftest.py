"""Float32 products as tf32, and a faster interpreter of Triton, which takes most of these tests' time."""

import contextlib
from collections.abc import Iterator

import pytest

from benchmarks.gpu import interpreter, launches

with contextlib.suppress(ImportError):
    interpreter.search_less()


@pytest.fixture
def tf32() -> Iterator[None]:
    """float32 takes tensor cores' kernels where tf32 is allowed; the interpreter computes their products in float32."""
    with launches.tf32(True):
        yield
