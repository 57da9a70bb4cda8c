"""Benchmarks count the time that `suites` tells: the GPU's own, or the wall clock of one call."""

import pytest

from benchmarks.harness.suites import CLOCK


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every benchmark uses the fed clock; those of one case stand together in the report."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        group = parameters.id.rsplit("-", 1)[0] if parameters is not None else item.name
        item.add_marker(pytest.mark.benchmark(timer=CLOCK, group=group))
