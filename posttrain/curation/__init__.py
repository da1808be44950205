"""Curation: rows pass filters in order; what each one dropped, and why, stays to be looked at."""
