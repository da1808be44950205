"""Filters by the episodes of a task: how often a model solves it, in how few calls, and how."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low

from posttrain.chat_endpoint import BadReply, Completion
from posttrain.concurrency import all_or_first_failure
from posttrain.config.sampling_steps import CallTargetsStep, PassRateStep, PlayingStep, RejectionStep
from posttrain.curation.asking import Sampling
from posttrain.curation.filters import Context, Filter
from posttrain.curation.model_filters import (
    MATERIAL,
    NO_TRUTH,
    VERDICT_TOKENS,
    PassRate,
    RejectionSampling,
    in_band,
    json_object,
    shown,
)
from posttrain.curation.outcomes import Changes, Outcome, RowError
from posttrain.curation.playing import earned
from posttrain.curation.rows import to_last_user_turn
from posttrain.files.strict_json import JsonObject
from posttrain.looks import different_looks
from posttrain.messages import message_to_json
from posttrain.reward_spec import OUTCOME
from posttrain.types import Sample, ToolSpec, Trajectory, text_message

TOO_LONG, UNSOLVED = "too long", "never solved"
_NO_ROOM = "the prompt leaves no room for an answer"
_ESTIMATE = """You estimate how many tool calls a model needs to answer a query: the least number after which
the answer can be told for certain, 0 if it can be told from what is shown. The tools:
{tools}

{material}{{"calls": 0-{most}, "reason": "<short>"}}"""


class _Played:
    """Plays a step's task, and tells which episodes are right.

    Args:
        step: The step.
        context: Plays its episodes.
    """

    def __init__(self, step: PlayingStep, context: Context):
        assert step.task is not None
        assert context.episodes is not None
        self._episodes = context.episodes
        outcome = step.task.rewards[0]
        # An environment's own outcome is 1 where all is reached.
        self._full = 1.0 if outcome.name.startswith(OUTCOME) else context.scoring.full(outcome)
        self._outcome = outcome.name

    async def play(self, row: int, sample: Sample) -> tuple[Sequence[Trajectory], list[bool]] | Outcome:
        """Return a row's episodes and which are right, or why nothing can be said of them.

        Raises:
            RowError, CurationError: As `PlaysEpisodes.play` and `earned` say.
        """
        played = await self._episodes.play(row, replace(sample, messages=to_last_user_turn(sample)))
        if played is None:
            return Outcome(TOO_LONG, _NO_ROOM)
        values = earned(played, self._outcome)
        if all(value is None for value in values):
            return Outcome(NO_TRUTH)
        return played, [value is not None and value >= self._full for value in values]


class EpisodePassRate:
    """Keeps rows of which the share of episodes that are right lies between two bounds."""

    def __init__(self, step: PassRateStep, context: Context):
        self._step, self._played = step, _Played(step, context)

    async def judge(self, row: int, sample: Sample) -> Outcome:
        """Judge by the first reward of the task, as its rewards see an episode."""
        found = await self._played.play(row, sample)
        if isinstance(found, Outcome):
            return found
        played, right = found
        calls = sum(len(episode.tool_calls) for episode in played) / len(played)
        tokens = sum(len(episode.token_ids) for episode in played) / len(played)
        return in_band(self._step, right, {"tool_calls": calls, "tokens": tokens})


class EpisodeSampling:
    """Makes a right episode of a model the row's response, with its calls and their images."""

    def __init__(self, step: RejectionStep, context: Context):
        self._step, self._context, self._played = step, context, _Played(step, context)

    async def judge(self, row: int, sample: Sample) -> Outcome:
        """Judge the episodes by the task's first reward, then by those that the step checks."""
        if sample.chosen:
            raise RowError("a preference pair has two responses, of which an episode would replace one")
        found = await self._played.play(row, sample)
        if isinstance(found, Outcome):
            return found
        played, right = found
        scores = {"right": float(sum(right)), "pass_rate": sum(right) / len(right)}
        if not any(right):
            return Outcome("no right answer", f"of {len(right)}", scores)
        passed = right
        for check in self._step.checks:
            values = earned(played, check.reward.name)
            passed = [
                one and (value is None or value >= check.min)
                for one, value in zip(passed, values, strict=True)
            ]
        clean = [episode for episode, one in zip(played, passed, strict=True) if one]
        scores["clean"] = float(len(clean))
        if not clean:
            return Outcome("no clean answer", "every right one fails a check", scores)
        first = self._step.choose == "first"
        chosen = clean[0] if first else min(clean, key=lambda episode: len(episode.token_ids))
        scores["tool_calls"] = float(len(chosen.tool_calls))
        dialogue = self._context.keep_images([*chosen.prompt, *chosen.response], sample)
        changes = Changes(
            messages=[message_to_json(message) for message in dialogue],
            tools=[tool.as_openai() for tool in self._context.tools],
            columns={"pass_rate": scores["pass_rate"]},
        )
        return Outcome(scores=scores, changes=changes)


class FewestCalls:
    """Writes the least number of useful calls with which a model solves a row."""

    def __init__(self, step: CallTargetsStep, context: Context):
        self._step, self._played = step, _Played(step, context)

    async def judge(self, row: int, sample: Sample) -> Outcome:
        """Count the looks of the right episodes, as the reward `tool_calls` counts them."""
        step = self._step
        found = await self._played.play(row, sample)
        if isinstance(found, Outcome):
            return self._without_target(sample, found)
        played, right = found
        scores = {"right": float(sum(right)), "pass_rate": sum(right) / len(right)}
        tries: dict[int, list[bool]] = {}
        for episode, is_right in zip(played, right, strict=True):
            looks = len(different_looks(episode.tool_calls, episode.response))
            tries.setdefault(looks, []).append(is_right)
        solved = [
            looks
            for looks, each in sorted(tries.items())
            if any(each) and sum(each) / len(each) >= step.min_solved_share
        ]
        if not solved:
            why = f"{sum(right)} of {len(right)} right" if any(right) else f"none of {len(right)} right"
            return self._without_target(sample, Outcome(UNSOLVED, why, scores))
        return _target(step, solved[0], scores)

    def _without_target(self, sample: Sample, outcome: Outcome) -> Outcome:
        """Drop a row, or keep it; a target that it had before was another estimate's."""
        if self._step.unsolved == "drop":
            return outcome
        earlier: JsonObject = {self._step.column: None} if self._step.column in sample.columns else {}
        return Outcome(
            note=outcome.note,
            kept_as=f"no target: {outcome.reason}",
            scores=outcome.scores,
            changes=Changes(columns=earlier),
        )


class EstimatedCalls:
    """Writes how many calls a row needs in the estimate of a model, the median of several."""

    def __init__(self, step: CallTargetsStep, context: Context):
        assert step.endpoint is not None
        self._step, self._seed, self._endpoint = step, context.seed, context.endpoints[step.endpoint]
        tools = "\n".join(_described(tool) for tool in context.tools)
        system = _ESTIMATE.format(tools=tools, material=MATERIAL, most=step.max_calls)
        self._system = text_message("system", system)

    async def judge(self, row: int, sample: Sample) -> Outcome:
        """Ask the model for as many estimates as the step says."""
        step, prompt = self._step, shown(self._system, sample)
        samplings = [
            Sampling(step.temperature, min(step.max_new_tokens, VERDICT_TOKENS), self._seed * 1009 + number)
            for number in range(step.samples)
        ]
        estimates = await all_or_first_failure(
            self._endpoint.ask(prompt, sampling, self._read) for sampling in samplings
        )
        spread = {"least": float(min(estimates)), "most": float(max(estimates))}
        return _target(step, median_low(estimates), spread if step.samples > 1 else {})

    def _read(self, answer: Completion) -> int:
        """Read an estimate from the model's answer."""
        calls = json_object(answer).get("calls")
        if isinstance(calls, bool) or not isinstance(calls, int) or not 0 <= calls <= self._step.max_calls:
            raise BadReply(f"calls {str(calls)[:40]!r} is no number from 0 to {self._step.max_calls}")
        return calls


def pass_rate(step: PassRateStep, context: Context) -> Filter:
    """Make the filter of a `pass_rate` step: by episodes if the step has a task, else by answers."""
    return PassRate(step, context) if step.task is None else EpisodePassRate(step, context)


def rejection_sampling(step: RejectionStep, context: Context) -> Filter:
    """Make the filter of a `rejection_sampling` step, of answers or of episodes."""
    return RejectionSampling(step, context) if step.task is None else EpisodeSampling(step, context)


def call_targets(step: CallTargetsStep, context: Context) -> Filter:
    """Make the filter of a `call_targets` step: by episodes if the step has a task, else by asking."""
    return EstimatedCalls(step, context) if step.task is None else FewestCalls(step, context)


def _target(step: CallTargetsStep, calls: int, scores: dict[str, float]) -> Outcome:
    return Outcome(
        kept_as=f"target {calls}",
        scores={**scores, "calls": float(calls)},
        changes=Changes(columns={step.column: calls}),
    )


def _described(tool: ToolSpec) -> str:
    return f"- {tool.name}: {tool.description}"
