"""Registers an operation's backend in the native library, which is built and loaded when it is first needed."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from gwsss_fast.native import library
from gwsss_fast.ops import dispatch


def register(operation: str, backend: str) -> None:
    """Register `native/<operation>.py`'s functions `<operation>`, `<operation>_backward` and `refuse`.

    backend: "cpp", or "cuda" for the same functions on a GPU; these have `refuse_on_gpu` in place of `refuse`.
    Its `only_on_request`, if it has one, says for which tensors another backend is faster. All but the first two are
    traced by torch.compile and torch.export: sizes may be symbols there, and asking whether one is small would fix it.
    """
    module = import_module(f"gwsss_fast.native.{operation}")
    on_gpu = backend == "cuda"
    prepare = library.prepare_on_gpu if on_gpu else library.prepare

    def call(name: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            reason = prepare()
            dispatch.check(reason is None, f"{operation}: {reason}")
            return getattr(module, name)(*arguments, **options)

        return run

    dispatch.register(
        operation,
        backend,
        dispatch.Kernel(
            call(operation),
            call(f"{operation}_backward"),
            refuse=module.refuse_on_gpu if on_gpu else module.refuse,
            missing=library.missing_on_gpu if on_gpu else library.missing,
            only_on_request=getattr(module, "only_on_request", lambda *tensors: False),
            pending=library.pending,
            prepare=prepare,
        ),
    )
