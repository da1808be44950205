"""The rewards of `bench_rl.py`: whether the answer has the word that was asked for, and how wordy it is."""

from rewards import RewardInput, reward


def mentions(answer: str, gold: str) -> float:
    """Return 1 if an answer has a word, in any case."""
    return float(gold.lower() in answer.lower())


@reward("mentions")
def mentions_gold(x: RewardInput) -> float:
    """Score 1 for an answer that has the ground truth."""
    return mentions(x.answer, str(x.ground_truth))


def variety(answer: str) -> float:
    """Return the share of an answer's characters that occur once."""
    return len(set(answer)) / max(1, len(answer))


@reward("variety")
def variety_of_answer(x: RewardInput) -> float:
    """Score an answer by its variety, which two answers hardly ever have in common."""
    return variety(x.answer)
