"""Scoring in processes that can be killed, with deadlines; `scorer.Scorer` is the way in."""
