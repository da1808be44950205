"""Verdicts of a language model: one endpoint, rubrics in YAML, and rules that answers cannot talk round."""

from rewards.judge.client import Endpoint, JudgeError, ask
from rewards.judge.rubric import Aspect, Rubric, load_rubric
from rewards.judge.scoring import compare, score_answer, score_reasoning

__all__ = [
    "Aspect",
    "Endpoint",
    "JudgeError",
    "Rubric",
    "ask",
    "compare",
    "load_rubric",
    "score_answer",
    "score_reasoning",
]
