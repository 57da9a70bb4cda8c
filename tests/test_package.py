"""What an installation holds, that building it needs no torch, and the names that users import."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests", "benchmarks", "docs")
# Used where they are installed; the package must import without any of them.
OPTIONAL = (
    *("triton", "timm", "pycocotools", "apex", "onnx", "onnxscript", "onnxruntime", "torch_tensorrt", "tensorrt"),
    *("tensorrt_rtx", "pydensecrf", "sklearn", "hypothesis", "pytest", "cv2", "fastapi", "uvicorn"),
    "python_multipart",
)
IMPORTS = (
    "import gwsss_fast.GroupGNN\nassert gwsss_fast.GroupGNN(in_channels=512, num_classes=20).num_classes == 20",
    "from gwsss_fast import GroupGNN\nassert GroupGNN(8, 2).num_classes == 2",
    "from gwsss_fast.GroupGNN import GroupGNN\nassert GroupGNN(8, 3).num_classes == 3",
)


def run(*arguments: str | Path, path: Path | None = None, folder: Path | None = None) -> str:
    """Standard output of a fresh interpreter; `path` comes first on its sys.path. Fails with its error output."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=folder or ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is needed to build, so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("source") / "gwsss_fast"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return folder


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose torch, triton and numpy cannot be imported."""
    folder = tmp_path_factory.mktemp("poison")
    for name in ("torch", "triton", "numpy"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('the build imports {name}')\n")
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, poison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", folder, source, path=poison, folder=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_poison_works(poison: Path) -> None:
    code = "try:\n    import torch\nexcept RuntimeError as error:\n    print(error)"
    assert run("-c", code, path=poison) == "the build imports torch\n"


def test_the_wheel_holds_every_file_of_the_package(unpacked: Path) -> None:
    code = {path for path in (ROOT / "gwsss_fast").rglob("*.py")}
    data = {
        path
        for pattern in ("presets/**/*.yaml", "*/templates/*", "launch/tuned/*.json")
        for path in (ROOT / "gwsss_fast").glob(pattern)
    }
    expected = {path.relative_to(ROOT) for path in (*code, *data)} | {Path("gwsss_fast/py.typed")}
    native = [ROOT / "CMakeLists.txt", *(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    beside = [*(ROOT / "kernels").rglob("*.py"), *native]  # lie beside the package, and are installed inside it
    expected |= {Path("gwsss_fast") / path.relative_to(ROOT) for path in beside}
    assert {"paper.yaml", "report.html", "attention.js", "page.html", "page.js"} <= {path.name for path in expected}
    assert Path("gwsss_fast/kernels/__init__.py") in expected
    packed = {path.relative_to(unpacked) for path in (unpacked / "gwsss_fast").rglob("*") if path.is_file()}
    assert packed == expected


def test_the_wheel_is_for_any_python_and_platform(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_says_what_it_needs_and_brings(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    metadata = (info / "METADATA").read_text(encoding="utf-8")
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}
    assert {"coco", "export", "tensorrt", "serve", "tensorrt-rtx", "timm", "test"} <= extras
    assert "Requires-Dist: torch<2.15,>=2.11" in metadata
    assert (ROOT / "README.md").read_text(encoding="utf-8") in metadata
    assert "gwsss-fast = gwsss_fast.cli:main" in (info / "entry_points.txt").read_text()
    assert list(info.rglob("LICENSE"))


def test_the_installed_package_works(unpacked: Path, tmp_path: Path) -> None:
    """Outside the checkout: imports, presets and templates come from the wheel."""
    code = (
        "import gwsss_fast, gwsss_fast.kernels, gwsss_fast.cli\n"
        "from gwsss_fast.config import load_config, preset_names\n"
        "from gwsss_fast.report import build_report\n"
        "[load_config(name) for name in preset_names()]\n"
        "print(gwsss_fast.__file__, gwsss_fast.kernels.__file__, len(preset_names()))"
    )
    package, kernels, presets = run("-c", code, path=unpacked, folder=tmp_path).split()
    assert Path(package).is_relative_to(unpacked)
    assert Path(kernels).is_relative_to(unpacked)
    assert int(presets) == len(list((ROOT / "gwsss_fast" / "presets").rglob("*.yaml")))


def test_the_installed_package_trains_without_any_compiler(unpacked: Path, shared_voc: Path, tmp_path: Path) -> None:
    """No program on PATH, none that CXX names: the reference computes the dense CRF, and nothing is said twice."""
    fast = [
        *("--max-steps", "1", "--classifier.size", "32", "--epochs", "1", "--groups", "1", "--group-size", "2"),
        *("--cam.scales", "1", "--pseudo.crf", "mcis", "--segmenter.crop", "33", "--segmenter.batch", "2"),
        *("--workers", "0", "--data", str(shared_voc), "--output", str(tmp_path / "run")),
    ]
    code = (
        "import os, sys\n"
        f"os.environ.update(PATH={str(tmp_path)!r}, CXX='none', GWSSS_CACHE={str(tmp_path / 'cache')!r})\n"
        "import gwsss_fast\n"
        "from gwsss_fast import ops, train\n"
        "from gwsss_fast.native import build\n"
        "build._which = lambda program: None\n"
        "state = ops.available()['dense_crf']['cpp']\n"
        "assert not state and 'CXX=none is not there; install' in str(state), state\n"
        f"assert train.main({fast!r}) == 0\n"
        "assert not os.path.exists(os.environ['GWSSS_CACHE'] + '/native')\n"
        "print(gwsss_fast.__file__)"
    )
    assert Path(run("-c", code, path=unpacked, folder=tmp_path).splitlines()[-1]).is_relative_to(unpacked)
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_sources_in_an_installed_package_are_found(unpacked: Path, tmp_path: Path) -> None:
    code = "from gwsss_fast.native import build\nprint(build.source_folder(), build.source_hash(build.source_folder()))"
    folder, found = run("-c", code, path=unpacked, folder=tmp_path).split()
    assert Path(folder) == unpacked / "gwsss_fast"
    assert found == run("-c", code).split()[1]


def test_an_editable_install_leads_to_the_sources(source: Path, poison: Path, tmp_path: Path) -> None:
    """`pip install -e .` without torch: its wheel maps the package, and kernels/ as gwsss_fast.kernels, to the copy."""
    build = "import sys; from setuptools.build_meta import build_editable; build_editable(sys.argv[1])"
    run("-c", build, tmp_path, path=poison, folder=source)
    (editable,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(editable) as archive:
        archive.extractall(tmp_path / "site")
    # -I and -S leave PYTHONPATH and site-packages out, so that only this installation can be found. Looking for a
    # submodule imports its package, which needs torch: an empty package of the same path stands in for it.
    code = (
        "import importlib.util, site, sys, types\n"
        f"site.addsitedir({str(tmp_path / 'site')!r})\n"
        "found = importlib.util.find_spec('gwsss_fast')\n"
        "package = sys.modules['gwsss_fast'] = types.ModuleType('gwsss_fast')\n"
        "package.__path__ = found.submodule_search_locations\n"
        "print(found.origin, importlib.util.find_spec('gwsss_fast.kernels').origin, sep='\\n')"
    )
    package, kernels = run("-I", "-S", "-c", code, folder=tmp_path).splitlines()
    assert Path(package) == source / "gwsss_fast" / "__init__.py"
    assert Path(kernels) == source / "kernels" / "__init__.py"


@pytest.mark.parametrize("order", [(0, 1, 2, 1, 0), (1, 2, 0, 2, 1), (2, 0, 1, 0, 2)], ids=str)
def test_the_module_is_imported_by_any_form_in_any_order(order: tuple[int, ...]) -> None:
    """Each form first once, and each after each other."""
    same = "import gwsss_fast\nassert gwsss_fast.GroupGNN is GroupGNN and isinstance(GroupGNN, type)"
    run("-c", "\n".join([*(IMPORTS[number] for number in order), same]))


def test_the_public_names_exist() -> None:
    code = (
        "import gwsss_fast\n"
        "names = [gwsss_fast.GroupGNN, gwsss_fast.GroupOutput, gwsss_fast.GroupClassifier, gwsss_fast.DeepLabV2,\n"
        "    gwsss_fast.Predictor, gwsss_fast.group_loss, gwsss_fast.evaluation.max_box_acc,\n"
        "    gwsss_fast.evaluation.segmentation_scores]\n"
        "names += [getattr(gwsss_fast.ops, name) for name in ('co_attention', 'attention', 'graph_dropout',\n"
        "    'conv_gru', 'edge_readout', 'dense_crf', 'backend', 'available')]\n"
        "assert all(map(callable, names))\n"
        "assert not set(gwsss_fast.__all__) - set(dir(gwsss_fast)) - {'DeepLabV2', 'Predictor'}\n"
        "from gwsss_fast import *\n"
        "assert DeepLabV2 is gwsss_fast.DeepLabV2 and Predictor is gwsss_fast.Predictor\n"
        "import gwsss_fast.labels.crf\n"
        "assert {'psa', 'irn', 'deeplab', 'mcis', 'toco'} == set(gwsss_fast.labels.crf.PRESETS)"
    )
    run("-c", code)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import gwsss_fast

    with pytest.raises(AttributeError, match="no attribute 'GroupGMM'"):
        gwsss_fast.GroupGMM  # noqa: B018


def test_importing_everything_needs_nothing_optional() -> None:
    """Every module of the package, in an interpreter where the optional packages cannot be imported.

    But those that start Triton kernels, which are imported when one is first started.
    """
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "gwsss_fast").rglob("*.py"))
        if path.name != "__main__.py" and "from gwsss_fast.kernels import" not in path.read_text(encoding="utf-8")
    ]
    code = f"import sys, importlib\nsys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
    run("-c", code + f"for name in {modules!r}: importlib.import_module(name)")


def test_the_bare_import_stays_light() -> None:
    heavy = (*OPTIONAL, "torchvision", "matplotlib", "tyro", "tensorboard", "jinja2")
    code = f"import sys, gwsss_fast\nprint([name for name in {heavy!r} if name in sys.modules])"
    assert run("-c", code) == "[]\n"
