"""The HTML report of a run."""

from gwsss_fast.report.build import build_report

__all__ = ["build_report"]
