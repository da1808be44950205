"""Curation: rows pass filters in order; what each one dropped, and why, stays to be looked at."""

from posttrain.curation.funnel import CurationReport, StepCount
from posttrain.curation.outcomes import CurationError
from posttrain.curation.pipeline import curate

__all__ = ["CurationError", "CurationReport", "StepCount", "curate"]
