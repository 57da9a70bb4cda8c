"""Packages are named here because `kernels/` lives beside the package and is installed inside it."""

from setuptools import find_packages, setup

packages = [*find_packages(include=["gwsss_fast", "gwsss_fast.*"]), "gwsss_fast.kernels"]
setup(
    packages=packages,
    package_dir={"gwsss_fast": "gwsss_fast", "gwsss_fast.kernels": "kernels"},
    package_data={"gwsss_fast": ["presets/**/*.yaml", "report/templates/*", "launch/tuned/*.json", "py.typed"]},
)
