"""Rewards by a language model as judge; `rewards.judge` asks it.

Rules come first. An answer that is the reference needs no judge, and one that is empty or attacks the judge
(`rewards.judge.guards`) gets the minimum without being shown to it. A judge that fails raises, so the sample
is masked.

Beside its own parameters, each reward takes the fields of `rewards.judge.Endpoint`: `model` (the judge's name
at the endpoint), `base_url` (default: the environment variable POSTTRAIN_JUDGE_URL, beside
POSTTRAIN_JUDGE_API_KEY), `timeout_s`, `max_attempts`, `concurrency`, `cache_dir`, `request` and `budget`,
which a run sets by its own `judge_budget`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from posttrain.concurrency import all_or_first_failure
from posttrain.messages import without_thinking
from posttrain.types import RewardInput, Score
from rewards.judge.client import Endpoint
from rewards.judge.guards import attack
from rewards.judge.rubric import load_rubric
from rewards.judge.scoring import compare, score_answer, score_reasoning, trusted_text
from rewards.reading.answers import normalise, readings
from rewards.reading.references import references
from rewards.sdk import group_reward, reward

T = TypeVar("T")

#: The call of one episode waits for its turn at the endpoint, so this is the time of a whole batch.
DEADLINE_S = 900.0
#: They make the server ask an address, or read and write files.
GUARDED = ("base_url", "cache_dir", "request", "rubric", "budget")


def _with_endpoint(function: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """Let `fn(x, endpoint, **params)` be called with the endpoint's fields among the parameters."""
    fields = {field.name for field in dataclasses.fields(Endpoint)}

    @functools.wraps(function)
    async def called_with_fields(x: object, **params: Any) -> T:
        endpoint = Endpoint(**{name: params.pop(name) for name in fields & params.keys()})
        return await function(x, endpoint, **params)

    episode, _, *own = inspect.signature(function).parameters.values()
    every = [*inspect.signature(Endpoint).parameters.values(), *own]
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in every]
    # What `Reward.check` reads, so that a misspelt parameter is found before anything is scored.
    vars(called_with_fields)["__signature__"] = inspect.Signature([episode, *keywords])
    return called_with_fields


@reward("judge", deadline_s=DEADLINE_S, guarded=GUARDED)
@_with_endpoint
async def judge(
    x: RewardInput,
    endpoint: Endpoint,
    rubric: str = "general",
    weights: Mapping[str, float] | None = None,
    images: int = 4,
) -> Score | None:
    """Score how good a judge finds the answer, in several aspects measured by the reference.

    Formula: Σ wᵢ·sᵢ / (scale·Σ wᵢ) over the rubric's aspects, sᵢ from 0 to its scale. An answer that is the
    reference word for word gets 1; an empty one, or an attack on the judge, gets 0.

    Range: [0, 1]. Source: Qwen3-VL report, general RL: a judge compares with the reference over several
    aspects; the aspects are those of its data filters, the weights ours (assumed).

    Args:
        x: `ground_truth` is a text or number, or a list of them, any of which is right; None means that this
            does not apply, unless the rubric needs no reference.
        endpoint: The judge; a configuration gives `model` and the rest of `Endpoint`'s fields.
        rubric: `general`, `preference` (without a reference), or a YAML file of the same form.
        weights: Other weights for some of its aspects; 0 leaves one out.
        images: How many of the prompt's images the judge is shown; 0 for a judge without eyes.

    Raises:
        JudgeError: If there was no verdict.
        ValueError: If the ground truth, an image or a parameter cannot be used.
    """
    chosen = load_rubric(rubric).with_weights(weights or {})
    if x.ground_truth is None and chosen.needs_reference:
        return None
    return _by_rule(x) or await score_answer(endpoint, chosen, x, images)


@reward("judge_accuracy", deadline_s=DEADLINE_S, guarded=GUARDED)
@_with_endpoint
async def judge_accuracy(
    x: RewardInput,
    endpoint: Endpoint,
    rubric: str = "answer_accuracy",
    images: int = 0,
) -> Score | None:
    """Score whether the final answer means the same as the reference; a judge decides where texts differ.

    Formula: 1 if the final answer equals a reference after normalisation; 0 if it is empty or an attack on
    the judge; else the judge's verdict by the rubric, which by default is 0 or 1.

    Range: [0, 1], {0, 1} by default. Source: Qwen3-VL report, tool rewards, "answer accuracy".

    Args:
        x: `ground_truth` is a text or number, or a list of them, any of which is right; None means that this
            does not apply.
        endpoint: The judge; a configuration gives `model` and the rest of `Endpoint`'s fields.
        rubric: `answer_accuracy`, or a YAML file of the same form.
        images: How many of the prompt's images the judge is shown.

    Raises:
        JudgeError: If there was no verdict.
        ValueError: If the ground truth, an image or a parameter cannot be used.
    """
    chosen = load_rubric(rubric)
    if x.ground_truth is None:
        return None
    if score := _by_rule(x):
        return score
    if any(_is_reference(answer, x) for answer in readings(x.answer)):
        return Score(1.0, note="the final answer is the reference")
    return await score_answer(endpoint, chosen, x, images)


@reward("multi_turn_reasoning", deadline_s=DEADLINE_S, guarded=GUARDED)
@_with_endpoint
async def multi_turn_reasoning(
    x: RewardInput,
    endpoint: Endpoint,
    rubric: str = "multi_turn_reasoning",
    images: int = 8,
) -> Score | None:
    """Score, by a judge, whether each tool result was read rightly and the steps cohere.

    Formula: Σ wᵢ·sᵢ / (scale·Σ wᵢ) over the rubric's aspects; how results were read counts only where there
    are any. An episode without an answer, or with an attack on the judge in any turn, gets 0.

    Range: [0, 1]. Source: Qwen3-VL report, tool rewards, "multi-turn reasoning"; the aspects and weights are
    ours (assumed).

    Args:
        x: Without a tool result and any text beside the answer, `response` has no steps to judge, and this
            does not apply. `ground_truth`, where there is one, is shown to the judge.
        endpoint: The judge; a configuration gives `model` and the rest of `Endpoint`'s fields.
        rubric: `multi_turn_reasoning`, or a YAML file of the same form.
        images: How many images, the prompt's and then the tools', the judge is shown.

    Raises:
        JudgeError: If there was no verdict.
        ValueError: If the ground truth, an image or a parameter cannot be used.
    """
    chosen = load_rubric(rubric)
    if not without_thinking(x.answer):
        return Score(0.0, note="there is no answer")
    written = "\n".join(message.text for message in x.response if message.role == "assistant")
    if written.strip() in ("", x.answer.strip()) and not any(m.role == "tool" for m in x.response):
        return None
    trusted = trusted_text(x)
    if reason := attack(x.answer, trusted) or attack(f"{written}\n{x.answer}", trusted):
        return Score(0.0, note=reason)
    return await score_reasoning(endpoint, chosen, x, images)


@group_reward("judge_pairwise", deadline_s=DEADLINE_S, guarded=GUARDED)
@_with_endpoint
async def judge_pairwise(
    xs: Sequence[RewardInput],
    endpoint: Endpoint,
    rubric: str = "general",
    weights: Mapping[str, float] | None = None,
    max_pairs: int = 16,
    images: int = 4,
    baseline: str = "",
) -> list[Score | None]:
    """Score the share of comparisons that a judge lets the answer win: with the others, or with a baseline.

    Formula: mean over the opponents of [wins] + ½·[ties], each pair judged in both orders. Every episode
    meets equally many opponents: the next ones around the group, as many as `max_pairs` allows. An answer
    that is empty or attacks the judge gets 0 and loses to all others, and equal answers tie, unseen by the
    judge. With `baseline` the one opponent is an answer of the sample's own, in both orders: two requests an
    episode, and groups of different policies are measured alike.

    Range: [0, 1]. Source: both orders against position bias: Zheng et al., arXiv 2306.05685; a fixed baseline
    as in Arena-Hard (arXiv 2406.11939); the schedule is ours (assumed).

    Args:
        xs: The episodes of one prompt. `ground_truth`, where there is one, is shown to the judge. This does
            not apply to a group of one, nor without a ground truth where the rubric needs one.
        endpoint: The judge; a configuration gives `model` and the rest of `Endpoint`'s fields.
        rubric: `general`, `preference` (without a reference), or a YAML file of the same form, whose aspects
            the judge weighs.
        weights: Other weights for some of its aspects; 0 leaves one out.
        max_pairs: Pairs compared in a group, two requests each; at least one round is.
        images: How many of the prompt's images the judge is shown.
        baseline: Column with an answer that each is compared with, or `ground_truth`; "" compares them with
            each other. This does not apply to samples without it.

    Raises:
        JudgeError: If a verdict was missing; a group is judged as a whole or not at all.
        ValueError: If the ground truth, an image or a parameter cannot be used.
    """
    chosen = load_rubric(rubric).with_weights(weights or {})
    rival = _baseline(xs[0], baseline) if baseline else None
    too_few = len(xs) < 2 if not baseline else rival is None
    if too_few or (chosen.needs_reference and xs[0].ground_truth is None):
        return [None] * len(xs)
    refused = [attack(without_thinking(x.answer), trusted_text(x)) for x in xs]
    pairs = [*_rounds(len(xs), max_pairs)] if rival is None else [(i, len(xs)) for i in range(len(xs))]
    if rival is not None:  # the dataset's own words attack nobody
        xs, refused = [*xs, rival], [*refused, ""]

    async def won(i: int, j: int) -> tuple[float, float]:
        if refused[i] or refused[j]:
            return float(not refused[i]), float(not refused[j])
        if normalise(without_thinking(xs[i].answer)) == normalise(without_thinking(xs[j].answer)):
            return 0.5, 0.5
        share = await compare(endpoint, chosen, xs[i], xs[j], images)
        return share, 1 - share

    scores = _shares(pairs, await all_or_first_failure([won(*pair) for pair in pairs]), refused)
    return [*scores] if rival is None else [*scores[:-1]]


def _shares(
    pairs: Sequence[tuple[int, int]], outcomes: Sequence[tuple[float, float]], refused: Sequence[str]
) -> list[Score]:
    """Return each answer's share of its comparisons.

    Args:
        pairs: Who was compared.
        outcomes: What each of them won.
        refused: Why an answer was not shown to the judge, "" where it was.
    """
    shares: list[list[float]] = [[] for _ in refused]
    for (i, j), (mine, theirs) in zip(pairs, outcomes, strict=True):
        shares[i].append(mine)
        shares[j].append(theirs)
    notes = [reason or f"{len(won)} comparisons" for reason, won in zip(refused, shares, strict=True)]
    return [Score(sum(won) / len(won), note=note) for won, note in zip(shares, notes, strict=True)]


def _baseline(x: RewardInput, column: str) -> RewardInput | None:
    """Return a sample with its baseline's answer; None where it has none.

    Raises:
        ValueError: If what stands there is no answer.
    """
    held = x.ground_truth if column == "ground_truth" else x.columns.get(column)
    if held is None:
        return None
    answers = references(held) if column == "ground_truth" else [held]
    if not isinstance(answers[0], str) or not answers[0].strip():
        raise ValueError(
            f"the baseline in {column!r} is {str(held)[:80]!r}; it must be a text; correct the dataset"
        )
    return dataclasses.replace(x, answer=answers[0])


def _by_rule(x: RewardInput) -> Score | None:
    """Score an answer that needs no judge: the reference itself, nothing, or an attack; else return None."""
    answer = without_thinking(x.answer)
    if answer and _is_reference(answer, x):
        return Score(1.0, note="the answer is the reference")
    reason = attack(answer, trusted_text(x))
    return Score(0.0, note=reason) if reason else None


def _is_reference(answer: str, x: RewardInput) -> bool:
    golds = references(x.ground_truth) if x.ground_truth is not None else []
    return any(normalise(answer) == normalise(gold) for gold in golds)


def _rounds(count: int, max_pairs: int) -> Iterator[tuple[int, int]]:
    """Yield pairs around a circle, each with its neighbour, then with the next but one, and so on.

    A round gives every member two opponents, except the last round of an even circle, which gives one.
    """
    pairs = 0
    for distance in range(1, count // 2 + 1):
        size = count // 2 if 2 * distance == count else count
        if pairs and pairs + size > max_pairs:
            return
        pairs += size
        yield from ((i, (i + distance) % count) for i in range(size))
