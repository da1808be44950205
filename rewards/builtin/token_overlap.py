"""How many words do the answer and the reference share? For answers that are phrases, and for captions."""

from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz.distance import LCSseq

from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.reading.references import references, written
from rewards.reading.short_answers import final_and_whole, squad_tokens
from rewards.reading.units import words
from rewards.reading.wording import denied, named_to_deny
from rewards.sdk import reward

#: Captions and summaries beyond this many words are not compared.
MAX_WORDS = 2000

Tokens = Sequence[str]


@reward("token_f1", written=written)
def token_f1(x: RewardInput) -> Score | None:
    """Score the overlap of words between the final answer and the closest reference (F1 of SQuAD).

    Formula: max over references g of 2·P·R / (P + R), with c the number of tokens that both have (as often as
    in the one that has fewer), P = c / tokens of a, R = c / tokens of g. Tokens
    are words in small letters without punctuation and articles; each Chinese or Japanese character is one.
    a is the final answer or the whole answer, whichever is closer; 0 where it names g only to deny it.

    Range: [0, 1]. Source: Rajpurkar et al. 2016, SQuAD (arXiv 1606.05250), and its `evaluate-v1.1.py`; tokens
    of Chinese as in CMRC 2018 (arXiv 1810.07366), whose own F1 takes the longest common substring instead.

    Args:
        x: `ground_truth` is a text or number, or a list of them; None means that this does not apply.

    Raises:
        ValueError: If the ground truth is empty, has only articles and punctuation, or is of another type.
    """
    return _closest(x, _bag_f1)


@reward("squad_exact_match", written=written)
def squad_exact_match(x: RewardInput) -> Score | None:
    """Score 1 if the final answer is a reference up to case, punctuation and articles, else 0.

    Formula: max over references g of [tokens of a = tokens of g], tokens and a as for `token_f1`.

    Range: {0, 1}. Source: exact match of SQuAD, as for `token_f1`; `exact_match` compares all characters.

    Args:
        x: `ground_truth` is a text or number, or a list of them; None means that this does not apply.

    Raises:
        ValueError: If the ground truth is empty, has only articles and punctuation, or is of another type.
    """
    return _closest(x, lambda gold, answer: float(gold == answer))


@reward("rouge_l", written=references)
def rouge_l(x: RewardInput) -> Score | None:
    """Score the longest common subsequence of words of a caption or summary with the closest reference.

    Formula: max over references g of 2·P·R / (P + R), with l the length of the longest common subsequence of
    words, P = l / words of a, R = l / words of g. Words are compared in small letters; a is the whole answer
    after the thinking, up to 2,000 words. More scores 0.

    Range: [0, 1]. Source: Lin 2004, ROUGE-L, as F1 without stemming in Google's `rouge_score`, which leaves
    out all that is not a-z and 0-9; here words of every script count, Chinese by character.

    Args:
        x: `ground_truth` is a text, or a list of them; None means that this does not apply.

    Raises:
        ValueError: If the ground truth is empty or of another type.
    """
    if x.ground_truth is None:
        return None
    answer = words(without_thinking(x.answer).lower()[: 100 * MAX_WORDS])
    if not 0 < len(answer) <= MAX_WORDS:
        return Score(0.0, note=f"{len(answer)} words")
    golds = [words(text.lower())[:MAX_WORDS] for text in references(x.ground_truth)]
    return Score(max(2 * LCSseq.similarity(answer, gold) / (len(answer) + len(gold)) for gold in golds))


def _closest(x: RewardInput, similarity: Callable[[Tokens, Tokens], float]) -> Score | None:
    """Find the best similarity over references and readings of the answer."""
    if x.ground_truth is None:
        return None
    texts = references(x.ground_truth)
    golds = [squad_tokens(text) for text in texts]
    if not all(golds):
        raise ValueError("ground_truth has only articles and punctuation; take exact_match for such answers")
    answers = final_and_whole(x.answer)
    found = [squad_tokens(text) for text in answers]
    if not any(found):
        return Score(0.0, note="no answer")
    if not any(map(denied, texts)) and any(named_to_deny(answers[0], text) for text in texts):
        return Score(0.0, note=f"denied: {answers[0][:80]!r}")
    best, read = max((similarity(gold, answer), answer) for gold in golds for answer in found)
    return Score(best, note=f"read {' '.join(read)[:80]!r}")


def _bag_f1(gold: Tokens, answer: Tokens) -> float:
    common = (Counter(gold) & Counter(answer)).total()
    return 2 * common / (len(gold) + len(answer))
