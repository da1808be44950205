"""Curation: rows pass filters in order, and it stays on record which filter dropped which row, and why."""

from posttrain.curation.funnel import CurationReport, StepCount
from posttrain.curation.outcomes import CurationError
from posttrain.curation.pipeline import curate

__all__ = ["CurationError", "CurationReport", "StepCount", "curate"]
