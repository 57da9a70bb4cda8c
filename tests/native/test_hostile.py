"""Arguments that make no sense: an exception that names them, and a process that lives on.

In a process of its own, which a crash would end: each attempt prints a line.
"""

from pathlib import Path

import pytest

from gwsss_fast.native import library
from tests.processes import python

CODE = """
import torch
from gwsss_fast import ops
from gwsss_fast.native import library

assert library.prepare() is None
raw = torch.ops.gwsss_fast_native
widths = dict(sxy_gaussian=3.0, w_gaussian=3.0, sxy_bilateral=80.0, srgb=13.0, w_bilateral=10.0, iterations=2)

def attempt(name, function, prob=None, image=None, **changed):
    prob = torch.full((3, 6, 7), 1 / 3) if prob is None else prob
    image = torch.zeros((*prob.shape[1:], 3), dtype=torch.uint8) if image is None else image
    try:
        result = function(prob, image, **{**widths, **changed})
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
    else:
        print(f"{name}: fine {tuple(result.shape)} {bool(torch.isfinite(result).all())}", flush=True)

nan = float("nan")
with_nan = torch.full((3, 6, 7), 1 / 3)
with_nan[1, 2, 3] = nan
huge = torch.zeros(1).expand(2, 1 << 20, 1 << 20)
large_image = torch.zeros(1, dtype=torch.uint8).expand(1 << 20, 1 << 20, 3)
def together(function):
    return lambda prob, image, **options: function([prob, prob], [image, image], **options)[1]

kinds = {
    "public": ops.dense_crf, "raw": raw.dense_crf,
    "public images": together(ops.dense_crf_images), "raw images": together(raw.dense_crf_images),
}
for kind, function in kinds.items():
    def case(name, **arguments):
        attempt(f"{kind} {name}", function, **arguments)
    case("no labels", prob=torch.zeros(0, 6, 7))
    case("empty", prob=torch.zeros(3, 0, 7))
    case("nan", prob=with_nan)
    case("huge", prob=huge, image=large_image)
    case("integer", prob=torch.zeros(3, 6, 7, dtype=torch.int64))
    case("flat", prob=torch.zeros(6, 7), image=torch.zeros(6, 7, 3, dtype=torch.uint8))
    case("float image", image=torch.zeros(6, 7, 3))
    case("short image", image=torch.zeros(5, 7, 3, dtype=torch.uint8))
    case("elsewhere", prob=torch.zeros(3, 6, 7, device="meta"))
    case("image elsewhere", image=torch.zeros(6, 7, 3, dtype=torch.uint8, device="meta"))
    case("transposed", prob=torch.full((7, 6, 3), 1 / 3).permute(2, 1, 0))
    case("infinite", prob=torch.full((3, 6, 7), float("inf")))
    for name in ("sxy_gaussian", "sxy_bilateral", "srgb"):
        for value in (0.0, -1.0, nan, float("inf")):
            case(f"{name} {value}", **{name: value})
        case(f"{name} tiny", **{name: 1e-30})
    for name in ("w_gaussian", "w_bilateral"):
        case(f"{name} nan", **{name: nan})
        case(f"{name} large", **{name: 1e30})
        case(f"{name} negative", **{name: -5.0})
    case("iterations -1", iterations=-1)
    if kind.startswith("public"):
        for value in (2.5, nan, 10**9, 2**70):
            case(f"iterations {value}", iterations=value)
        case("sxy_gaussian 1e-50", sxy_gaussian=1e-50)
        case("srgb 1e50", srgb=1e50)
        case("w_gaussian 1e300", w_gaussian=1e300)
grad = torch.zeros(2, 6, 7)
attempt("raw gradient", lambda p, i, **o: raw.dense_crf_backward(grad, p, i, **o))
attempt("raw gradient nan", lambda p, i, **o: raw.dense_crf_backward(torch.full((3, 6, 7), nan), p, i, **o))
print("alive")
"""
KINDS = ("public", "raw", "public images", "raw images")
NAMED = {
    "no labels": "prob",
    "nan": "prob",
    "integer": "prob",
    "flat": "prob",
    "float image": "image",
    "short image": "image",
    "iterations -1": "iterations",
    "w_gaussian nan": "w_gaussian",
    "w_bilateral nan": "w_bilateral",
    "huge": "prob",
    **{
        f"{name} {value}": name
        for name in ("sxy_gaussian", "sxy_bilateral", "srgb")
        for value in (0.0, -1.0, "nan", "inf")
    },
    "sxy_gaussian tiny": "sxy_gaussian",
    "sxy_bilateral tiny": "sxy_bilateral",
    "srgb tiny": "srgb",
}
OF_PUBLIC = {
    **{f"iterations {value}": "iterations" for value in (2.5, "nan", 10**9, 2**70)},
    "sxy_gaussian 1e-50": "sxy_gaussian",
    "srgb 1e50": "srgb",
    "w_gaussian 1e300": "w_gaussian",
}
FINE = ("empty", "infinite", "w_gaussian large", "w_bilateral large", "w_gaussian negative", "w_bilateral negative")


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    reason = library.prepare()
    if reason is not None:
        pytest.skip(reason)
    done = python(CODE)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["alive"]), done.stdout + done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_an_exception_that_names_the_argument(told: dict[str, str], kind: str) -> None:
    public = kind.startswith("public")
    for case, argument in {**NAMED, **(OF_PUBLIC if public else {})}.items():
        answer = told[f"{kind} {case}"]
        assert ("GwsssError: " if public else "Error: ") in answer, (case, answer)
        assert argument in answer, (case, answer)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_but_sound_arguments_are_computed(told: dict[str, str], kind: str) -> None:
    for case in FINE:
        assert told[f"{kind} {case}"].startswith("fine"), (case, told[f"{kind} {case}"])
    assert told["public transposed"] == "fine (3, 6, 7) True"
    assert "prob must be contiguous" in told["raw transposed"]


def test_other_devices_are_refused(told: dict[str, str]) -> None:
    assert "image is on meta but prob is on cpu" in told["public image elsewhere"]
    assert all("Error" in told[f"raw {case}"] for case in ("elsewhere", "image elsewhere"))


def test_gradients_must_fit(told: dict[str, str]) -> None:
    assert "grad must be like prob" in told["raw gradient"]
    assert told["raw gradient nan"].startswith("fine")


def test_a_forced_backend_says_why_it_cannot(tmp_path: Path) -> None:
    code = (
        "from gwsss_fast import ops\n"
        "try:\n    ops.backend('cpp').__enter__()\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    done = python(code, GWSSS_NATIVE="0", GWSSS_CACHE=str(tmp_path))
    assert "GWSSS_NATIVE=0" in done.stdout, done.stderr
