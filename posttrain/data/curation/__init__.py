"""Curation: rows pass filters in order; what each one dropped, and why, stays to be looked at."""

from posttrain.data.curation.funnel import CurationReport, StepCount
from posttrain.data.curation.outcomes import CurationError
from posttrain.data.curation.pipeline import curate

__all__ = ["CurationError", "CurationReport", "StepCount", "curate"]
