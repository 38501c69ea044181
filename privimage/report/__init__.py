"""The report of a run: one page that a privacy officer can read, made of what the run released."""

from privimage.report.page import write_report

__all__ = ["write_report"]
