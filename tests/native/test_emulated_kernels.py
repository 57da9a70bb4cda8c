"""The kernels in CUDA as they are, run on the CPU by an emulation: their blocks, clusters, lanes and barriers.

What it cannot show: races that a fair order of threads hides, and how fast they are.
"""

import hashlib
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gwsss_fast.files import atomic_path, cache_folder
from gwsss_fast.native import build
from tests.processes import python

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent / "emulation"
CSRC = ROOT / "csrc"
# (compute capability, bytes of shared memory, PTX): two passes; several blocks a node; whole nodes where they fit; two
# passes on a newer GPU that was given PTX for an older one, for which the kernel of the clusters is empty
GPUS = {
    "Ampere": ("8", "101376", "80"),
    "small": ("9", "4096", "90"),
    "Hopper": ("9", "232448", "90"),
    "older code": ("9", "232448", "80"),
}


def sources() -> list[Path]:
    """The kernels and what orders them, and what both take from the CPU's part."""
    of_cpu = [path for path in sorted((CSRC / "cpu").glob("*.cpp")) if path.name != "kernels.cpp"]
    of_cpu = [path for path in of_cpu if "STABLE_TORCH_LIBRARY" not in path.read_text(encoding="utf-8")]
    return [
        HERE / "emulation.cpp",
        *sorted((CSRC / "cuda").glob("*.cpp")),
        *sorted((CSRC / "cuda").glob("*.cu")),
        *of_cpu,
    ]


def compile_library(compiler: str, library: Path) -> None:
    torch = build.torch_folder()
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DUSE_CUDA", "-DGWSSS_EMULATED"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{HERE}", f"-I{CSRC}", f"-I{CSRC / 'include'}"]
    flags += ["-isystem", str(torch / "include")]

    def compile_one(source: Path, folder: str) -> str:
        built = Path(folder) / f"{source.parent.name}_{source.name}.o"
        level = "-O1" if source.suffix == ".cu" else "-O0"
        command = [compiler, *flags, level, "-x", "c++", "-c", str(source), "-o", str(built)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
        return str(built)

    with ThreadPoolExecutor(build.jobs(cuda=False)) as pool, tempfile.TemporaryDirectory() as folder:
        objects = list(pool.map(lambda source: compile_one(source, folder), sources()))
        link(compiler, objects, library)


def link(compiler: str, objects: list[str], library: Path) -> None:
    torch = build.torch_folder()
    with atomic_path(library) as temporary:
        libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}", "-pthread"]
        command = [compiler, "-shared", *objects, *libraries, "-o", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]


@pytest.fixture(scope="module")
def library() -> Path:
    """Built once for each state of the sources."""
    try:
        compiler = build.find_tools(ROOT, cuda=False).compiler
    except build.BuildError as error:
        pytest.skip(str(error))
    digest = hashlib.sha256(f"{build.source_hash(ROOT)} {build.torch_folder()} {compiler}".encode())
    for path in sorted(HERE.iterdir()):
        if path.is_file():
            digest.update(path.read_bytes())
    found = cache_folder() / "emulated" / f"{digest.hexdigest()[:16]}.so"
    if not found.is_file():
        compile_library(compiler, found)
    return found


def check(library: Path, case: str, gpu: str) -> None:
    names = ("EMULATED_CAPABILITY", "EMULATED_SHARED", "EMULATED_PTX")
    settings = dict(zip(names, GPUS[gpu], strict=True))
    done = python(f"from tests.native.emulation import checks; checks.run({str(library)!r}, {case!r})", **settings)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize("gpu", GPUS)
def test_graph_dropout(library: Path, gpu: str) -> None:
    check(library, "dropout", gpu)


def test_graph_dropout_of_rows_that_begin_anywhere(library: Path) -> None:
    check(library, "shifted", "Hopper")


def test_graph_dropout_refuses(library: Path) -> None:
    check(library, "refusals", "Hopper")


def test_dense_crf(library: Path) -> None:
    check(library, "crf", "Hopper")
