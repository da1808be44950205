"""See a run: its directory as one static, self-contained page."""

from posttrain.viewer.report import ReportError, write_report

__all__ = ["ReportError", "write_report"]
