"""Packages are named here because `kernels/` lives beside the package and is installed inside it.

The sources of the native library, CMakeLists.txt and csrc/, are installed too: it is built from them on first use, or
here with GWSSS_BUILD_NATIVE=1, which needs torch: `GWSSS_BUILD_NATIVE=1 pip install --no-build-isolation .`
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NATIVE = os.environ.get("GWSSS_BUILD_NATIVE") == "1"


def build_native(target: Path) -> None:
    """The native library, headers and CMake files into `target`."""
    path = ROOT / "gwsss_fast" / "native" / "build.py"
    specification = importlib.util.spec_from_file_location("gwsss_fast_native_build", path)
    build = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = build  # dataclasses look their module up
    specification.loader.exec_module(build)
    shutil.rmtree(target, ignore_errors=True)
    try:
        build.build(ROOT, build.find_tools(ROOT), target, target.parent / "prebuilt.log")
    except build.BuildError as error:
        raise SystemExit(f"GWSSS_BUILD_NATIVE=1: {error}") from None
    (target.parent / "prebuilt.log").unlink()


class BuildPackage(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the sources are found in the checkout
            target = ROOT / "gwsss_fast"
        else:
            target = Path(self.build_lib) / "gwsss_fast"
            shutil.copy2(ROOT / "CMakeLists.txt", target / "CMakeLists.txt")
            shutil.rmtree(target / "csrc", ignore_errors=True)
            shutil.copytree(ROOT / "csrc", target / "csrc")
        if NATIVE:
            build_native(target / "native" / "prebuilt")


class BuildWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """A wheel with the library is for one platform, but for any Python: it uses torch's stable C interface."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if NATIVE else (python, abi, platform)


class Package(Distribution):
    def has_ext_modules(self) -> bool:
        return NATIVE


packages = [*find_packages(include=["gwsss_fast", "gwsss_fast.*"]), "gwsss_fast.kernels"]
setup(
    packages=packages,
    package_dir={"gwsss_fast": "gwsss_fast", "gwsss_fast.kernels": "kernels"},
    package_data={"gwsss_fast": ["presets/**/*.yaml", "*/templates/*", "launch/tuned/*.json", "py.typed"]},
    cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel},
    distclass=Package,
)
