"""Arguments of the raw attention operators that make no sense: an exception that names them. And how much memory a
long softmax takes. In a process of its own, which a crash would end."""

from __future__ import annotations

import pytest

from tests.native.edges import need_library, printed

CODE = """
import resource
import torch
from gwsss_fast import ops
from gwsss_fast.native import library
assert library.prepare() is None
raw = torch.ops.gwsss_fast_native

def attempt(name, function, *arguments):
    try:
        result = function(*arguments)
    except Exception as error:
        print(f"{name}: {type(error).__name__} {str(error).splitlines()[0]}", flush=True)
    else:
        print(f"{name}: fine {tuple(result[0].shape)}", flush=True)

def cases(kind, names, axes, function, tensors, *rest):
    attempt(f"{kind} fine", function, *tensors, *rest)
    huge = torch.zeros(1).expand(*([1 << 15] * axes))
    for at, name in enumerate(names):
        shape = tensors[at].shape
        changes = {
            "double": tensors[at].double(),
            "half": tensors[at].half(),
            "integer": tensors[at].long(),
            "elsewhere": tensors[at].to("meta"),
            "flat": tensors[at][0],
            "short": tensors[at][..., :-1, :].contiguous(),
            "loose": tensors[at].transpose(-1, -2).contiguous().transpose(-1, -2),
            "huge": huge,
            "other type": tensors[at].bfloat16(),
        }
        if name in ("p", "q", "g", "v"):
            changes["no channels"] = tensors[at][..., :0].contiguous()
        for what, changed in changes.items():
            attempt(f"{kind} {name} {what}", function, *tensors[:at], changed, *tensors[at + 1 :], *rest)

def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))

p, g = draw(2, 3, 7, 5), draw(2, 3, 7, 6)
cases("co", ("p", "q", "g"), 4, raw.co_attention, [p, p.clone(), g], True)
lse = torch.zeros(2, 3, 3, 7)
cases("co back", ("grad", "p", "q", "g"), 4, lambda *x: raw.co_attention_backward(*x[:4], lse, True), [g, p, p, g])
attempt("co back row_lse short", raw.co_attention_backward, g, p, p, g, lse[:, :2].contiguous(), True)
attempt("co back row_lse half", raw.co_attention_backward, g, p, p, g, lse.half(), True)
attempt("co back row_lse finite", raw.co_attention_backward, g, p, p, g, lse * float("nan"), False)
q, v = p[0], g[0]
cases("at", ("q", "k", "v", "residual", "message"), 3, raw.attention, [q, q.clone(), v, v, v], 0.5)
cases("at back", ("grad", "q", "k", "v"), 3, lambda *x: raw.attention_backward(*x, lse[0, 0]), [v, q, q, v])
attempt("at back row_lse short", raw.attention_backward, v, q, q, v, lse[0, 0, :2].contiguous())

# 9,000 positions: a matrix of all scores would take 324 MB, or 162 in 16 bits. Those first: the peak never falls.
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

torch.set_num_threads(2)
for dtype in (torch.bfloat16, torch.float32):
    small = [x.requires_grad_() for x in (draw(1, 2, 50, 4), draw(1, 2, 50, 4), draw(1, 2, 50, 8))]
    long = [draw(1, 2, 9000, width).to(dtype).requires_grad_() for width in (4, 4, 8)]
    with ops.backend("cpp"):
        ops.co_attention(*small).sum().backward()
        before = peak()
        ops.co_attention(*long).sum().backward()
        ops.attention(*long).sum().backward()
    print(f"memory {dtype}: {peak() - before}")
print("alive")
"""


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    need_library()
    return printed(CODE)


def test_each_is_an_exception_that_names_the_argument(told: dict[str, str]) -> None:
    cases = {name: text for name, text in told.items() if not name.startswith("memory")}
    assert len(cases) > 140
    for case, answer in cases.items():
        if case.endswith("fine") or case == "co back row_lse finite":
            assert answer.startswith("fine"), (case, answer)
        elif "elsewhere" in case:
            assert "Error" in answer, (case, answer)  # the dispatcher may speak first
        else:
            kind, *words = case.split()
            allowed = {words[1] if words[0] == "back" else words[0]}
            if any(what in case for what in ("other type", "short", "no channels")):
                # It may show at the argument that this one has to agree with.
                allowed |= {"co": {"p", "q", "g"}, "at": {"q", "k", "v"}}[kind]
            assert "Error" in answer, (case, answer)
            assert any(f": {name} " in answer for name in allowed), (case, answer)


def test_memory_grows_with_positions_not_with_their_square(told: dict[str, str]) -> None:
    """A matrix of all scores would add its 162 MB in 16 bits, and then at least 324 - 140 in float32."""
    assert int(told["memory torch.bfloat16"]) < 140
    assert int(told["memory torch.float32"]) < 150
